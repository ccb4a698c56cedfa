"""Files and folders that may be damaged, or may come from others: what is read is a regular file of
bounded size, what is written is whole or absent, and no link leads out of a folder of results."""

import contextlib
import ctypes
import errno
import io
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from purify.runtime.errors import FileError
from purify.runtime.messages import shown
from purify.saving.temporary import new_file, new_folder, remove, temporary

MEMORY = 2**30  # bytes of memory that one input may take
LARGEST = 2**34  # the same of the largest, by the size of its file

_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of Linux
# How it says that a file system cannot rename so.
_NO_EXCLUSIVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


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
    make_folders(path)
    return path


def make_folders(path: Path) -> None:
    """Make a folder, and those above it, where they are not there, and bring their names to the
    disk: what is in it lasts no longer than its name."""
    if path.is_dir():
        return
    make_folders(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


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
    with named(path), temporary(path, new_file) as (partial, descriptor):
        with os.fdopen(descriptor, "w+b", closefd=False) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            rename_new(partial, path)
        else:
            os.replace(partial, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A new folder that gets the name `folder` once the block has ended and its files are on disk;
    FileError where that exists by then. Temporary as in `writing`."""
    with named(folder), temporary(folder, new_folder) as (partial, _):
        yield partial
        sync_tree(partial)
        rename_new(partial, folder)
        sync_folder(folder.parent)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder with a temporary name of `path`, which goes with the block; where the process is
    killed, with the next that asks for it."""
    with temporary(path, new_folder) as (partial, _):
        yield partial
        remove(partial)


def rename_new(old: Path, new: Path) -> None:
    """Rename a file or folder; FileError where anything has the new name.

    In one step: between a look and a rename a file could appear, which would be lost, and a kill
    between a second name and the removal of the first would leave both. The look comes first only
    where the file system, or another kernel than Linux's, has no such step.
    """
    rename, exists = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None), False
    if rename is not None:
        names = os.fsencode(old), os.fsencode(new)
        if not rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
            return
        number = ctypes.get_errno()
        exists = number == errno.EEXIST
        if not exists and number not in _NO_EXCLUSIVE:
            raise OSError(number, os.strerror(number), str(new))
    if exists or os.path.lexists(new):
        raise FileError(f"'{shown(new)}' exists already: name a new path or move it away")
    os.rename(old, new)


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
