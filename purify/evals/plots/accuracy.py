"""Accuracies with their intervals, as one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from purify.evals.plots.style import (
    BODY,
    COLORS,
    DPI,
    GREY,
    INK,
    MARKERS,
    SMALL,
    TINY,
    WIDTH,
    interval,
    legend,
    legible,
    marked,
    save,
    text_width,
    tidy,
)
from purify.runtime.messages import counted

UNIT = 0.36  # inches a bar, enough for the label 100.0; x is counted in bars
LINE = 1.5 * WIDTH  # inches; more defences go to the next line
UNSHOWN = "no exact gradient was tried"


@legible
def accuracy_bars(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes bars of accuracy with 95 % whiskers, grouped by defence, one colour for each attack.

    A combination that is not in `rows` takes no place; many defences stand in several lines. The
    number of images stands below, once or under every bar where it differs.

    Args:
        path: .png, or .svg.
        rows: results with `defense` (a mapping with `name`), `attack`, `num_images`, and
            `accuracy`, `low` and `high` in [0, 1]. Defences and attacks keep their order. Marked:
            those whose `exact_beside` is false, no evidence of robustness.

    Raises:
        ValueError: no rows, a missing field, not 0 <= low <= accuracy <= high <= 1, or two rows of
            one defence and attack (choose a setting first).
    """
    groups, attacks = _group_rows(rows)
    # As few lines as there is room for, and as even.
    widest = int(LINE / UNIT)
    fewest = len(_in_lines(groups, widest))
    tried = (_in_lines(groups, width) for width in range(1, widest + 1))
    lines = next(lines for lines in tried if len(lines) == fewest)

    end = max(line[-1].end for line in lines)
    figsize = (max(0.55 * WIDTH, UNIT * end + 0.7), 0.6 + 2.8 * len(lines))
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    margin = max(0, (10 - end) / 2)  # so that a single bar does not fill the figure
    limits = dict(xlim=(-margin, end + margin), ylim=(0, 100))
    counts = {row["num_images"] for row in rows}
    all_axes = fig.subplots(len(lines), 1, squeeze=False, subplot_kw=limits)[:, 0]
    for axes, line in zip(all_axes, lines, strict=True):
        _draw_groups(axes, line, attacks, number_bars=len(counts) > 1)
    note = "under each bar its number of images"
    note = note if len(counts) > 1 else counted(counts.pop(), "image")
    note = f"whiskers: 95 % interval; {note}"
    note += f"; ?: {UNSHOWN}" if any(map(_is_unshown, rows)) else ""
    all_axes[-1].set_xlabel(note, size=SMALL, color=GREY, labelpad=8)
    handles = [Patch(**_bar_style(i), label=attack) for i, attack in enumerate(attacks)]
    entry = max(text_width(attack, SMALL) for attack in attacks) / DPI + 0.6  # inches
    columns = min(len(attacks), max(1, int(figsize[0] / entry)))
    legend(fig, loc="outside upper left", handles=handles, ncols=columns)
    save(fig, path)


@legible
def accuracy_by_cost(path: str | Path, rows: Sequence[Mapping]) -> None:
    """Writes one panel for each attack: accuracy with 95 % whiskers over what the defence costs,
    one colour and marker for each defence, a few per cent aside so that equal costs can be seen.

    Args:
        path: .png, or .svg.
        rows: as for accuracy_bars, and `defense_nfe_per_image`: network evaluations of one draw.

    Raises:
        ValueError: as accuracy_bars.
    """
    groups, attacks = _group_rows(rows, "defense_nfe_per_image")
    across = min(len(attacks), 3)
    down = -(-len(attacks) // across)
    figsize = (max(0.55, across / 3) * WIDTH * 1.2, 2.6 * down + 0.25 * (2 + len(groups) // 5))
    fig = Figure(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")
    all_axes = fig.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    handles = []
    for i, (name, group) in enumerate(groups.items()):
        style = marked(i) | {"ls": "none"}
        handles.append(Line2D([], [], label=name, markersize=5, **style))
        for row in group:
            low, value, high = (100 * share for share in interval(row, row["attack"]))
            cost, spread = row["defense_nfe_per_image"], [[value - low], [high - value]]
            aside = 0.02 * (i - (len(groups) - 1) / 2) * max(cost, 1)
            axes = all_axes[attacks.index(row["attack"])]
            look = style | {"markersize": 5, "capsize": 2, "elinewidth": 0.8}
            if _is_unshown(row):
                look["markerfacecolor"] = "white"
            drawn = axes.errorbar(cost + aside, value, spread, **look)
            for artist in drawn.get_children():
                artist.set_clip_on(False)  # a marker at 100 is whole
    if any(map(_is_unshown, rows)):
        hollow = {"color": GREY, "markerfacecolor": "white", "marker": MARKERS[0], "ls": "none"}
        handles.append(Line2D([], [], label=f"hollow: {UNSHOWN}", markersize=5, **hollow))
    for i, axes in enumerate(all_axes):
        if i >= len(attacks):
            axes.remove()
            continue
        tidy(axes)
        axes.set_title(attacks[i], size=SMALL, color=INK, loc="left")
        axes.set_xscale("symlog", linthresh=1)  # some cost nothing
        axes.set_xlim(-0.5, None)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, 100)
        if i % across == 0:
            axes.set_ylabel("accuracy (%)", size=SMALL, color=GREY)
        if i + across >= len(attacks):
            axes.tick_params(axis="x", labelbottom=True)
            axes.set_xlabel("network evaluations a draw", size=SMALL, color=GREY)
    legend(fig, loc="outside upper left", handles=handles, ncols=min(len(groups), 5))
    save(fig, path)


class _Group(NamedTuple):
    """The bars of one defence, from `start` to `end` on an axis counted in bars."""

    name: str
    rows: list[Mapping]
    start: float
    end: float


def _in_lines(groups: Mapping[str, list[Mapping]], width: int) -> list[list[_Group]]:
    """The defences side by side, in lines of at most so many bars, or of one defence."""
    lines: list[list[_Group]] = [[]]
    for name, rows in groups.items():
        longest_word = max(text_width(word, BODY) for word in name.split() or [name])
        span = 0.8 + max(len(rows), longest_word / (UNIT * DPI))
        start = lines[-1][-1].end if lines[-1] else 0.0
        if start and start + span > width:
            lines.append([])
            start = 0.0
        lines[-1].append(_Group(name, rows, start, start + span))
    return lines


def _draw_groups(axes: Axes, line: list[_Group], attacks: list[str], *, number_bars: bool) -> None:
    """Bars, whiskers and names of the defences that stand side by side."""
    ticks, bars = [], []
    for name, rows, start, end in line:
        first = (start + end - len(rows) + 1) / 2
        letters = int((end - start) * UNIT * 72 / (0.6 * BODY))
        ticks.append(((start + end) / 2, fill(name, letters, break_long_words=False)))
        bars += [(first + i, row) for i, row in enumerate(rows)]
    for x, row in bars:
        low, value, high = (100 * share for share in interval(row, row["attack"]))
        axes.bar(x, value, width=0.88, **_bar_style(attacks.index(row["attack"])))
        whisker = {"color": INK, "linewidth": 1.0, "capsize": 2.5, "clip_on": False}
        axes.errorbar(x, value, [[value - low], [high - value]], fmt="none", **whisker)
        halo = [withStroke(linewidth=2, foreground="white")]  # keeps it off the rules
        label = {"size": SMALL, "color": INK, "ha": "center", "path_effects": halo}
        axes.text(x, high + 1.5, f"{value:.1f}{'?' if _is_unshown(row) else ''}", **label)
    tidy(axes)
    axes.set_ylabel("accuracy (%)", size=SMALL, color=GREY)
    axes.set_xticks(*zip(*ticks, strict=True), size=BODY, color=INK)
    axes.tick_params(axis="x", length=0)
    if number_bars:
        labels = [f"{row['num_images']:,}" for _, row in bars]
        axes.xaxis.remove_overlapping_locs = False  # a middle bar stands where its name does
        axes.set_xticks([x for x, _ in bars], labels, minor=True, size=TINY, color=GREY)
        axes.tick_params(axis="x", which="minor", length=0)
        axes.tick_params(axis="x", which="major", pad=13)


def _group_rows(
    rows: Sequence[Mapping], *needed: str
) -> tuple[dict[str, list[Mapping]], list[str]]:
    """Rows by name of the defence, each group in the order of the attacks; and the attacks."""
    if not rows:
        raise ValueError("rows: is empty, must hold at least one result")
    groups: dict[str, list[Mapping]] = {}
    for i, row in enumerate(rows):
        fields = ("defense", "attack", "num_images", "accuracy", "low", "high", *needed)
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"rows[{i}]: has no {', '.join(missing)}")
        interval(row, f"rows[{i}]")
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


def _is_unshown(row: Mapping) -> bool:
    """Whether it is of BPDA without an exact gradient beside it: no evidence of robustness."""
    return row.get("exact_beside") is False


def _bar_style(i: int) -> dict:
    """Fill of attack i: a colour, and hatched from the ninth on."""
    cycle, color = divmod(i, len(COLORS))
    return {"facecolor": COLORS[color], "edgecolor": "white", "hatch": 3 * cycle * "/"}
