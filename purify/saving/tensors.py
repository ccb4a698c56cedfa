"""Safetensors files: the header is checked, and fits the file, before any array is read."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypedDict

import ml_dtypes
import msgspec
import numpy as np

from purify.runtime.errors import FileError
from purify.runtime.messages import few, printable
from purify.saving.files import LARGEST, named, open_file
from purify.saving.jsonl import parse
from purify.saving.schema import check

MAX_HEADER = 2**24  # bytes of JSON, of which Python makes a thirty-fold
MAX_TENSORS = 100_000
MAX_NAME = 1000  # letters of a tensor's name

# Names of the format that NumPy has a type for; F8 and smaller stand for others, by scales that no
# file of the format says.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}")
       for kind in "IU" for bits in (8, 16, 32, 64)},
}  # fmt: skip

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**60)]


class _Entry(TypedDict):
    dtype: str
    shape: list[_Size]
    data_offsets: tuple[_Size, _Size]


class _Head(NamedTuple):
    """What precedes the arrays: `offset` bytes."""

    entries: Mapping[str, _Entry]
    metadata: Mapping[str, str]
    offset: int


def read_metadata(path: Path, name: str) -> Mapping[str, str]:
    """The texts that a file has beside its arrays; errors as in read_tensors."""
    with named(path), open_file(path, follow=True) as file:
        return _read_head(file, name).metadata


def read_tensors(path: Path, name: str) -> dict[str, np.ndarray]:
    """key -> array; `name` is what errors call the file.

    OSError where the file cannot be read, FileError where it is damaged, or has
    arrays of a type that NumPy lacks.
    """
    with named(path), open_file(path, follow=True) as file:
        entries, _, offset = _read_head(file, name)
        size = os.fstat(file.fileno()).st_size - offset
        _check_arrays(entries, size, name)
        content = np.empty(size, np.uint8)
        if file.readinto(content) != size:  # type: ignore[attr-defined]
            raise FileError(f"{name} is cut short while it is read")
    return {key: _array(content, entry) for key, entry in entries.items()}


def _array(content: np.ndarray, entry: _Entry) -> np.ndarray:
    start, end = entry["data_offsets"]
    dtype = np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<")
    # A copy where the place in the file is none for such numbers in memory.
    return np.frombuffer(content[start:end].tobytes(), dtype).reshape(entry["shape"])


def _read_head(file: BinaryIO, name: str) -> _Head:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise FileError(f"{name} is no safetensors file, or is cut short")
    if length > MAX_HEADER or size > LARGEST:
        raise FileError(
            f"{name} has {size:,} bytes, {length:,} of them in its header: allowed are {LARGEST:,} "
            f"and {MAX_HEADER:,}"
        )
    try:
        header = check(parse(file.read(length)), dict[str, Any])
        metadata = check(header.pop("__metadata__", {}), dict[str, str])
        if len(header) > MAX_TENSORS:
            raise ValueError(f"{len(header):,} tensors: allowed are {MAX_TENSORS:,}")
        if long := [key for key in header if len(key) > MAX_NAME]:
            raise ValueError(f"a name of more than {MAX_NAME:,} letters: {few(long)}")
        entries = check(header, dict[str, _Entry])
    except ValueError as error:
        reason = printable(error)
        raise FileError(f"{name} is damaged, or no safetensors file ({reason})") from None
    return _Head(entries, metadata, 8 + length)


def _check_arrays(entries: Mapping[str, _Entry], size: int, name: str) -> None:
    """FileError unless the arrays are of known types and lie side by side in `size` bytes."""
    if odd := [f"{key} is {e['dtype']}" for key, e in entries.items() if e["dtype"] not in DTYPES]:
        raise FileError(
            f"{name} has {len(odd)} tensors of types that are not taken ({few(odd)}): save them as "
            "float32 (F32)"
        )
    at = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        needed = math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize
        if start != at or end - start != needed or end > size or len(entry["shape"]) > 32:
            raise FileError(
                f"{name} is damaged: {printable(key)} of shape "
                f"{few(entry['shape'], limit=8)} is said to be its bytes {start:,} to {end:,} of "
                f"{size:,}"
            )
        at = end
    if at != size:
        raise FileError(f"{name} is damaged: it has {size - at:,} bytes behind its last tensor")
