"""Paths for libraries that take some characters for a pattern, and whose fault an error is."""

import errno
import functools
import os
import re
import tempfile
from pathlib import Path

# Letters, digits and what no library gives a meaning; and no folder that etils takes for a bucket.
_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))[\w./ -]*")


@functools.cache
def plain_spelling(folder: Path) -> Path:
    """A path of the same folder for Orbax and TFDS, which take '[', '*' and '?' in a path for a
    pattern (etils' glob), '\\' for '/' (TensorStore) and 'gs:' for an address.

    It is the path itself where that is plain, else a link to it among the temporary files, for as
    long as this process lives. Raises ValueError where these lie in such a folder themselves.
    """
    absolute = Path(os.path.abspath(folder))
    if _PLAIN.fullmatch(str(absolute)):
        return folder
    links = _links().name
    if not _PLAIN.fullmatch(links):
        raise ValueError(
            f"'{folder}' needs a link to it among the temporary files, but their folder "
            f"'{tempfile.gettempdir()}' has a special character, too: set TMPDIR to another one"
        )
    link = Path(links) / str(len(os.listdir(links)))
    link.symlink_to(absolute)
    return link


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    """The folder of this process's links, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="purify-")


def same_path(a: str, b: str) -> bool:
    """Whether two spellings lead to the same file or folder; '' leads to none but itself."""
    if not (a and b):
        return a == b
    return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def is_of_system(error: BaseException) -> bool:
    """Whether an error while reading a file says that the system did not let us (no rights, too
    many open files, no memory, a disk that fails), and so nothing about what is in the file.

    Decoders raise OSError for damage, too: without a number, or for a place before the file's
    start.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL, errno.ENOENT)
    return isinstance(error, MemoryError)
