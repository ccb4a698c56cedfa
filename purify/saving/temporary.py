"""Names under which files and folders are written until they are whole: nobody can foresee them,
their owner has a lock on them, and what a killed process left is known by that nobody has."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

PARTIAL = ".partial"  # how the names of temporary files and folders end
# Those names, as `temporary_name` makes them and nobody else does; group 1: of what they become.
_TEMPORARY = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.DOTALL)
_STEM = 200  # bytes of it in them, as a name may have 255


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody can foresee."""
    return path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}{PARTIAL}")


def _stem(path: Path) -> str:
    """The beginning of its name, of whole characters: file systems count bytes."""
    name = path.name[:_STEM]
    while len(os.fsencode(name)) > _STEM:
        name = name[:-1]
    return name


def _temporaries(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, stem of what it was to become) of all that has a temporary name in a folder; none
    where it cannot be listed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if match := _TEMPORARY.fullmatch(name):
                yield folder / name, match[1]


@contextlib.contextmanager
def temporary(path: Path, make: Callable[[Path], int | None]) -> Iterator[tuple[Path, int]]:
    """(path, descriptor) of what `make` makes under a temporary name of `path`, with its lock;
    removed where the block fails.

    Another writer of that name may clear it away before it has the lock: then a new one is made.
    """
    _clear_dead(path)
    partial, descriptor = temporary_name(path), None
    try:
        while True:
            descriptor = make(partial)
            if descriptor is not None and _lock(descriptor) and os.path.lexists(partial):
                break
            if descriptor is not None:
                os.close(descriptor)
            partial, descriptor = temporary_name(path), None
        yield partial, descriptor
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def new_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def new_folder(path: Path) -> int | None:
    """None where another has removed it already."""
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _clear_dead(path: Path) -> None:
    """Remove what killed processes left under temporary names of `path`: nobody holds its lock."""
    for left, stem in _temporaries(path.parent):
        if stem != _stem(path):
            continue
        with contextlib.suppress(OSError):  # a living one has it, or another removes it, too
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether this process has it now, until it is closed; also where the file system has no locks,
    as nobody clears anything there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def clear_partial(folder: Path) -> None:
    """Remove what killed processes left under temporary names in a folder; for the process that has
    the folder to itself. Where a link leads is somebody else's folder: nothing is removed there."""
    if not folder.is_symlink():
        for path, _ in _temporaries(folder):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder, which first gets a temporary name: nobody finds a part of
    it under its own."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not _TEMPORARY.fullmatch(path.name):
        path = path.rename(temporary_name(path))
    shutil.rmtree(path)
