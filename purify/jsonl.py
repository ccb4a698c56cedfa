"""JSON files, written whole or not at all, and JSON-lines files, where a line counts once it is
whole."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from purify.files import FileError, append, open_file, read_bytes, write_bytes
from purify.messages import few, shown

# Bytes of one file, and of one line: what they hold takes up to 25 times as many in memory.
MAX_JSON = 2**25
MAX_LINE = 2**24
MAX_DEPTH = 100  # of values within values: what goes through them calls itself as often

Fit = Callable[[Any], Any]  # what a value stands for; ValueError that says why it is none


def parse(text: bytes | str) -> Any:
    """The value of a JSON text; ValueError, which says why, for any that is none."""
    try:
        value = json.loads(text)
        if _depth(value) > MAX_DEPTH:
            raise RecursionError
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("no UTF-8") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None


def _depth(value: Any) -> int:
    """How many values are within each other, counted up to just above MAX_DEPTH."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        inner = [e for e in level if isinstance(e, dict | list)]
        if not inner:
            break
        level = [e for each in inner for e in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth


def read_json(path: Path, *, follow: bool = False) -> Any:
    """The value of a JSON file; FileError that names it where it holds none."""
    content = read_bytes(path, limit=MAX_JSON, follow=follow)
    try:
        return parse(content)
    except ValueError as error:
        raise FileError(f"{shown(path)} is damaged ({error})") from None


def read_lines(path: Path, fit: Fit = lambda value: value, *, mend: bool = False) -> list:
    """All records of a file, as `fit` gives them, none if it does not exist; lines that are
    damaged, or that fit nothing, are told of and left out.

    A last line without its newline is not whole: another process is writing it, or was cut off. It
    does not count. mend: also take both kinds out of the file, for the process that is going to
    append; damaged lines go to '<name>.damaged' beside it.
    """
    lines = numbered_lines(path, cut=mend)
    fitting, damaged = [], {}
    for number, line in lines.items():
        try:
            fitting.append(fit(parse(line)))
        except ValueError as error:
            damaged[number] = str(error)
    if damaged:
        tell_damaged(path, damaged)
        if mend:
            set_aside(path, damaged)
    return fitting


def numbered_lines(path: Path, *, cut: bool = False) -> dict[int, bytes]:
    """number, from 1 -> whole line of a file, none if it does not exist; cut: also drop a last line
    that is not whole from the file. FileError for a line of more than MAX_LINE bytes."""
    if not os.path.lexists(path):
        return {}
    lines: dict[int, bytes] = {}
    with open_file(path) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                number = len(lines) + 1
                raise FileError(f"{shown(path)}: line {number} has more than {MAX_LINE:,} bytes")
            if not line.endswith(b"\n"):
                break
            lines[len(lines) + 1] = line
    if cut and line:
        os.truncate(path, sum(map(len, lines.values())))
    return lines


def tell_damaged(path: Path, damaged: Mapping[int, str]) -> None:
    said = (f"line {number} ({why})" for number, why in damaged.items())
    print(f"warning: {shown(path)}: left out: {few([*said])}", file=sys.stderr)


def set_aside(path: Path, numbers: Iterable[int]) -> None:
    """Move these lines of a file to '<name>.damaged' beside it."""
    lines, numbers = numbered_lines(path), set(numbers)
    append(path.with_name(f"{path.name}.damaged"), b"".join(lines[n] for n in sorted(numbers)))
    write_bytes(path, b"".join(line for n, line in lines.items() if n not in numbers))


def append_lines(path: Path, records: Iterable[Mapping]) -> None:
    """Append the records in one write and force them to disk."""
    append(path, _lines(records))


def write_json(path: Path, value: Mapping) -> None:
    """Write the file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[Mapping]) -> None:
    """Write a file of these records, whole or not at all."""
    write_bytes(path, _lines(records))


def _lines(records: Iterable[Mapping]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, in UTF-8 whatever the locale; what it cannot encode, as
    in file names that are no text, is escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))
