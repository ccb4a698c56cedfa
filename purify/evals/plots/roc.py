"""Detectors: their receiver operating characteristics, and what they see, as one figure each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from purify.evals.plots.style import (
    ACROSS,
    BODY,
    COLORS,
    DPI,
    GREY,
    INK,
    RULE,
    SMALL,
    WIDTH,
    WRONG,
    dashed,
    legend,
    legible,
    save,
    tidy,
)


@legible
def roc_curves(path: str | Path, panels: Mapping[str, Sequence[Mapping]], *, rate: float) -> None:
    """Writes a panel for each kind of attacker, with a curve for each statistic, one colour and one
    kind of dashes, and a rule at the false-positive rate of the thresholds.

    Args:
        path: .png, or .svg.
        panels: title -> curves with `name`, `false` and `true` (rates in [0, 1], rising), and
            `value`, `low` and `high` of the area.
        rate: in [0, 1].

    Raises:
        ValueError: no panels, or one without curves.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels: must be at least one, of at least one curve each")
    names = list(dict.fromkeys(curve["name"] for curves in panels.values() for curve in curves))
    figsize = (WIDTH * max(0.5, len(panels) / 2), 4.2)
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    for axes, (title, curves) in zip(
        np.ravel(fig.subplots(1, len(panels), squeeze=False)), panels.items(), strict=True
    ):
        axes.plot([0, 100], [0, 100], color=RULE, lw=1)
        axes.axvline(100 * rate, color=RULE, lw=1, linestyle=":")
        for curve in curves:
            area = "AUROC {value:.2f} [{low:.2f}, {high:.2f}], n {n}".format(**curve)
            axes.plot(
                100 * np.asarray(curve["false"]),
                100 * np.asarray(curve["true"]),
                **dashed(names.index(curve["name"])),
                lw=1.5,
                label=f"{curve['name'].replace('_', ' ')}\n{area}",
            )
        tidy(axes)
        axes.set(xlim=(0, 100), ylim=(0, 101), aspect="equal")
        axes.set_title(title, size=BODY, color=INK, loc="left")
        axes.set_xlabel("clean images flagged, %", size=SMALL, color=GREY)
        axes.set_ylabel("attacked images that fool flagged, %", size=SMALL, color=GREY)
        legend(axes, loc="lower right", lines=True)
    save(fig, path)


@legible
def statistic_ranges(
    path: str | Path,
    values: Mapping[str, Mapping[str, np.ndarray]],
    thresholds: Mapping[str, Mapping],
) -> None:
    """Writes a panel for each statistic: of each kind of images the median, the middle half, and
    the middle 90 %, with a rule at the threshold, and what that means below.

    Args:
        path: .png, or .svg.
        values: statistic -> images -> [n].
        thresholds: statistic -> a mapping with `threshold`.

    Raises:
        ValueError: no statistics, or one without images.
    """
    if not values or not all(values.values()):
        raise ValueError("values: must be at least one statistic, of at least one kind of images")
    across = len(values) if len(values) <= ACROSS else 2
    down = -(-len(values) // across)
    figsize = (WIDTH, (0.7 + 0.2 * max(map(len, values.values()))) * down + 0.2)
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    panels = fig.subplots(down, across, squeeze=False).ravel()
    for axes, (statistic, by_images) in zip(panels, values.items(), strict=False):
        for place, found in enumerate(by_images.values()):
            ends = np.quantile(found, [0.05, 0.25, 0.5, 0.75, 0.95])
            axes.plot(ends[[0, 4]], [place, place], color=COLORS[0], lw=1)
            axes.plot(ends[[1, 3]], [place, place], color=COLORS[0], lw=4, solid_capstyle="butt")
            axes.plot(ends[2], place, "o", color="white", mec=COLORS[0], mew=0.8, ms=3)
        axes.axvline(thresholds[statistic]["threshold"], color=WRONG, lw=1)
        tidy(axes)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(by_images)), by_images)
        axes.set_ylim(len(by_images) - 0.5, -0.5)
        axes.set_title(statistic.replace("_", " "), size=BODY, color=INK, loc="left")
    for axes in panels[len(values) :]:
        axes.remove()
    note = "dot: median; bars: the middle half and 90 % of the images; line: the threshold"
    fig.supxlabel(note, size=SMALL, color=GREY)
    save(fig, path)
