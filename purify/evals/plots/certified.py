"""Certified accuracy over the radius, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from purify.evals.plots.style import DASHES, DPI, GREY, SMALL, WIDTH, legend, marked, save, tidy
from purify.evals.stats import proportion


def certified_curves(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes for each row the share of images that are right with a larger radius, with a band of
    exact 95 % intervals; one colour and marker for each defence, one dash for each sigma. Each ends
    at the largest radius that as many samples can certify, which a cross marks.

    Args:
        path: .png, or .svg.
        rows: with `defense` (a mapping with `name` and `sigma`), `num_images`, `certified_radii`,
            one per image, 0 where it is wrong or not certified, `num_samples`, named where rows
            differ in it, and `largest_radius`.

    Raises:
        ValueError: no rows, or one without images.
    """
    if not rows or not all(row["certified_radii"] for row in rows):
        raise ValueError("rows: must be at least one, of at least one image each")
    names, sigmas = (
        list(dict.fromkeys(row["defense"][field] for row in rows)) for field in ("name", "sigma")
    )
    differ = len({row["num_samples"] for row in rows}) > 1
    largest = sorted({row["largest_radius"] for row in rows})
    fig = Figure(
        figsize=(0.7 * WIDTH, 3 + 0.2 * len(rows)), dpi=DPI, layout="constrained", facecolor="white"
    )
    axes = fig.subplots()
    for row in rows:
        radii = np.sort(row["certified_radii"])
        steps = np.unique([0.0, *radii, row["largest_radius"]])
        shares = [proportion(radii > step) for step in steps]
        values, lows, highs = (
            100 * np.array([getattr(share, end) for share in shares])
            for end in ("value", "low", "high")
        )
        name, sigma = row["defense"]["name"], row["defense"]["sigma"]
        style = marked(names.index(name)) | {"ls": DASHES[sigmas.index(sigma) % len(DASHES)]}
        style |= dict(lw=1.4, markersize=4, markevery=0.15)  # every so often along the curve
        label = f"{name}, sigma {sigma:g}, n {row['num_images']}"
        label += f", {row['num_samples']:,} samples" if differ else ""
        (line,) = axes.step(steps, values, where="post", label=label, **style)
        band = dict(color=line.get_color(), alpha=0.12, linewidth=0)
        axes.fill_between(steps, lows, highs, step="post", **band)
    cross = dict(ls="none", marker="x", markersize=5, color=GREY, clip_on=False, zorder=3)
    axes.plot(largest, [0] * len(largest), label="the most that as many samples certify", **cross)
    tidy(axes)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.set_xlabel("L2 radius, in pixel units of [0, 1]", size=SMALL, color=GREY)
    axes.set_ylabel("certified accuracy, %", size=SMALL, color=GREY)
    legend(fig, loc="outside upper left", lines=True)
    save(fig, path)
