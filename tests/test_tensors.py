"""Safetensors: what a header says is checked against the file before anything is made of it."""

import json
import struct
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from purify.models.importing import import_weights, read_weights
from purify.runtime.errors import FileError
from purify.saving import weight_files
from purify.saving.tensors import MAX_HEADER, read_metadata, read_tensors


def write(path: Path, header, values: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + values)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_arrays_and_texts_are_those_that_the_library_wrote(tmp_path):
    dtypes = "float64 float32 float16 bfloat16 int8 int64 uint8 uint16 bool".split()
    given = {f"a.{name}": np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in dtypes}
    given |= {"scalar": np.float32(2.5), "none": np.zeros((0, 3), np.float32)}
    given = {name: np.array(array) for name, array in given.items()}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(given, {"settings": "x"}))
    read = read_tensors(path, "it")
    assert read_metadata(path, "it") == {"settings": "x"} and set(read) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].shape == array.shape


HUGE = 2**62
BROKEN = {
    "empty": (b"", {}),
    "a length beyond the file": ({}, dict(length=10**9)),
    "a length beyond all files": ({}, dict(length=2**64 - 1)),
    "no JSON": (b"{]", {}),
    "no UTF-8": (b'{"\xff": 1}', {}),
    "nesting": (b"[" * 200_000, {}),
    "a list": ([], {}),
    "numbers for tensors": ({"a": 1}, {}),
    "other fields": ({"a": {"dtype": "F32"}}, {}),
    "a negative shape": ({"a": entry(shape=(-1, -2))}, dict(values=bytes(8))),
    "a huge shape": ({"a": entry(shape=(HUGE, HUGE))}, dict(values=bytes(8))),
    "a shape of texts": ({"a": entry(shape=("2",))}, dict(values=bytes(8))),
    "offsets beyond the file": ({"a": entry(offsets=(0, 8))}, dict(values=bytes(4))),
    "offsets that cross": ({"a": entry(offsets=(8, 0))}, dict(values=bytes(8))),
    "offsets of another size": ({"a": entry(offsets=(0, 4))}, dict(values=bytes(8))),
    "shared bytes": ({"a": entry(), "b": entry()}, dict(values=bytes(8))),
    "bytes of none": ({"a": entry()}, dict(values=bytes(12))),
    "many axes": ({"a": entry(shape=[2] + [1] * 100)}, dict(values=bytes(8))),
    "metadata that are no texts": ({"__metadata__": {"a": 1}}, {}),
    "a long name": ({"a" * 10**6: entry()}, dict(values=bytes(8))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_the_projects_own_error(tmp_path, kind):
    head, options = BROKEN[kind]
    path = write(tmp_path / "a.safetensors", head, **options)
    start = time.monotonic()
    for read in (read_weights, weight_files.is_own, weight_files.load):
        if read is weight_files.is_own and kind in READ_LATER:
            continue
        with pytest.raises(FileError) as caught:
            read(path)
        assert f"'{path}'" in str(caught.value) and len(str(caught.value)) < 1000
    assert time.monotonic() - start < 10


# What is said of the arrays is checked when they are read.
READ_LATER = [kind for kind in BROKEN if "offsets" in kind or "bytes" in kind]
READ_LATER += ["a huge shape", "many axes"]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "C64", "\x1b[31m"])
def test_types_that_are_not_taken_are_told_by_name(tmp_path, dtype):
    path = write(tmp_path / "a.safetensors", {"conv1.weight": entry(dtype)}, bytes(8))
    with pytest.raises(FileError, match="conv1.weight is .*: save them as float32") as caught:
        read_weights(path)
    assert "\x1b" not in str(caught.value) and dtype[-3:] in str(caught.value)


def test_names_by_the_thousand_make_no_long_error(tmp_path):
    names = [f"\x1b[31m{'x' * 500}{i}" for i in range(5000)]
    tensors = {name: entry(offsets=(8 * i, 8 * i + 8)) for i, name in enumerate(names)}
    path = write(tmp_path / "a.safetensors", tensors, bytes(8 * len(names)))
    with pytest.raises(ValueError) as caught:
        import_weights("resnet20", read_weights(path))
    assert len(str(caught.value)) < 10_000 and "\x1b" not in str(caught.value)


def test_a_header_is_bounded_before_it_is_read(tmp_path):
    with open(write(tmp_path / "a.safetensors", {}, length=MAX_HEADER + 1), "ab") as file:
        file.truncate(2 * MAX_HEADER)
    with pytest.raises(FileError, match="16,777,217 of them in its header"):
        read_weights(tmp_path / "a.safetensors")


def test_a_name_of_many_prefixes_is_no_recursion(tmp_path):
    name = "module." * 140 + "conv1.weight"
    path = write(tmp_path / "a.safetensors", {name: entry()}, bytes(8))
    assert set(read_weights(path)) == {"conv1.weight"}
