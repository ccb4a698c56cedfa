"""JSON-lines files: whatever a crash leaves behind, whole lines count and nothing else does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purify.runtime.errors import FileError
from purify.saving import files, jsonl
from purify.saving.jsonl import append_lines, read_lines, write_json, write_lines

RECORDS = [{"step": 1, "loss": 0.5}, {"step": 2, "text": 'new\nline, "quote", é'}, {"step": 3}]


def test_records_come_back_in_the_order_they_were_appended(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    append_lines(path, RECORDS[:1])
    append_lines(path, [])
    append_lines(path, RECORDS[1:])
    assert read_lines(path) == RECORDS
    assert len(path.read_bytes().splitlines()) == 3


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_lines(path, RECORDS)
    text = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        whole = sum(end <= cut for end in ends)
        assert read_lines(path) == RECORDS[:whole]
        assert path.read_bytes() == text[:cut]  # someone else may be writing it
        assert read_lines(path, mend=True) == RECORDS[:whole]
        # Cut off, so that what is appended now does not continue the broken line.
        assert path.read_bytes() == text[: ([0] + ends)[whole]]
        append_lines(path, RECORDS[whole:])
        assert path.read_bytes() == text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"step": 2', "no JSON: Expecting"),
        (b"\xff", "no UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "no JSON: Exceeds the limit"),
        (b'{"step": "2"}', "no step"),
    ],
    ids=["cut", "bytes", "deep", "long number", "unfit"],
)
def test_a_damaged_line_is_named_and_the_others_count(tmp_path, capsys, line, why):
    """One that is going to append puts it aside, whole."""

    def fit(record):
        if not isinstance(record["step"], int):
            raise ValueError("no step")
        return record

    path = tmp_path / "lines.jsonl"
    damaged = b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"st'
    path.write_bytes(damaged)
    assert read_lines(path, fit) == [{"step": 1}, {"step": 3}]
    assert f"warning: {path}: left out: line 2 ({why}" in capsys.readouterr().err
    assert path.read_bytes() == damaged
    assert read_lines(path, fit, mend=True) == [{"step": 1}, {"step": 3}]
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    assert (tmp_path / "lines.jsonl.damaged").read_bytes() == line + b"\n"
    capsys.readouterr()
    assert len(read_lines(path, fit, mend=True)) == 2
    assert capsys.readouterr().err == ""


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    with open(path, "ab") as file:
        file.truncate(2**36)  # 64 GiB, none of them on disk
    with pytest.raises(FileError, match=f"{path}: line 2 has more than 16,777,216 bytes"):
        read_lines(path)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b'{"step": 1}\n'], ids=["empty", "unfit", "short"]
)
def test_a_file_of_very_many_lines_is_refused_before_it_fills_the_memory(tmp_path, line):
    """Whether they are damaged or whole, but shorter than any record."""

    def fit(record):
        if "step" not in record:
            raise ValueError("no step")
        return record

    path = tmp_path / "lines.jsonl"
    path.write_bytes(line * 2_000_000)
    start = time.monotonic()
    with pytest.raises(FileError, match=f"{path} has (more than )?100,000 "):
        read_lines(path, fit)
    assert time.monotonic() - start < 20


def test_many_lines_as_long_as_records_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MANY", 100)
    records = [{"step": step, "text": "x" * 50} for step in range(1000)]
    write_lines(tmp_path / "lines.jsonl", records)
    assert read_lines(tmp_path / "lines.jsonl") == records


def test_of_many_damaged_lines_a_few_are_told_of_and_their_number(tmp_path, capsys):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"[\n" * 1234 + b'{"step": 3}\n')
    assert read_lines(path, mend=True) == [{"step": 1}, {"step": 3}]
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {path}: left out: 1,234 lines: line 2 (no JSON")
    assert said.count("line ") < 10 and said.endswith("...\n")
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    assert (tmp_path / "lines.jsonl.damaged").read_bytes() == b"[\n" * 1234


def test_an_append_is_on_disk_when_it_returns(tmp_path, monkeypatch):
    path, forced = tmp_path / "lines.jsonl", []
    fsync = os.fsync

    def note(descriptor):
        forced.append(path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", note)
    append_lines(path, RECORDS)
    # The content, and then the name in the folder.
    assert forced == [path.read_bytes()] * 2 and len(forced[0].splitlines()) == 3


@pytest.mark.parametrize("write", [write_json, write_lines])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    old, new = ({"a": 1}, {"b": [1, 2]}) if write is write_json else (RECORDS[:1], RECORDS)
    write(path, old)
    before = path.read_bytes()

    def power_cut(*args):
        raise OSError("power cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(files.os, "replace", power_cut)
        write(path, new)
    assert path.read_bytes() == before
    write(path, new)
    text = path.read_text()
    assert [json.loads(text)] == [new] if write is write_json else read_lines(path) == new
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_texts_are_utf_8_in_every_locale_and_names_that_are_no_text_are_escaped(tmp_path):
    code = r"""
import pathlib, sys
from purify.saving.jsonl import append_lines, write_text
folder = pathlib.Path(sys.argv[1])
write_text(folder / "text", "caf\xe9 \u2264 \udce9")
append_lines(folder / "lines", [{"a": "\u2264"}, {"a": "\udce9"}])
"""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **ascii_only},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "text").read_bytes() == b"caf\xc3\xa9 \xe2\x89\xa4 \\udce9"
    assert read_lines(tmp_path / "lines") == [{"a": "≤"}, {"a": "\udce9"}]
