"""Files and folders that may be damaged, or may come from others: what is read is a regular file of
bounded size, what is written is whole or absent, and no link leads out of a folder of results."""

import contextlib
import errno
import fcntl
import glob
import io
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from purify.messages import shown

MEMORY = 2**30  # bytes of memory that one input may take
LARGEST = 2**34  # the same of the largest, by the size of its file
PARTIAL = ".partial"  # how the names of temporary files and folders end


class FileError(ValueError):
    """A file or folder is not what it must be; the message names it."""


def inside(folder: Path, *names: str) -> Path:
    """folder/name/..., which must not be reached through a link below the folder.

    Raises FileError where a name is no plain name of a file, or something on the way is a link: a
    folder from somebody else would lead to files that are none of it.
    """
    path = folder
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise FileError(
                f"'{shown(folder)}' names a file {shown(name)!r}, which is no plain name"
            )
        path = path / name
        if path.is_symlink():
            raise FileError(
                f"'{shown(path)}' is a link; files of '{shown(folder)}' must lie in it: put the "
                "file itself there"
            )
    return path


def subfolder(folder: Path, name: str) -> Path:
    """The folder of that name, made if it is not there; FileError where it is a link."""
    path = inside(folder, name)
    path.mkdir(exist_ok=True)
    return path


def open_file(path: Path, *, follow: bool = False) -> io.BufferedReader:
    """Open a regular file for reading; FileError for a pipe, a device or a folder, which could
    block for ever, and for a link unless `follow`. Raises OSError as `open` does."""
    return os.fdopen(open_descriptor(path, os.O_RDONLY, follow), "rb")


def memory_for(size: int, factor: int) -> int:
    """Bytes of memory that an input of `size` bytes may take: MEMORY, and more only where it is
    large itself: `factor` times its size, up to LARGEST."""
    return min(max(MEMORY, factor * size), LARGEST)


def read_bytes(path: Path, *, limit: int = MEMORY, follow: bool = False) -> bytes:
    """The content of a regular file; FileError where it has more than `limit` bytes."""
    with open_file(path, follow=follow) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileError(f"'{shown(path)}' has more than {limit:,} bytes")
    return content


def append(path: Path, content: bytes) -> None:
    """Append to a regular file, made if it is not there, in one write that reaches the disk."""
    new = not path.exists()
    descriptor = open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with named(path), os.fdopen(descriptor, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once the block has ended and its content is on disk.

    Until then it has a name that nobody can foresee, and where the block fails it is removed. A
    link at `path` is replaced, never followed. new: FileError where anything has that name by then.
    """
    temporary = temporary_name(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with named(path), _removed_on_failure(temporary):
        _clear_dead(path)
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            _check_absent(path)
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A new folder that gets the name `folder` once the block has ended and its files are on disk;
    FileError where that exists by then. Temporary as in `writing`."""
    temporary = temporary_name(folder)
    with named(folder), _removed_on_failure(temporary):
        _clear_dead(folder)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor)
            yield temporary
            sync_tree(temporary)
            _check_absent(folder)
            os.rename(temporary, folder)
        finally:
            os.close(descriptor)
        sync_folder(folder.parent)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody can foresee."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}{PARTIAL}")


def _clear_dead(path: Path) -> None:
    """Remove what killed processes left under temporary names of `path`: nobody holds its lock."""
    for left in path.parent.glob(f".{glob.escape(path.name[:200])}.*{PARTIAL}"):
        with contextlib.suppress(OSError):  # a living one has it, or another removes it, too
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Held until it is closed; for nothing where the file system has no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def clear_partial(folder: Path) -> None:
    """Remove what killed processes left under temporary names in a folder; for the process that has
    the folder to itself."""
    for path in folder.glob(f".*{PARTIAL}"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder, which first gets a temporary name: nobody finds a part of
    it under its own."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not path.name.endswith(PARTIAL):
        path = path.rename(temporary_name(path))
    shutil.rmtree(path)


def moved_aside(path: Path, why: str) -> Path:
    """Rename a file or folder to '<name>.<why>', or to '<name>.<why>-2' and so on where that is
    there; the new path."""
    names = itertools.chain([why], (f"{why}-{number}" for number in itertools.count(2)))
    paths = (path.with_name(f"{path.name}.{name}") for name in names)
    free = next(path for path in paths if not os.path.lexists(path))
    path.rename(free)
    sync_folder(path.parent)
    return free


def sync_tree(folder: Path) -> None:
    """Bring all files and folders below to the disk."""
    for path, _, names in os.walk(folder):
        for name in names:
            with open(Path(path) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise FileError(f"'{shown(path)}' exists already: name a new path or move it away")


def open_descriptor(path: Path, flags: int, follow: bool = False) -> int:
    """`os.open` with these flags, of a regular file, as in `open_file`."""
    # Non-blocking: a pipe without a writer would wait for one before it can be looked at.
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if not follow and path.is_symlink():
        raise FileError(f"'{shown(path)}' is a link; put the file itself there")
    descriptor = os.open(path, flags, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise FileError(f"'{shown(path)}' is no regular file")
    return descriptor


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system name the path: those of a full disk come from a write, which knows no
    name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise
