"""Training curves, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from purify.evals.plots.style import (
    DPI,
    GREY,
    INK,
    SMALL,
    WIDTH,
    dashed,
    legend,
    legible,
    save,
    tidy,
)

BY_SIGMA = "loss by noise level"


@legible
def training_curves(path: str | Path, curves: Mapping[str, Sequence[Mapping]]) -> None:
    """Writes one strip of panels over the training step for each network.

    The panels, where there is such a metric: loss (logarithmic if positive, over a factor of 5 or
    more), accuracy, learning rate, and loss by noise level with a line for each
    `loss_by_sigma/<sigma>`. Metrics named with a prefix, as in `val_loss` or `val/loss`, share the
    panel; all others are left out. Not every line needs every metric. Of lines with one step the
    last counts, so the log of a run that went back to a checkpoint can be passed as it is.

    Args:
        path: .png, or .svg.
        curves: name of the network -> lines of its metrics file, {'step': int, metric: float}.

    Raises:
        ValueError: no network, a line without its step, a sigma that is not positive, or a network
            with none of these metrics.
    """
    if not curves:
        raise ValueError("curves: is empty, must hold at least one network")
    strips = {name: _panels(name, lines) for name, lines in curves.items()}
    figsize = (WIDTH, 2.1 * len(strips))
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    subfigures = fig.subfigures(len(strips), 1, squeeze=False)[:, 0]
    for subfigure, (name, panels) in zip(subfigures, strips.items(), strict=True):
        all_axes = subfigure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, series) in zip(all_axes, panels.items(), strict=True):
            _draw_series(axes, series, by_sigma=title == BY_SIGMA, log="loss" in title)
            axes.set_title(f"{name}: {title}", size=SMALL, color=INK, loc="left")
    save(fig, path)


def _panels(name: str, lines: Sequence[Mapping]) -> dict[str, dict]:
    """Title of each panel -> {metric, or sigma as a number: (steps, values)}, ordered."""
    if any("step" not in line for line in lines):
        raise ValueError(f"curves[{name!r}]: a line has no step")
    points: dict[str, dict] = {}
    for line in lines:
        for metric, value in line.items():
            if isinstance(value, int | float):
                points.setdefault(metric, {})[line["step"]] = value
    series = {
        metric: np.array(sorted(by_step.items()), dtype=float).T
        for metric, by_step in points.items()
    }
    panels: dict[str, dict] = {}
    for kind in ("loss", "accuracy", "learning_rate"):
        matches = [key for key in series if f"_{key.replace('/', '_')}".endswith(f"_{kind}")]
        panels[kind.replace("_", " ")] = {key: series[key] for key in matches}
    prefix = "loss_by_sigma/"
    sigmas = {float(key.removeprefix(prefix)): key for key in series if key.startswith(prefix)}
    if min(sigmas, default=1) <= 0:
        raise ValueError(f"curves[{name!r}]: {prefix}{min(sigmas)}, sigma must be positive")
    panels[BY_SIGMA] = {sigma: series[sigmas[sigma]] for sigma in sorted(sigmas)}
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"curves[{name!r}]: no metric to plot among {list(points)}")
    return panels


def _draw_series(axes: Axes, series: Mapping, *, by_sigma: bool, log: bool) -> None:
    """One panel: a line for each metric with a legend, or for each sigma with a colour bar."""
    if by_sigma:
        # Without the pale end of viridis, which is hard to see on white.
        shades = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
        norm = LogNorm(min(series), max(series))
    for i, (label, (steps, values)) in enumerate(series.items()):
        style = {"color": shades(norm(label))} if by_sigma else dashed(i)
        style["marker"] = "o" if len(steps) == 1 else None
        axes.plot(steps, values, linewidth=1.2, markersize=3, label=label, **style)

    tidy(axes)
    values = np.concatenate([values for _, values in series.values()])
    values = values[np.isfinite(values)]
    # Over less than a factor of 5 an axis of 1, 2, 5, 10 would have too few numbers.
    if log and values.size and 0 < 5 * values.min() <= values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", size=SMALL, color=GREY)
    if by_sigma:
        ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"}
        bar = axes.figure.colorbar(ScalarMappable(norm, shades), ax=axes, **ticks)
        bar.minorticks_off()
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=SMALL, labelcolor=GREY, length=0)
        bar.ax.set_title("sigma", size=SMALL, color=GREY)
    elif len(series) > 1:
        legend(axes, lines=True)
