"""Certified accuracy over the radius, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from purify.evals.plots.style import COLORS, DPI, GREY, SMALL, WIDTH, legend, save, tidy
from purify.evals.stats import proportion

STYLES = ("-", "--", ":", "-.")


def certified_curves(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes for each row the share of images that are right with a larger radius, with a band of
    exact 95 % intervals; one colour for each defence, one dash for each sigma.

    Args:
        path: .png, or .svg.
        rows: with `defense` (a mapping with `name` and `sigma`), `num_images`, and
            `certified_radii`, one per image, 0 where it is wrong or not certified.

    Raises:
        ValueError: no rows, or one without images.
    """
    if not rows or not all(row["certified_radii"] for row in rows):
        raise ValueError("rows: must be at least one, of at least one image each")
    names, sigmas = (
        list(dict.fromkeys(row["defense"][field] for row in rows)) for field in ("name", "sigma")
    )
    fig = Figure(figsize=(0.7 * WIDTH, 3.2), dpi=DPI, layout="constrained", facecolor="white")
    axes = fig.subplots()
    for row in rows:
        radii = np.sort(row["certified_radii"])
        steps = np.unique(np.append(0.0, radii))
        shares = [proportion(radii > step) for step in steps]
        values, lows, highs = (
            100 * np.array([getattr(share, end) for share in shares])
            for end in ("value", "low", "high")
        )
        name, sigma = row["defense"]["name"], row["defense"]["sigma"]
        color = COLORS[names.index(name) % len(COLORS)]
        dash = STYLES[sigmas.index(sigma) % len(STYLES)]
        label = f"{name}, sigma {sigma:g}, n {row['num_images']}"
        axes.step(steps, values, where="post", color=color, linestyle=dash, lw=1.4, label=label)
        axes.fill_between(steps, lows, highs, step="post", color=color, alpha=0.12, linewidth=0)
    tidy(axes)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, None)
    axes.set_xlabel("L2 radius, in pixel units of [0, 1]", size=SMALL, color=GREY)
    axes.set_ylabel("certified accuracy, %", size=SMALL, color=GREY)
    legend(axes, loc="upper right")
    save(fig, path)
