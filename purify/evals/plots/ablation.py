"""Accuracy over the values of one factor at a time, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from purify.evals.plots.style import (
    ACROSS,
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
    tidy,
)
from purify.runtime.messages import counted

# Of the distance of two values, in which the attacks of one stand; closer where lines join them,
# that in a steep panel one does not seem to lie above another for standing beside it.
BAND, JOINED_BAND = 0.55, 0.15


@legible
def ablation_panels(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes a panel for each factor: accuracy with 95 % whiskers at each of its values, which
    stand at equal distances; one colour and marker for each attack, the default on grey. Values
    that are numbers are joined by lines. Where network evaluations of a draw change with the
    factor they stand below the values.

    Args:
        path: .png, or .svg.
        rows: with `factor`, `value`, `default` (whether it is the default's), `attack`,
            `num_images`, `defense_nfe_per_image`, and `accuracy`, `low` and `high` in [0, 1].
            Factors, values and attacks keep their order.

    Raises:
        ValueError: no rows, or not 0 <= low <= accuracy <= high <= 1.
    """
    if not rows:
        raise ValueError("rows: is empty, must hold at least one result")
    factors, attacks = (list(dict.fromkeys(row[k] for row in rows)) for k in ("factor", "attack"))
    across = min(len(factors), ACROSS)
    down = -(-len(factors) // across)
    figsize = (max(0.55, across / ACROSS) * WIDTH * 1.2, 2.5 * down + 0.5)
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    all_axes = fig.subplots(down, across, squeeze=False).ravel()
    styles = {attack: marked(i) for i, attack in enumerate(attacks)}
    for i, (axes, factor) in enumerate(zip(all_axes, factors, strict=False)):
        _draw_factor(axes, [row for row in rows if row["factor"] == factor], styles)
        axes.set_title(factor, size=SMALL, color=INK, loc="left")
        if i % across == 0:
            axes.set_ylabel("accuracy (%)", size=SMALL, color=GREY)
    for axes in all_axes[len(factors) :]:
        axes.remove()
    counts = sorted({row["num_images"] for row in rows})
    images = counted(counts[-1], "image")
    images = images if len(counts) == 1 else f"{counts[0]:,} to {images}"
    note = f"whiskers: 95 % interval; {images}; grey: the default; nfe: of a draw"
    fig.supxlabel(note, size=SMALL, color=GREY)
    handles = [Line2D([], [], label=name, markersize=4, **styles[name]) for name in attacks]
    legend(fig, loc="outside upper left", handles=handles, ncols=min(len(attacks), 6))
    save(fig, path)


def _draw_factor(axes: Axes, rows: list[Mapping], styles: Mapping[str, dict]) -> None:
    """One factor's rows; styles: attack -> colour and marker."""
    values = list(dict.fromkeys(row["value"] for row in rows))
    numbers = not any(isinstance(value, str) for value in values)
    pitch = (JOINED_BAND if numbers else BAND) / max(len(styles) - 1, 1)
    for i, (attack, style) in enumerate(styles.items()):
        points = []
        for row in (row for row in rows if row["attack"] == attack):
            where = f"{row['factor']} {row['value']} under {attack}"
            low, value, high = interval(row, where)
            at = values.index(row["value"]) + (i - (len(styles) - 1) / 2) * pitch
            points.append((at, 100 * value, 100 * (value - low), 100 * (high - value)))
        if not points:
            continue
        x, y, *spread = zip(*points, strict=True)
        drawn = axes.errorbar(
            *(x, y, spread),
            markersize=3.5,
            elinewidth=0.9,
            linewidth=0.8,
            ls="-" if numbers else "none",
            **style,
        )
        for artist in drawn.get_children():
            artist.set_clip_on(False)  # a marker at 100 is whole
    tidy(axes)
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.5, len(values) - 0.5)
    costs = {row["value"]: f"{row['defense_nfe_per_image']:,.0f}" for row in reversed(rows)}
    varies = len(set(costs.values())) > 1
    labels = [_label(value) + (f"\n{costs[value]} nfe" if varies else "") for value in values]
    axes.set_xticks(range(len(values)), labels, size=SMALL, color=INK)
    axes.tick_params(axis="x", length=0)
    for value in {row["value"] for row in rows if row["default"]}:
        at = values.index(value)
        axes.axvspan(at - 0.5, at + 0.5, color=RULE, alpha=0.5, zorder=0, linewidth=0)


def _label(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", "_\n", 1)
