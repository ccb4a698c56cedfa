"""What all figures share: sizes, colours, axes without clutter.

Colours are those of Okabe and Ito, which every common kind of colour vision tells apart, but for
their black, on which a whisker could not be seen, and their yellow, which could not on white: grey
and a darker yellow. Figures are made without pyplot, so no global state is set and nothing stays
open.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from purify.runtime.messages import printable_lines
from purify.saving.files import writing

P = ParamSpec("P")

DPI = 200
WIDTH = 8.0  # inches; 1,600 pixels, about twice the column of a README
ACROSS = 3  # panels side by side, at most
BODY, SMALL, TINY = 9.0, 7.5, 6.0  # points
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B3A000", "#999999")
# As many as have no divisor in common with the colours: pairs of both repeat after 56 series.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple = (
    *("-", "--", ":", "-."),
    *((0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2, 2, 2))),  # lengths of lines and gaps
)
WRONG, INK, GREY, RULE = "#D55E00", "#222222", "#666666", "#DDDDDD"


def legible(draw: Callable[P, None]) -> Callable[P, None]:
    """A function of a path and of what a figure shows, whose texts are names of others: they are
    no formulas, and hold nothing that an SVG cannot."""

    @functools.wraps(draw)
    def drawing(*args: P.args, **options: P.kwargs) -> None:
        path, *shown = args
        with rc_context({"text.parse_math": False}):
            draw(path, *map(_texts, shown), **{n: _texts(v) for n, v in options.items()})  # type: ignore[call-arg,arg-type]

    return drawing


def _texts(value: Any) -> Any:
    """The same, with texts that can be drawn; legends leave out what begins with an underscore."""
    if isinstance(value, str):
        return printable_lines(f" {value}" if value.startswith("_") else value)
    if isinstance(value, Mapping):
        return {_texts(name): _texts(inner) for name, inner in value.items()}
    return type(value)(map(_texts, value)) if type(value) in (list, tuple) else value


def marked(i: int) -> dict:
    """Colour and marker of series i: one can tell it without the colour."""
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


def dashed(i: int) -> dict:
    """Colour and dashes of line i, likewise; legend(lines=True) has room for them."""
    return {"color": COLORS[i % len(COLORS)], "ls": DASHES[i % len(DASHES)]}


def text_width(text: str, size: float, weight: str = "normal") -> int:
    """Width in pixels, from the outlines of the letters: no figure is needed to know it."""
    font = FontProperties(size=size, weight=weight)
    measure = text_to_path.get_text_width_height_descent
    points = max((measure(line, font, False)[0] for line in text.splitlines()), default=0)
    return int(np.ceil(points * DPI / 72))


def interval(row: Mapping, where: str) -> tuple[float, float, float]:
    """(low, accuracy, high) of a result, rounded so that the last bit does not put them out of
    order; ValueError, which begins with `where`, unless they rise within [0, 1]."""
    low, value, high = (round(float(row[name]), 9) for name in ("low", "accuracy", "high"))
    if not 0 <= low <= value <= high <= 1:
        raise ValueError(
            f"{where}: low, accuracy, high are {low, value, high}, must rise within [0, 1]"
        )
    return low, value, high


def tidy(axes: Axes) -> None:
    """Horizontal rules behind the data, no frame but the base line, small grey numbers."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=RULE, labelcolor=GREY)


def save(fig: Figure, path: str | Path) -> None:
    """Write it as PNG or SVG, by the suffix, whole or not at all; the same figure gives the same
    bytes."""
    unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    kind = Path(path).suffix[1:]
    with rc_context({"svg.hashsalt": "purify"}), writing(Path(path)) as file:
        fig.savefig(file, format=kind, metadata=unsaid if kind == "svg" else None)


def legend(parent, *, lines: bool = False, **options) -> None:
    style = dict(frameon=False, fontsize=SMALL, labelcolor=INK, handlelength=3.6 if lines else 1.2)
    parent.legend(**style, **options)
