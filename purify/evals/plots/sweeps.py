"""Accuracy over a number that was varied, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from purify.evals.plots.accuracy import MARKERS
from purify.evals.plots.certified import STYLES
from purify.evals.plots.style import COLORS, DPI, GREY, SMALL, WIDTH, legend, save, tidy


def accuracy_curves(
    path: str | Path, curves: Mapping[str, Sequence[Mapping]], field: str, label: str
) -> None:
    """Writes a line with 95 % whiskers for each curve: accuracy over a field of its rows.

    Args:
        path: .png, or .svg.
        curves: name -> rows with the field, a number, and `accuracy`, `low` and `high` in [0, 1].
        label: of the axis.

    Raises:
        ValueError: no curve, or one without rows.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves: must be at least one, of at least one row each")
    figsize = (0.7 * WIDTH, 3.2)
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    axes = fig.subplots()
    for i, (name, rows) in enumerate(curves.items()):
        cycle, color = divmod(i, len(COLORS))
        lows, values, highs = (
            [round(100 * row[end], 7) for row in rows] for end in ("low", "accuracy", "high")
        )
        spread = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        style = {
            "color": COLORS[color],
            "ls": STYLES[cycle % len(STYLES)],
            "marker": MARKERS[i % 3],
        }
        drawn = axes.errorbar(
            [row[field] for row in rows],
            values,
            spread,
            label=name,
            lw=1.4,
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            **style,
        )
        for artist in drawn.get_children():
            artist.set_clip_on(False)  # a marker at 0 or 100 is whole
    tidy(axes)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.set_xlabel(label, size=SMALL, color=GREY)
    axes.set_ylabel("accuracy, %", size=SMALL, color=GREY)
    legend(fig, loc="outside upper left", ncols=1 + (len(curves) > 3))
    save(fig, path)
