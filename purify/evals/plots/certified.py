"""Certified accuracy over the radius, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purify.evals.core.stats import proportion
from purify.evals.plots.style import (
    DASHES,
    DPI,
    GREY,
    SMALL,
    WIDTH,
    legend,
    legible,
    marked,
    save,
    tidy,
)
from purify.runtime.messages import counted


@legible
def certified_curves(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes for each row the share of images that are right with a larger radius, with a band of
    exact 95 % intervals; a panel for each number of images and samples, since curves of different
    ones are not to be compared; one colour and marker for each defence, one dash for each sigma.
    Each ends at the largest radius that as many samples can certify, which a cross marks.

    Args:
        path: .png, or .svg.
        rows: with `defense` (a mapping with `name` and `sigma`), `num_images`, `certified_radii`,
            one per image, 0 where it is wrong or not certified, `num_samples`, and
            `largest_radius`.

    Raises:
        ValueError: no rows, or one without images.
    """
    if not rows or not all(row["certified_radii"] for row in rows):
        raise ValueError("rows: must be at least one, of at least one image each")
    names, sigmas = (
        list(dict.fromkeys(row["defense"][field] for row in rows)) for field in ("name", "sigma")
    )
    budgets = list(dict.fromkeys((row["num_images"], row["num_samples"]) for row in rows))
    width = min(0.7 + 0.3 * (len(budgets) - 1), 1.0) * WIDTH
    fig = Figure(
        figsize=(width, 3 + 0.2 * len(rows)), dpi=DPI, layout="constrained", facecolor="white"
    )
    panels = fig.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        own = [row for row in rows if (row["num_images"], row["num_samples"]) == budget]
        for row in own:
            name, sigma = row["defense"]["name"], row["defense"]["sigma"]
            style = marked(names.index(name)) | {"ls": DASHES[sigmas.index(sigma) % len(DASHES)]}
            _draw(axes, row, label=f"{name}, sigma {sigma:g}", **style)
        largest = sorted({row["largest_radius"] for row in own})
        cross = dict(ls="none", marker="x", markersize=5, color=GREY, clip_on=False, zorder=3)
        most = "the most that as many samples certify" if budget == budgets[-1] else None
        axes.plot(largest, [0] * len(largest), label=most, **cross)
        axes.set_title(", ".join(map(counted, budget, ("image", "sample"))), size=SMALL, color=GREY)
        tidy(axes)
        axes.set_xlabel("L2 radius, in pixel units of [0, 1]", size=SMALL, color=GREY)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    panels[0].set_ylabel("certified accuracy, %", size=SMALL, color=GREY)
    legend(fig, loc="outside upper left", lines=True, ncols=2 if len(rows) > 2 else 1)
    save(fig, path)


def _draw(axes: Axes, row: Mapping, **style) -> None:
    """The curve of a row, and its band."""
    radii = np.sort(row["certified_radii"])
    steps = np.unique([0.0, *radii, row["largest_radius"]])
    shares = [proportion(radii > step) for step in steps]
    values, lows, highs = (
        100 * np.array([getattr(share, end) for share in shares])
        for end in ("value", "low", "high")
    )
    # Marked every so often along the curve.
    (line,) = axes.step(steps, values, where="post", lw=1.4, markersize=4, markevery=0.15, **style)
    band = dict(color=line.get_color(), alpha=0.12, linewidth=0)
    axes.fill_between(steps, lows, highs, step="post", **band)
