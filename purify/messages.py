"""Names in error messages."""

import itertools
import os
from collections.abc import Collection
from pathlib import Path


def shown(name: str | Path) -> str:
    """A file's name as text that every encoding of Unicode takes: bytes that are no UTF-8, as in
    a Latin-1 name, become \\xe9 and the like. The same in every locale."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def few(names: Collection, separator: str = ", ") -> str:
    """The first of many names, for an error."""
    rest = ["..."] * (len(names) > 3)
    return separator.join([*map(str, itertools.islice(names, 3)), *rest])
