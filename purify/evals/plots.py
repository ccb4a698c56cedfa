"""Figures for a report: image rows, accuracy bars and training curves, each written as one PNG.

Colours are those of Okabe and Ito, which every common kind of colour vision tells apart (grey for
their black, on which a whisker could not be seen). Figures are made without pyplot, so no global
state is set and nothing stays open.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

DPI = 200
WIDTH = 8.0  # inches; 1,600 pixels, about twice the column of a README
BODY, SMALL, TINY = 9.0, 7.5, 6.0  # points
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
WRONG, INK, GREY, RULE = "#D55E00", "#222222", "#666666", "#DDDDDD"
BY_SIGMA = "loss by noise level"


def image_rows(
    path: str | Path,
    rows: Mapping[str, np.ndarray],
    captions: Mapping[str, Sequence[tuple[str, bool]]] | None = None,
) -> None:
    """Writes rows of images, each with its name at the left, such as clean, attacked, purified.

    Pixels are enlarged by a whole number and never blended: the figure shows the values
    themselves. A column is as wide as the widest caption, so text does not overlap.

    Args:
        path: of the PNG.
        rows: name -> images [n, H, W, C] in [0, 1], C 1 or 3; the same n, H and W in all.
        captions: name -> n pairs (text, ok); text that is not ok, such as a wrong class, is bold
            vermilion. Rows left out have none.

    Raises:
        ValueError: no rows, another shape, values outside [0, 1] (clip noised images first), or
            captions of an unknown row or of another number.
    """
    rows = {name: np.asarray(images) for name, images in rows.items()}
    captions = captions or {}
    num, height, width = _check_images(rows)
    for name, entries in captions.items():
        if name not in rows or len(entries) != num:
            raise ValueError(
                f"captions[{name!r}]: {len(entries)} entries, must be {num} for one of {list(rows)}"
            )

    # All lengths are in pixels of the PNG, from its top left corner.
    gap, line = round(0.05 * DPI), round(0.16 * DPI)
    left = 3 * gap + max(_text_width(name, BODY) for name in rows)
    entries = [entry for row in captions.values() for entry in row]
    widest = max((_text_width(text, **_caption_style(ok)) for text, ok in entries), default=0)
    room = min(max((WIDTH * DPI - left) / num - gap, widest), 1.6 * DPI)
    scale = max(1, int(room / max(height, width)))
    height, width = scale * height, scale * width
    column = max(width, widest) + gap
    tops = np.cumsum([gap, *(height + gap + line * (name in captions) for name in rows)])
    size = np.array([left + num * column, tops[-1]])
    fig = Figure(figsize=size / DPI, dpi=DPI, facecolor="white")

    def write(x, y, text, **style):
        fig.text(x / size[0], 1 - y / size[1], text, parse_math=False, **style)

    for (name, images), top in zip(rows.items(), tops[:-1], strict=True):
        write(left - 2 * gap, top + height / 2, name, size=BODY, color=INK, ha="right", va="center")
        for i, image in enumerate(images):
            x = left + i * column + (column - gap - width) // 2
            fig.figimage(_enlarge(image, scale), x, size[1] - top - height, origin="upper")
            if name in captions:
                text, ok = captions[name][i]
                place = (x + width / 2, top + height + 0.2 * line)
                color = INK if ok else WRONG
                write(*place, text, color=color, ha="center", va="top", **_caption_style(ok))
    fig.savefig(path, format="png")


def accuracy_bars(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes bars of accuracy with 95 % whiskers, grouped by defence, one colour for each attack.

    A combination that is not in `rows` takes no place. The number of images stands below, once or
    under every bar where it differs.

    Args:
        path: of the PNG.
        rows: results with `defense` (a mapping with `name`), `attack`, `num_images`, and
            `accuracy`, `low` and `high` in [0, 1]. Defences and attacks keep their order.

    Raises:
        ValueError: no rows, a missing field, not 0 <= low <= accuracy <= high <= 1, or two rows of
            one defence and attack (choose a setting first).
    """
    groups, attacks = _group_rows(rows)
    unit = 0.36  # inches a bar, enough for the label 100.0; x is counted in bars

    ticks, end, bars = [], 0.0, []
    for name, group in groups.items():
        longest_word = max(_text_width(word, BODY) for word in name.split() or [name])
        span = 0.8 + max(len(group), longest_word / (unit * DPI))
        first = end + (span - len(group) + 1) / 2
        letters = int(span * unit * 72 / (0.6 * BODY))
        ticks.append((end + span / 2, fill(name, letters, break_long_words=False)))
        bars += [(first + i, row) for i, row in enumerate(group)]
        end += span

    figsize = (max(0.55 * WIDTH, unit * end + 0.7), 3.4)
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    margin = max(0, (10 - end) / 2)  # so that a single bar does not fill the figure
    axes = fig.add_subplot(xlim=(-margin, end + margin), ylim=(0, 100))
    for x, row in bars:
        low, value, high = (100 * share for share in _interval(row))
        axes.bar(x, value, width=0.88, **_bar_style(attacks.index(row["attack"])))
        whisker = {"color": INK, "linewidth": 1.0, "capsize": 2.5, "clip_on": False}
        axes.errorbar(x, value, [[value - low], [high - value]], fmt="none", **whisker)
        halo = [withStroke(linewidth=2, foreground="white")]  # keeps it off the rules
        label = {"size": SMALL, "color": INK, "ha": "center", "path_effects": halo}
        axes.text(x, high + 1.5, f"{value:.1f}", **label)

    _tidy(axes)
    axes.set_ylabel("accuracy (%)", size=SMALL, color=GREY)
    axes.set_xticks(*zip(*ticks, strict=True), size=BODY, color=INK, parse_math=False)
    axes.tick_params(axis="x", length=0)
    note = "whiskers: 95 % interval"
    if len({row["num_images"] for row in rows}) == 1:
        note += f"; {rows[0]['num_images']:,} images"
    else:
        note += "; under each bar its number of images"
        counts = [f"{row['num_images']:,}" for _, row in bars]
        axes.xaxis.remove_overlapping_locs = False  # a middle bar stands where its name does
        axes.set_xticks([x for x, _ in bars], counts, minor=True, size=TINY, color=GREY)
        axes.tick_params(axis="x", which="minor", length=0)
        axes.tick_params(axis="x", which="major", pad=13)
    axes.set_xlabel(note, size=SMALL, color=GREY, labelpad=8)
    handles = [Patch(**_bar_style(i), label=attack) for i, attack in enumerate(attacks)]
    _legend(fig, loc="outside upper left", handles=handles, ncols=min(len(attacks), 4))
    fig.savefig(path, format="png")


def training_curves(path: str | Path, curves: Mapping[str, Sequence[Mapping]]) -> None:
    """Writes one strip of panels over the training step for each network.

    The panels, where there is such a metric: loss (logarithmic if positive, over a factor of 5 or
    more), accuracy, learning rate, and loss by noise level with a line for each
    `loss_by_sigma/<sigma>`. Metrics named with a prefix, as in `val_loss` or `val/loss`, share the
    panel; all others are left out. Not every line needs every metric. Of lines with one step the
    last counts, so the log of a run that went back to a checkpoint can be passed as it is.

    Args:
        path: of the PNG.
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
    fig.savefig(path, format="png")


def _check_images(rows: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """The common (n, H, W)."""
    if not rows:
        raise ValueError("rows: is empty, must hold at least one row of images")
    first = next(iter(rows.values())).shape
    for name, images in rows.items():
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise ValueError(f"rows[{name!r}]: shape {images.shape}, must be [n, H, W, 1 or 3]")
        if images.shape[:3] != first[:3]:
            raise ValueError(f"rows[{name!r}]: shape {images.shape}, the first row has {first}")
        if not (images.min() >= -1e-6 and images.max() <= 1 + 1e-6):  # so that NaN fails too
            raise ValueError(
                f"rows[{name!r}]: in [{images.min()}, {images.max()}], must lie in [0, 1]"
            )
    return first[:3]


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 1 or 3] in [0, 1] -> 8-bit RGB with every pixel a square of scale x scale."""
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    rgb = np.broadcast_to(levels, (*levels.shape[:2], 3))
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def _caption_style(ok: bool) -> dict:
    return {"size": SMALL, "weight": "normal" if ok else "bold"}


def _text_width(text: str, size: float, weight: str = "normal") -> int:
    """Width in pixels, from the outlines of the letters: no figure is needed to know it."""
    font = FontProperties(size=size, weight=weight)
    measure = text_to_path.get_text_width_height_descent
    points = max((measure(line, font, False)[0] for line in text.splitlines()), default=0)
    return int(np.ceil(points * DPI / 72))


def _group_rows(rows: Sequence[Mapping]) -> tuple[dict[str, list[Mapping]], list[str]]:
    """Rows by name of the defence, each group in the order of the attacks; and the attacks."""
    if not rows:
        raise ValueError("rows: is empty, must hold at least one result")
    groups: dict[str, list[Mapping]] = {}
    for i, row in enumerate(rows):
        fields = ("defense", "attack", "num_images", "accuracy", "low", "high")
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"rows[{i}]: has no {', '.join(missing)}")
        low, value, high = _interval(row)
        if not 0 <= low <= value <= high <= 1:
            raise ValueError(
                f"rows[{i}]: low, accuracy, high are {low, value, high}, must rise within [0, 1]"
            )
        group = groups.setdefault(row["defense"]["name"], [])
        if row["attack"] in [other["attack"] for other in group]:
            raise ValueError(
                f"rows[{i}]: second row of {row['defense']['name']} under {row['attack']}"
            )
        group.append(row)
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    for group in groups.values():
        group.sort(key=lambda row: attacks.index(row["attack"]))
    return groups, attacks


def _interval(row: Mapping) -> tuple[float, float, float]:
    """(low, accuracy, high), rounded so that the last bit does not put them out of order."""
    low, value, high = (round(float(row[name]), 9) for name in ("low", "accuracy", "high"))
    return low, value, high


def _bar_style(i: int) -> dict:
    """Fill of attack i: a colour, and hatched from the ninth on."""
    cycle, color = divmod(i, len(COLORS))
    return {"facecolor": COLORS[color], "edgecolor": "white", "hatch": 3 * cycle * "/"}


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
    colors = COLORS
    if by_sigma:
        # Without the pale end of viridis, which is hard to see on white.
        shades = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
        norm = LogNorm(min(series), max(series))
        colors = shades(norm(list(series)))
    for i, (label, (steps, values)) in enumerate(series.items()):
        style = {"color": colors[i % len(colors)], "marker": "o" if len(steps) == 1 else None}
        axes.plot(steps, values, linewidth=1.2, markersize=3, label=label, **style)

    _tidy(axes)
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
        _legend(axes)


def _tidy(axes: Axes) -> None:
    """Horizontal rules behind the data, no frame but the base line, small grey numbers."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(labelsize=SMALL, color=RULE, labelcolor=GREY)


def _legend(parent, **options) -> None:
    parent.legend(frameon=False, fontsize=SMALL, labelcolor=INK, handlelength=1.2, **options)
