"""What a page is made of: plain text and numbers, which the template alone turns into HTML."""

import base64
import dataclasses
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from purify.evals.core.tables import Table
from purify.evals.plots.style import DPI
from purify.runtime.errors import FileError
from purify.runtime.messages import shown
from purify.saving.files import read_bytes

MAX_FIGURE, MAX_PIXELS = 2**24, 2**26  # bytes of a file, pixels of a PNG
INCH = 118  # pixels of the page: the small type of figures is then 12 of them high
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


class Block:
    """A part of a section; the template has a macro for each kind."""

    @property
    def kind(self) -> str:
        return type(self).__name__


@dataclasses.dataclass(frozen=True)
class Prose(Block):
    """lines: a paragraph each."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Notes(Block):
    """lines: of a list, in small type."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Heading(Block):
    text: str


@dataclasses.dataclass(frozen=True)
class Figure(Block):
    """name: of its file. uri: of the image's own bytes. width: on the page, in its pixels.
    alt: what it shows, for who cannot see it."""

    name: str
    uri: str
    width: int
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Details(Block):
    """Folded away until asked for."""

    summary: str
    blocks: Sequence[Block | Table]


@dataclasses.dataclass(frozen=True)
class Text(Block):
    """Preformatted, as JSON."""

    text: str


@dataclasses.dataclass(frozen=True)
class Pairs(Block):
    """name -> what it is; values are names of things, not sentences."""

    pairs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Section(Block):
    """says: the one line that stands for it in the summary, '' for none."""

    heading: str
    says: str
    blocks: Sequence[Block | Table]


def read_figure(path: Path, *, alt: str, caption: str) -> Figure:
    """A figure of plots.style, .svg or .png: a page that has it needs no other file.

    FileError where it is a link, no PNG, or larger than figures are; of an SVG, which is drawn for
    the page, the size alone is read.
    """
    content = read_bytes(path, limit=MAX_FIGURE)
    if path.suffix == ".svg":
        inches = float(re.search(rb'<svg[^>]* width="([\d.]+)pt"', content)[1]) / 72
    else:
        inches = _png_width(path, content) / DPI
    uri, width = data_uri(content, path.suffix), round(INCH * inches)
    return Figure(path.stem, uri, width, alt, caption)


def _png_width(path: Path, content: bytes) -> int:
    """In pixels, by the head of the file; FileError where it is no PNG of a figure's size."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 33:
        raise FileError(f"'{shown(path)}' is no PNG: move it out of the folder of figures")
    width, height = struct.unpack(">II", content[16:24])
    if not 0 < width * height <= MAX_PIXELS:
        raise FileError(
            f"'{shown(path)}' is a PNG of {width:,} x {height:,} pixels, which no figure is: move "
            "it out of the folder of figures"
        )
    return width


def data_uri(content: bytes, suffix: str) -> str:
    return f"data:{TYPES[suffix]};base64,{base64.b64encode(content).decode()}"
