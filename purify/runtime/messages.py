"""Names and counts in messages."""

import itertools
import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

LONGEST = 300  # letters of a name in a message

# Characters that turn the direction of what follows.
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def counted(number: int, noun: str, plural: str = "") -> str:
    """'1 row', '1,200 rows', '2 classes'; plural: of nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def few(names: Collection, separator: str = ", ", *, limit: int = 3) -> str:
    """The first of many names, at most `limit` of them, each `printable`."""
    rest = ["..."] * (len(names) > limit)
    told = (printable(name) for name in itertools.islice(names, limit))
    return separator.join([*told, *rest])


def printable(text: object, limit: int = LONGEST) -> str:
    """A text from outside as a line that a terminal shows and does not obey: control characters,
    ends of lines, turned directions and halves of characters (lone surrogates) become \\x1b and the
    like. A text of more than `limit` letters loses its middle."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit - limit // 3]}...{text[len(text) - limit // 3 :]}"
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """The same of a text of several lines, which stay lines; of any length."""
    if text.isprintable():
        return text
    return "\n".join(printable(line, limit=len(line)) for line in text.split("\n"))


def as_text(name: str | Path) -> str:
    """A file's name as text that every encoding of Unicode takes: bytes that are no UTF-8, as in
    a Latin-1 name, become \\xe9 and the like. The same in every locale."""
    try:
        content = os.fsencode(name)
    except UnicodeEncodeError:  # no file has such a name
        content = str(name).encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def shown(name: str | Path) -> str:
    """A file's name in a message: `as_text`, and `printable` at full length."""
    text = as_text(name)
    return printable(text, limit=len(text))


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or _TURNING.match(letter):
        return letter.encode("unicode_escape").decode("ascii")
    return letter
