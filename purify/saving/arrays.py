"""Arrays of .npy and .npz files: kinds, shapes and sizes are known to fit the file, and a bound,
before any array is read. Nothing is unpickled, and members that nobody asks for stay compressed."""

import contextlib
import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from purify.runtime.errors import FileError
from purify.runtime.messages import few, printable
from purify.runtime.paths import is_of_system
from purify.saving.files import memory_for, named, open_file

MAX_HEADER = 10_000  # bytes of an array's header, as NumPy has it
MAX_DIRECTORY = 2**23  # bytes of an archive's list of members, each of which takes 46 and its name
PLAIN = "biufcmMSUV"  # kinds of NumPy's dtypes that hold no Python objects
FACTOR = 8  # bytes of memory for each of a large file: uint8 that also become float32, with room
DEFLATION = 1032  # no deflated byte becomes more than that many
CHUNK = 2**20
NAMES = 12  # of arrays in a message


class Header(NamedTuple):
    """What precedes the values of an array: `offset` bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def memory(self) -> int:
        """Bytes of the array and of a float32 copy."""
        return self.nbytes + 4 * math.prod(self.shape)

    def array(self, values: Any) -> np.ndarray:
        """The array of these `nbytes` bytes, uint8 [nbytes]."""
        return values.view(self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


class Archive:
    """An opened .npz archive; `name` is what errors call it. names: of its arrays."""

    def __init__(self, file: BinaryIO, name: str):
        self._name, self._size = name, os.fstat(file.fileno()).st_size
        self._taken = 0  # bytes of memory by what was read
        with self._damage_told():
            self._zip = zipfile.ZipFile(_InParts(file))  # type: ignore[arg-type]
            members = self._zip.infolist()
        self._others = [info.filename for info in members if not info.filename.endswith(".npy")]
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in members
            if info.filename.endswith(".npy")
        }
        if len(self._members) + len(self._others) < len(members):
            raise FileError(f"{name} has two arrays of one name: save it anew")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, *names: str, optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """These arrays, and of the optional ones those that are there."""
        for name in names:
            if name not in self._members:
                held = few(self.names, limit=NAMES)
                raise FileError(f"{self._name} holds no array {name}, only [{held}]: add it")
        wanted = [*names, *(name for name in optional if name in self._members)]
        declared = sum(self._members[name].file_size for name in wanted)
        check_memory(self._taken + declared, self._size, self._name)
        with self._damage_told():
            headers = {name: self._header(name) for name in wanted}
        self._taken += sum(header.memory for header in headers.values())
        check_memory(self._taken, self._size, self._name)
        with self._damage_told():
            return {name: self._array(name, header) for name, header in headers.items()}

    def read_all(self) -> dict[str, np.ndarray]:
        """All members, which must be arrays."""
        with self._damage_told():
            if self._others:
                raise ValueError(f"{few(self._others)}: no array")
        return self.read(*self.names)

    def _open(self, name: str) -> IO[bytes]:
        info = self._members[name]
        if info.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed by method {info.compress_type}")
        most = info.compress_size
        most = most if info.compress_type == zipfile.ZIP_STORED else DEFLATION * most
        if info.file_size > most or info.compress_size > self._size:
            raise ValueError(f"{name} cannot have {info.file_size:,} bytes")
        return self._zip.open(info)

    def _header(self, name: str) -> Header:
        with self._open(name) as member:
            header = _read_header(member)
        if header.offset + header.nbytes != self._members[name].file_size:
            raise ValueError(f"{name} is not as long as its header says")
        return header

    def _array(self, name: str, header: Header) -> np.ndarray:
        with self._open(name) as member:
            member.read(header.offset)
            return header.array(_read_exactly(member, header.nbytes))

    def _damage_told(self):
        return _damage_told(f"{self._name} is no .npz archive of plain arrays, or is damaged")


@contextlib.contextmanager
def open_npz(path: str | Path, name: str) -> Iterator[Archive]:
    """An .npz archive of a user's; `name` is what errors call it.

    Raises OSError where it is not there or cannot be read, FileError where it is no such archive.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist: give an .npz file")
    with named(path), open_file(path, follow=True) as file:
        yield Archive(file, name)


def load_npz(path: str | Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz archive; `name` is what errors call it.

    Raises OSError where it is not there or cannot be read, FileError where it is damaged, too large
    or holds anything but plain arrays (Python objects would be unpickled, which runs code).
    """
    with open_npz(path, name) as archive:
        return archive.read_all()


def read_npy(path: Path, name: str) -> np.ndarray:
    """The array of an .npy file; errors as in load_npz."""
    with named(path), open_file(path, follow=True) as file:
        header = _header_of_file(file, name)
        check_memory(header.memory, os.fstat(file.fileno()).st_size, name)
        with _damage_told(f"{name} is damaged, or no array of numbers"):
            return header.array(_read_exactly(file, header.nbytes))


def map_npy(path: Path, name: str) -> np.ndarray:
    """The array of an .npy file, mapped and read-only: it may be larger than the memory. Errors as
    in load_npz."""
    with named(path), open_file(path, follow=True) as file:
        shape, fortran, dtype, offset = header = _header_of_file(file, name)
        if not header.nbytes:  # nothing can be mapped
            return header.array(np.empty(0, np.uint8))
        return np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")


def check_memory(needed: int, size: int, name: str) -> None:
    """FileError where a file of `size` bytes would take more memory than such a file may."""
    if needed > (most := memory_for(size, FACTOR)):
        raise FileError(
            f"{name} would take {needed:,} bytes of memory; allowed are {most:,} for a file of "
            f"{size:,}: give it in parts, or save it uncompressed"
        )


def _header_of_file(file: BinaryIO, name: str) -> Header:
    with _damage_told(f"{name} is damaged, or no array of numbers"):
        header = _read_header(file)
        if header.offset + header.nbytes != os.fstat(file.fileno()).st_size:
            raise ValueError("it is not as long as its header says")
        return header


def _read_header(file: IO[bytes]) -> Header:
    """ValueError, or what NumPy and Python's parser raise, for any that is none."""
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("no array of NumPy")
    length = file.read(2 if start[6] == 1 else 4)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ValueError(f"a header of more than {MAX_HEADER:,} bytes")
    text = file.read(int.from_bytes(length, "little"))
    parse = np.lib.format.read_array_header_1_0
    if start[6] > 1:  # 3 differs in the encoding of field names alone
        parse = np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():  # of Python's parser, about what is damaged
        warnings.simplefilter("ignore")
        try:
            shape, fortran, dtype = parse(io.BytesIO(length + text), max_header_size=MAX_HEADER)
        except MemoryError:  # of the parser, about nesting: there are few bytes
            raise ValueError("a header that is nested too deeply") from None
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError("a shape of other numbers than counts")
    if dtype.kind not in PLAIN or dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"values of {dtype}, which are not plain")
    return Header(shape, fortran, dtype, len(start) + len(length) + len(text))


def _read_exactly(file: IO[bytes], count: int) -> np.ndarray:
    """The next `count` bytes, the last of the file: uint8 [count]."""
    values = np.empty(count, np.uint8)
    at, view = 0, memoryview(values)
    while at < count:
        part = file.read(min(CHUNK, count - at))
        if not part:
            raise EOFError("it is cut short")
        view[at : at + len(part)] = part
        at += len(part)
    if file.read(1):
        raise ValueError("it goes on behind its end")
    return values


@contextlib.contextmanager
def _damage_told(what: str) -> Iterator[None]:
    """FileError for what zip, zlib, NumPy and Python's parser raise, each its own kinds, for bytes
    that are damaged; what the system raises stays as it is."""
    try:
        yield
    except Exception as error:
        if is_of_system(error):
            raise
        reason = printable(str(error) or repr(error), limit=100)
        raise FileError(f"{what} ({reason}): save it anew") from error


class _InParts:
    """A file of which no read takes much: zipfile takes the whole list of members by one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > MAX_DIRECTORY:
            raise ValueError(f"a list of members of {count:,} bytes")
        return self._file.read(count)
