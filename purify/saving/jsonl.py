"""JSON files, written whole or not at all, and JSON-lines files, where a line counts once it is
whole."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from purify.runtime.errors import FileError
from purify.runtime.messages import few, printable, shown
from purify.saving.files import append, open_file, read_bytes, write_bytes, writing

# Bytes of one file, and of one line: what they hold takes up to 25 times as many in memory.
MAX_JSON = 2**25
MAX_LINE = 2**24
MAX_DEPTH = 100  # of values within values: what goes through them calls itself as often
# A file of lines may be as large as an evaluation is. So that it takes memory and time by its size,
# so many lines, and more only where they have so many bytes on average, as those of records have;
# and so many damaged ones.
MANY, SHORTEST = 100_000, 50
MAX_DAMAGED = 100_000
SAID = 3  # damaged lines that are told of

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
    fitting, damaged = [], Damaged(path)
    for number, line in numbered_lines(path, cut=mend):
        try:
            fitting.append(fit(parse(line)))
        except ValueError as error:
            damaged[number] = str(error)
    damaged.tell(aside=mend)
    return fitting


def numbered_lines(path: Path, *, cut: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number, from 1, whole line) of a file, none if it does not exist; cut: also drop a last line
    that is not whole from the file, at the end. FileError for a line of more than MAX_LINE bytes,
    and for more lines than records make, see MANY."""
    if not os.path.lexists(path):
        return
    end = number = 0
    with open_file(path) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise FileError(
                    f"{shown(path)}: line {number + 1} has more than {MAX_LINE:,} bytes"
                )
            if not line.endswith(b"\n"):
                break
            number, end = number + 1, end + len(line)
            if number > MANY and end < number * SHORTEST:
                raise FileError(f"{shown(path)} has {MANY:,} lines and more, too short for records")
            yield number, line
    if cut and line:
        os.truncate(path, end)


class Damaged(dict[int, str]):
    """Number -> what is wrong with that line of a file. FileError for more than `most` of them, by
    default more than an accident makes: each costs time and memory."""

    def __init__(self, path: Path, *, most: float = MAX_DAMAGED):
        super().__init__()
        self._path, self._most = path, most

    def __setitem__(self, number: int, why: str) -> None:
        if len(self) >= self._most:
            raise FileError(
                f"{shown(self._path)} has more than {self._most:,} damaged lines, as line {number} "
                f"({printable(why)}): bring it back, or move it away to make it anew"
            )
        super().__setitem__(number, printable(why))

    def tell(self, *, aside: bool) -> None:
        """Tell of them, if any, as left out; aside: and move them to '<name>.damaged'."""
        if not self:
            return
        lines = [f"line {number} ({why})" for number, why in sorted(self.items())]
        total = f" {len(self):,} lines:" if len(self) > SAID else ""
        print(
            f"warning: {shown(self._path)}: left out:{total} {few(lines, limit=SAID)}",
            file=sys.stderr,
        )
        if aside:
            self._set_aside()

    def _set_aside(self) -> None:
        lost = [line for number, line in numbered_lines(self._path) if number in self]
        append(self._path.with_name(f"{self._path.name}.damaged"), b"".join(lost))
        with writing(self._path) as file:
            for number, line in numbered_lines(self._path):
                if number not in self:
                    file.write(line)


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
