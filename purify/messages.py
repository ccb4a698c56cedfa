"""Names and counts in messages."""

import itertools
import os
from collections.abc import Collection
from pathlib import Path


def counted(number: int, noun: str, plural: str = "") -> str:
    """'1 row', '1,200 rows', '2 classes'; plural: of nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def few(names: Collection, separator: str = ", ", *, limit: int = 3) -> str:
    """The first of many names, at most `limit` of them."""
    rest = ["..."] * (len(names) > limit)
    return separator.join([*map(str, itertools.islice(names, limit)), *rest])


def shown(name: str | Path) -> str:
    """A file's name as text that every encoding of Unicode takes: bytes that are no UTF-8, as in
    a Latin-1 name, become \\xe9 and the like. The same in every locale."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
