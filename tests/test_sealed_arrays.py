"""Arrays of results: nothing but what was written is read."""

import os

import numpy as np
import pytest

from purify.evals.core import sealed_arrays
from purify.evals.core.agreement import check_logits, check_scored
from purify.evals.core.store import Store
from purify.runtime.errors import FileError

SHAPE = (5, 2, 3)
ENTRIES = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def test_entries_come_back_and_the_rest_is_nan(tmp_path):
    path = tmp_path / "a.npy"
    assert np.isnan(sealed_arrays.read(path, SHAPE)).all() and not path.exists()
    seals = sealed_arrays.write(path, SHAPE, [3, 1], ENTRIES)
    array = sealed_arrays.read(path, SHAPE)
    np.testing.assert_array_equal(array[[3, 1]], ENTRIES)
    assert np.isnan(array[[0, 2, 4]]).all()
    assert (
        seals == [sealed_arrays.seal(array[3]), sealed_arrays.seal(array[1])]
        and len(set(seals)) == 2
    )
    np.testing.assert_array_equal(np.load(path), array)  # as NumPy reads it
    sealed_arrays.write(path, SHAPE, [0], ENTRIES[:1])
    np.testing.assert_array_equal(array[0], ENTRIES[0])  # who reads sees what is written then
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert os.listdir(tmp_path) == ["a.npy"]


def cut(path):
    os.truncate(path, path.stat().st_size - 24)


def longer(path):
    os.truncate(path, path.stat().st_size + 4)


def saved(array):
    return lambda path: np.save(path, array)


def header(shape):
    def write(path):
        with open(path, "wb") as file:
            described = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)

    return write


FAULTS = {
    "cut": (cut, r"has 224 bytes, expected 248"),
    "longer": (longer, r"has 252 bytes, expected 248"),
    "no header": (lambda path: path.write_bytes(b"junk"), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "header cut": (lambda path: os.truncate(path, 20), "is damaged"),
    "code as header": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')"),
        "is damaged",
    ),
    "another version": (
        lambda path: path.write_bytes(b"\x93NUMPY\x03\x00" + b"\0" * 300),
        "format",
    ),
    "int32": (saved(np.zeros(SHAPE, np.int32)), r"is int32 \[5, 2, 3\], expected float32"),
    "float64": (saved(np.zeros(SHAPE)), "is float64"),
    "big-endian": (saved(np.zeros(SHAPE, ">f4")), "is >f4|is float32"),
    "Fortran's order": (saved(np.zeros(SHAPE, np.float32, order="F")), r"expected float32"),
    "another shape": (saved(np.zeros((5, 3, 2), np.float32)), r"\[5, 3, 2\], expected .*5, 2, 3"),
    "a billion rows": (header((10**9, 2, 3)), r"\[1000000000, 2, 3\], expected"),
    "rows that are not there": (header(SHAPE), "has 128 bytes, expected 248"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is a link"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "no regular file"),
}


@pytest.mark.parametrize(("spoil", "said"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_such_array_is_named_and_left_as_it_is(tmp_path, spoil, said):
    """A file that is too short would be filled up with zeros, black images, where it is mapped."""
    path = tmp_path / "a.npy"
    sealed_arrays.write(path, SHAPE, [0], ENTRIES[:1])
    spoil(path)
    before = path.lstat()
    for use in (
        lambda: sealed_arrays.read(path, SHAPE),
        lambda: sealed_arrays.write(path, SHAPE, [0], ENTRIES[:1]),
    ):
        with pytest.raises(FileError, match=said) as caught:
            use()
        assert str(path) in str(caught.value)
    assert (path.lstat().st_size, path.lstat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_entry_is_what_its_record_was_sealed_with(tmp_path):
    with Store(tmp_path, "eval_robust", {}) as store:
        seals = store.write("a", SHAPE, [3, 1], ENTRIES)
        records = sealed_arrays.sealed(
            [{"index": 13, "seconds": 1.0}, {"index": 11, "seconds": 1.0}], {"a": seals}
        )
        assert records[0] == {"index": 13, "seconds": 1.0, "arrays": {"a": seals[0]}}
        store.append("samples", records)
    indices = np.arange(10, 15)
    with Store(tmp_path, "eval_robust", {}) as store:
        np.testing.assert_array_equal(store.array("a", SHAPE, "samples", indices)[3], ENTRIES[0])
    with Store(tmp_path, "eval_robust", {}) as store:
        store.write("a", SHAPE, [1], ENTRIES[:1])
        with pytest.raises(FileError, match="a.npy is damaged: its entry of index 11 is not the"):
            store.array("a", SHAPE, "samples", indices)
        store.forget("samples", [11], "for a test")
        assert store.records("samples").keys() == {13}
        store.array("a", SHAPE, "samples", indices)
    with Store(tmp_path, "eval_robust", {}) as store:
        assert store.records("samples").keys() == {13}


def test_a_name_leads_to_no_other_folder(tmp_path):
    with Store(tmp_path, "eval_robust", {}) as store:
        for use in (
            lambda: store.array("../../x", SHAPE),
            lambda: store.write("../../x", SHAPE, [0], ENTRIES[:1]),
        ):
            with pytest.raises(FileError, match="no plain name"):
                use()
        (tmp_path / "elsewhere").mkdir()
        (store.folder / "arrays").rmdir()
        (store.folder / "arrays").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileError, match="arrays' is a link"):
            store.write("a", SHAPE, [0], ENTRIES[:1])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_lock_and_records_that_are_links_are_not_written_through(tmp_path):
    with Store(tmp_path, "eval_robust", {}) as store:
        folder = store.folder
    (tmp_path / "theirs").write_text("theirs")
    for name in ("lock", "images.jsonl", "provenance.jsonl", "settings.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "theirs")
        if name != "settings.json":  # which is put aside, as the folder's name says what it said
            with pytest.raises(FileError, match=f"{folder}/{name}' is a link"):
                with Store(tmp_path, "eval_robust", {}) as store:
                    store.sign()
        else:
            Store(tmp_path, "eval_robust", {})
        (folder / name).unlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


# What a record says twice


LOGITS = np.array([[[2.0, 1, 0], [2, 1, 0]], [[0, 3, 0], [0, 0, 1]]], np.float32)
RECORD = {"label": 0, "predictions": [[0, 0], [1, 2]], "correct": [True, False]}


@pytest.mark.parametrize("average", ["logits", "softmax", "vote"])
def test_a_record_that_agrees_with_itself_is_let_pass(average):
    check_scored(RECORD)
    check_logits(RECORD, LOGITS, average)
    # Where two classes are level, rounding decides, and either is right.
    level = {"label": 0, "predictions": [[0, 1]]}
    logits = np.array([[[1.0, 0, 0], [0, 1, 0]]], np.float32)
    for correct in (True, False):
        check_logits(level | {"correct": [correct]}, logits, average)


@pytest.mark.parametrize(
    "change",
    [
        {"correct": [False, False]},
        {"correct": [True]},
        {"label": 1},
        {"predictions": [[1, 1], [1, 2]]},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_is_none(change):
    with pytest.raises(ValueError, match="a draw|draws"):
        check_scored(RECORD | change)


@pytest.mark.parametrize("average", ["logits", "softmax", "vote"])
def test_a_record_that_contradicts_its_logits_is_none(average):
    with pytest.raises(ValueError, match="the predictions are not those of the logits"):
        check_logits(RECORD | {"predictions": [[0, 1], [1, 2]]}, LOGITS, average)
    if average != "vote":
        with pytest.raises(ValueError, match="'correct' is not what the logits say"):
            check_logits(RECORD | {"label": 1}, LOGITS, average)
