"""Arrays of results, one entry an image, in .npy files that are written in place.

Each is float32 [n, ...], NaN where nothing was written yet. An entry's seal, a hash of its bytes,
goes into the record of its image: what is read later is what was computed, or an error.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from purify.runtime.errors import FileError
from purify.saving.files import named, open_descriptor, open_file, writing

DTYPE = np.dtype("<f4")
MAX_HEADER = 1000  # characters: those of a real one are about 80

Seals = Mapping[str, Sequence[str]]  # name of an array -> the seals of some entries of it


def seal(entry: np.ndarray) -> str:
    """The first 16 hex of the SHA-256 of an entry's bytes."""
    return hashlib.sha256(np.ascontiguousarray(entry, DTYPE).tobytes()).hexdigest()[:16]


def sealed(records: Sequence[dict], seals: Seals) -> list[dict]:
    """The records, each with {'arrays': {name: seal}} of its entries."""
    each = (dict(zip(seals, of, strict=True)) for of in zip(*seals.values(), strict=True))
    return [record | {"arrays": of} for record, of in zip(records, each, strict=True)]


def read(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array of a file, mapped, to be read only; NaN throughout where there is no file.

    None in the shape stands for any length, 1 where there is no file.

    Raises FileError unless it is float32 of that shape, as many bytes as that takes: a longer file,
    or a shorter one that would be filled up with zeros, is none of `write`.
    """
    if not os.path.lexists(path):
        return np.broadcast_to(np.array(np.nan, DTYPE), [length or 1 for length in shape])
    with open_file(path) as file:
        offset, found = _checked(file, path, shape)
        return np.memmap(file, DTYPE, "r", offset, found)


def write(path: Path, shape: tuple[int, ...], at: Sequence[int], entries: np.ndarray) -> list[str]:
    """Write the entries of these numbers and bring them to the disk; their seals."""
    entries = np.ascontiguousarray(entries, DTYPE)
    if not os.path.lexists(path):
        _create(path, shape)
    with named(path), os.fdopen(open_descriptor(path, os.O_RDWR), "r+b") as file:
        offset, size = _checked(file, path, shape)[0], math.prod(shape[1:]) * DTYPE.itemsize
        for number, entry in zip(at, entries, strict=True):
            file.seek(offset + int(number) * size)
            file.write(entry.tobytes())
        file.flush()
        os.fsync(file.fileno())
    return [seal(entry) for entry in entries]


def _create(path: Path, shape: tuple[int, ...]) -> None:
    """Filled under another name first: a file that exists is whole, and has its place on disk."""
    entry = np.full(shape[1:], np.nan, DTYPE).tobytes()
    header = {"descr": DTYPE.str, "fortran_order": False, "shape": shape}
    with writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(shape[0]):
            file.write(entry)


def _checked(file: BinaryIO, path: Path, shape: tuple[int | None, ...]) -> tuple[int, tuple]:
    """(where the entries begin, the whole shape); FileError as in `read`."""
    found: Any = None
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            found = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
    except Exception as error:  # what NumPy makes of such a header: ValueError, SyntaxError, ...
        reason = str(error).partition("\n")[0] or repr(error)
        raise FileError(f"{path} is damaged ({reason}); {WAY_OUT}") from None
    if found is not None and len(found[0]) == len(shape):
        shape = tuple(own if n is None else n for n, own in zip(shape, found[0], strict=True))
    if found != (shape, False, DTYPE):
        said = "another format" if found is None else f"{found[2]} {list(found[0])}"
        raise FileError(f"{path} is {said}, expected {DTYPE.name} {list(shape)}; {WAY_OUT}")
    offset = file.tell()
    expected = offset + math.prod(found[0]) * DTYPE.itemsize
    if (size := os.fstat(file.fileno()).st_size) != expected:
        raise FileError(f"{path} has {size:,} bytes, expected {expected:,}; {WAY_OUT}")
    return offset, found[0]


WAY_OUT = "bring it back, or move it away: the same command computes anew what it needs of it"
