"""Paths of users: several in one text, for libraries that take some characters for a pattern, and
whose fault an error in reading is."""

import errno
import functools
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from purify.runtime import ending

# Letters, digits and what no library gives a meaning; and no folder that etils takes for a bucket.
_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))[\w./ -]*")


def split_paths(text: str) -> list[Path]:
    """The paths of 'A,B', where '~' is the home; a ',' belongs to a path that exists where its
    parts do not. Raises ValueError where paths exist for more than one reading."""

    def readings(parts: list[str]) -> Iterator[list[str]]:
        if not parts:
            yield []
        for n in range(1, len(parts) + 1):
            path = ",".join(parts[:n])
            if path and os.path.exists(os.path.expanduser(path)):
                yield from ([path, *rest] for rest in readings(parts[n:]))

    parts = text.split(",")
    found = list(itertools.islice(readings(parts), 2))
    if len(found) > 1:
        raise ValueError(f"'{text}' has two readings: {found[0]} and {found[1]}; rename a folder")
    return [Path(os.path.expanduser(path)) for path in (found[0] if found else parts)]


@functools.cache
def plain_spelling(folder: str) -> str:
    """A path of the same folder for Orbax and TFDS, which take '[', '*' and '?' in a path for a
    pattern (etils' glob), '\\' for '/' (TensorStore) and 'gs:' for an address.

    It is the path itself where that is plain, or an address on purpose ('gs://bucket'); else a link
    to it among the temporary files, for as long as this process lives. Raises ValueError where
    these lie in such a folder themselves.
    """
    absolute = os.path.abspath(folder)
    if _PLAIN.fullmatch(absolute) or re.match(r"\w+://", folder):
        return folder
    links = _links()
    if not _PLAIN.fullmatch(links):
        raise ValueError(
            f"'{folder}' needs a link to it among the temporary files, but their folder "
            f"'{tempfile.gettempdir()}' has a special character, too: set TMPDIR to another one"
        )
    link = os.path.join(links, str(len(os.listdir(links))))
    os.symlink(absolute, link)
    return link


def as_given(text: str) -> str:
    """The text of a message with what the links of `plain_spelling` lead to in their places."""
    if _links.cache_info().currsize:
        for link in Path(_links()).iterdir():
            text = text.replace(str(link), os.readlink(link))
    return text


@functools.cache
def _links() -> str:
    """The folder of this process's links, which goes with it."""
    return ending.temporary_folder()


def same_path(a: str, b: str) -> bool:
    """Whether two spellings lead to the same file or folder; '' leads to none but itself, and so
    does what is no path here, as with a NUL or the home of somebody whom this machine has not."""
    if not (a and b) or a == b:
        return a == b
    try:
        return _real(a) == _real(b)
    except ValueError:
        return False


def _real(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def is_of_system(error: BaseException) -> bool:
    """Whether an error while reading a file says that the system did not let us (no rights, too
    many open files, no memory, a disk that fails), and so nothing about what is in the file.

    Decoders raise OSError for damage, too: without a number, or for a place before the file's
    start.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL, errno.ENOENT)
    return isinstance(error, MemoryError)
