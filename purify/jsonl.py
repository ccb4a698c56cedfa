"""JSON-lines files that survive a crash: a line counts once it is whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def read_lines(path: Path, *, repair: bool = False) -> list[dict]:
    """All records of the file, none if it does not exist.

    A last line without its newline is not whole: another process is writing it, or was cut off. It
    does not count. repair: also drop it from the file, for the process that is going to append.
    Any other line that is not JSON is damage, and a ValueError.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if repair and len(whole) < len(text):
        os.truncate(path, len(whole))
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"{path}: line {number} is damaged; move the file away to start afresh"
            ) from None
    return records


def append_lines(path: Path, records: Iterable[dict]) -> None:
    """Append the records in one write and force them to disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(_lines(records))
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Mapping) -> None:
    """Write the file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write a file of these records, whole or not at all."""
    write_text(path, _lines(records))


def _lines(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, in UTF-8 whatever the locale; what it cannot encode, as
    in file names that are no text, is escaped."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
