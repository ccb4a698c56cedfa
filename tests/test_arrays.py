"""Arrays of NumPy's files: sizes and kinds are known to fit before anything is read or inflated."""

import io
import os
import struct
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from purify.data.image_io import load_labelled_npz
from purify.models.importing import read_weights
from purify.runtime.errors import FileError
from purify.saving import arrays
from purify.saving.arrays import load_npz, map_npy, open_npz, read_npy

WEIGHTS = {"conv1.weight": np.arange(24, dtype=np.float32).reshape(4, 6), "fc.bias": np.ones(3)}


def npy(array=None, *, header: str = "", version: int = 1, values: bytes = b"") -> bytes:
    """The bytes of an .npy file of an array, or of a header and values of one's own."""
    if array is not None:
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    text = header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + values


def header(descr: str = "'<f4'", shape: str = "(2, 3)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def write_zip(path: Path, members: dict[str, bytes], how=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def patched(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


# name -> what makes such a file of a path
BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "text": lambda path: path.write_text("weights"),
    "an .npy file": lambda path: path.write_bytes(npy(np.ones(3))),
    "objects": lambda path: np.savez(path, w=np.array([{}], object)),
    "a member that is no array": lambda path: write_zip(path, {"README.txt": b"hello"}),
    "values missing": lambda path: write_zip(path, {"w.npy": npy(WEIGHTS["fc.bias"])[:-8]}),
    "values too many": lambda path: write_zip(path, {"w.npy": npy(WEIGHTS["fc.bias"]) + b"?"}),
    "a huge shape": lambda path: write_zip(
        path, {"w.npy": npy(header=header(shape="(1000000, 1000000, 1000000)"))}
    ),
    "a negative shape": lambda path: write_zip(path, {"w.npy": npy(header=header(shape="(-1,)"))}),
    "a header that is nested": lambda path: write_zip(
        path, {"w.npy": npy(header=header(shape="(" + "-" * 9000 + "1,)"))}
    ),
    "a header of brackets": lambda path: write_zip(path, {"w.npy": npy(header="(" * 9000)}),
    "a long header": lambda path: write_zip(
        path, {"w.npy": npy(header=header() + " " * 10**6, version=2, values=bytes(24))}
    ),
    "a header of gigabytes": lambda path: write_zip(
        path, {"w.npy": b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(100)}
    ),
    "no type": lambda path: write_zip(path, {"w.npy": npy(header=header("'<q9'"))}),
    "values of no size": lambda path: write_zip(
        path, {"w.npy": npy(header=header("'<U0'", "(1000000000000,)"))}
    ),
    "a type with a warning": lambda path: write_zip(path, {"w.npy": npy(header=r"'\d' is 1if")}),
    "encrypted": lambda path: (
        write_zip(path, {"w.npy": npy(np.ones(3))}),
        patched(path, b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"),
    ),
    "another compression": lambda path: write_zip(path, {"w.npy": npy(np.ones(3))}, 14),
    "two of one name": lambda path: (
        write_zip(path, {"v.npy": npy(np.ones(3)), "w.npy": npy(np.ones(3))}),
        patched(path, b"v.npy", b"w.npy"),
    ),
    "a checksum": lambda path: (
        write_zip(path, {"w.npy": npy(np.ones(3))}, zipfile.ZIP_STORED),
        patched(path, np.ones(3).tobytes(), np.zeros(3).tobytes()),
    ),
    "more than it can hold": lambda path: (
        write_zip(path, {"w.npy": npy(np.ones(3))}),
        patched(path, struct.pack("<I", 152), struct.pack("<I", 2**29)),
    ),
}


@pytest.mark.parametrize("read", [lambda p: load_npz(p, f"'{p}'"), read_weights], ids=["", "w"])
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_archives_are_the_projects_own_error(tmp_path, kind, read):
    path = tmp_path / "a.npz"
    np.savez(path, **WEIGHTS)
    BROKEN[kind](path)
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(FileError) as caught:
            read(path)
    assert f"'{path}'" in str(caught.value) and len(str(caught.value)) < 500
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("how", ["savez", "compressed", "zip64", "fortran", "version 2"])
def test_all_ordinary_forms_are_read_as_numpy_reads_them(tmp_path, how):
    path, given = tmp_path / "a.npz", {**WEIGHTS, "text": np.array(["a", "bc"]), "n": np.array(3)}
    given |= {"": np.zeros((0, 3)), "big": np.arange(3, dtype=">i4"), "b": np.array([True, False])}
    if how == "fortran":
        given = {name: np.asfortranarray(array) for name, array in given.items()}
    if how == "compressed":
        np.savez_compressed(path, **given)
    elif how == "savez":
        np.savez(path, **given)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in given.items():
                with archive.open(f"{name}.npy", "w", force_zip64=how == "zip64") as file:
                    version = (2, 0) if how == "version 2" else None
                    np.lib.format.write_array(file, array, version)
    read = load_npz(path, "it")
    assert list(read) == list(given)
    for name, array in given.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].flags.writeable


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    """2 GB of zeros in 2 MB, whose sizes are told correctly."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            file.write(npy(header=header("'|u1'", "(2048, 1024, 1024, 1)")))
            for _ in range(32):  # the rest of it is only said to be there
                file.write(bytes(2**20))
    content = path.read_bytes()
    size, said = (
        struct.pack("<I", n + len(npy(header=header("'|u1'", "(2048, 1024, 1024, 1)"))))
        for n in (2**25, 2**31)
    )
    path.write_bytes(content.replace(size, said))
    tracemalloc.start()
    try:
        for read in (lambda: load_labelled_npz(path, (1024, 1024, 1)), lambda: read_weights(path)):
            with pytest.raises(FileError, match=f"{path}"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_would_take_more_than_its_share_of_memory_is_told_in_bytes(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 100, 100, 1), np.uint8))
    np.save(tmp_path / "a.npy", np.zeros(10**6, np.uint8))
    read_npy(tmp_path / "a.npy", "it")
    monkeypatch.setattr("purify.saving.files.MEMORY", 2 * 10**6)
    read_npy(tmp_path / "a.npy", "it")  # the file itself is large
    with pytest.raises(FileError, match="would take 5,000,000 bytes of memory; allowed are 2,000,"):
        load_npz(tmp_path / "a.npz", "it")


def test_members_that_nobody_asks_for_are_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    images = np.zeros((2, 4, 4, 1), np.float32)
    np.savez(path, images=images, labels=np.array([0, 1]), other=np.ones(10**5), more=np.ones(9))
    opened = []
    of_zip = zipfile.ZipFile.open

    def noted(archive, member, *arguments, **options):
        opened.append(member.filename)
        return of_zip(archive, member, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", noted)
    load_labelled_npz(path, (4, 4, 1))
    assert set(opened) == {"images.npy", "labels.npy"}


def test_a_list_of_millions_of_members_is_not_taken_in(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.npz", {f"{i}.npy": b"" for i in range(100)})
    monkeypatch.setattr(arrays, "MAX_DIRECTORY", 1000)
    with pytest.raises(FileError, match="a list of members of 5,"):
        load_npz(path, f"'{path}'")


def test_a_mapped_array_has_exactly_the_size_that_its_header_says(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(path, array)
    np.testing.assert_array_equal(map_npy(path, "it"), array)
    assert not map_npy(path, "it").flags.writeable
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"?", content.replace(b"(3, 4, 5)", b"(9, 4, 5)")):
        path.write_bytes(damaged)
        for read in (map_npy, read_npy):
            with pytest.raises(FileError, match="a.npy' is damaged"):
                read(path, f"'{path}'")
        assert path.read_bytes() == damaged
    np.save(path, array[:0])
    assert map_npy(path, "it").shape == (0, 4, 5)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_are_refused_at_once(tmp_path, make):
    make(tmp_path / "a.npz")
    make(tmp_path / "a.npy")
    make(tmp_path / "a.safetensors")
    for read in (
        lambda: load_npz(tmp_path / "a.npz", "it"),
        lambda: read_npy(tmp_path / "a.npy", "it"),
        lambda: map_npy(tmp_path / "a.npy", "it"),
        lambda: load_labelled_npz(tmp_path / "a.npz", (4, 4, 1)),
        lambda: read_weights(tmp_path / "a.npz"),
        lambda: read_weights(tmp_path / "a.safetensors"),
    ):
        start = time.monotonic()
        with pytest.raises(FileError, match=f"{tmp_path}/a.* is no regular file"):
            read()
        assert time.monotonic() - start < 5


def test_a_missing_array_lists_few_of_those_there_are(tmp_path):
    path = write_zip(tmp_path / "a.npz", {f"\x1b[31m{i}.npy": npy(np.ones(1)) for i in range(500)})
    with open_npz(path, "it") as archive, pytest.raises(FileError) as caught:
        archive.read("images")
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500
