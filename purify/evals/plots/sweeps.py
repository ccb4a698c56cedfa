"""Accuracy over a number that was varied, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from purify.evals.plots.style import (
    DPI,
    GREY,
    SMALL,
    WIDTH,
    dashed,
    legend,
    legible,
    marked,
    save,
    text_width,
    tidy,
)

LETTERS = 90  # of a line of the legend


@legible
def accuracy_curves(
    path: str | Path, curves: Mapping[str, Sequence[Mapping]], field: str, axis: str
) -> None:
    """Writes a line with 95 % whiskers for each curve, one colour, marker and kind of dashes:
    accuracy over a field of its rows.

    Args:
        path: .png, or .svg.
        curves: name -> rows with the field, a number, and `accuracy`, `low` and `high` in [0, 1].
        axis: its label.

    Raises:
        ValueError: no curve, or one without rows.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves: must be at least one, of at least one row each")
    labels = [fill(name, LETTERS) for name in curves]
    room = 0.7 * WIDTH * DPI / max(text_width(label, SMALL) for label in labels)
    ncols = 2 if len(curves) > 3 and room > 2.5 else 1
    lines = sum(1 + label.count("\n") for label in labels) / ncols
    figsize = (0.7 * WIDTH, max(3.2, 2.4 + 0.17 * lines))
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    axes = fig.subplots()
    for i, (label, rows) in enumerate(zip(labels, curves.values(), strict=True)):
        lows, values, highs = (
            [round(100 * row[end], 7) for row in rows] for end in ("low", "accuracy", "high")
        )
        spread = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        drawn = axes.errorbar(
            [row[field] for row in rows],
            values,
            spread,
            label=label,
            lw=1.4,
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            **marked(i) | dashed(i),
        )
        for artist in drawn.get_children():
            artist.set_clip_on(False)  # a marker at 0 or 100 is whole
    tidy(axes)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.set_xlabel(axis, size=SMALL, color=GREY)
    axes.set_ylabel("accuracy, %", size=SMALL, color=GREY)
    legend(fig, loc="outside upper left", ncols=ncols, lines=True)
    save(fig, path)
