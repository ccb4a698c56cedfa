"""Accuracy by corruption and defence, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from purify.evals.plots.style import (
    BODY,
    DPI,
    GREY,
    INK,
    RULE,
    SMALL,
    WIDTH,
    interval,
    legend,
    legible,
    marked,
    save,
)
from purify.runtime.messages import counted

PITCH = 0.075  # inches from one defence to the next within a corruption


@legible
def corruption_accuracies(path: str | Path, entries: Sequence[Mapping]) -> None:
    """Writes a dot with a 95 % whisker for each corruption, one line of the figure each, and
    defence, one colour and marker each.

    Args:
        path: .png, or .svg.
        entries: results with `defense` (a mapping with `name`), `corruption`, `num_images`, and
            `accuracy`, `low` and `high` in [0, 1]. Defences and corruptions keep their order.

    Raises:
        ValueError: no entries, or not 0 <= low <= accuracy <= high <= 1.
    """
    if not entries:
        raise ValueError("entries: is empty, must hold at least one result")
    defenses = list(dict.fromkeys(entry["defense"]["name"] for entry in entries))
    corruptions = list(dict.fromkeys(entry["corruption"] for entry in entries))
    pitch = 1 / (len(defenses) + 2)  # a corruption has height 1 on the axis
    height = PITCH / pitch * len(corruptions)
    figsize = (WIDTH, height + 0.75 + 0.2 * (1 + len(defenses) // 8))
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    axes = fig.subplots()
    styles = {name: marked(i) for i, name in enumerate(defenses)}
    for entry in entries:
        name, corruption = entry["defense"]["name"], entry["corruption"]
        low, value, high = interval(entry, f"{name} on {corruption}")
        aside = (defenses.index(name) - (len(defenses) - 1) / 2) * pitch
        spread = [[100 * (value - low)], [100 * (high - value)]]
        drawn = axes.errorbar(
            100 * value,
            corruptions.index(corruption) + aside,
            xerr=spread,
            markersize=3.5,
            elinewidth=0.9,
            ls="none",
            **styles[name],
        )
        for artist in drawn.get_children():
            artist.set_clip_on(False)  # a marker at 100 is whole
    axes.set_xlim(0, 100)
    axes.set_ylim(len(corruptions) - 0.5, -0.5)
    axes.set_yticks(range(len(corruptions)), corruptions, size=BODY, color=INK)
    for border in range(1, len(corruptions)):
        axes.axhline(border - 0.5, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(axis="x", labelsize=SMALL, color=RULE, labelcolor=GREY)
    axes.tick_params(axis="y", length=0)
    counts = sorted({entry["num_images"] for entry in entries})
    images = counted(counts[-1], "image")
    images = images if len(counts) == 1 else f"{counts[0]:,} to {images}"
    note = f"accuracy (%), mean over severities; whiskers: 95 % interval; {images}"
    axes.set_xlabel(note, size=SMALL, color=GREY)
    handles = [Line2D([], [], label=n, markersize=4, ls="none", **styles[n]) for n in defenses]
    legend(fig, loc="outside upper left", handles=handles, ncols=min(len(defenses), 7))
    save(fig, path)
