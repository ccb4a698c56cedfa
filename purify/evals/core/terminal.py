"""What evaluations print: tables, and what a reader should know beside them."""

import itertools
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, Literal, NamedTuple

import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console

from purify.evals.core.defenses import purifier_options
from purify.evals.core.tables import Cell, Interval, Table, paragraphs
from purify.purifiers import parts_of
from purify.runtime.messages import counted, few, printable, printable_lines, shown

GAP, EDGE = 2, 1  # beside each column of a table, and at its left
SHORT_LINE = 30  # letters of a text


class _Drawn(NamedTuple):
    """A column as a terminal shows it. cells: line by line."""

    name: str
    cells: list[str]
    numeric: bool
    wraps: bool

    @property
    def texts(self) -> list[str]:
        return [self.name, *self.cells]

    @property
    def longest_line(self) -> int:
        return max(map(cell_len, self.texts))

    @property
    def longest_word(self) -> int:
        return max((cell_len(word) for text in self.texts for word in text.split()), default=1)

    @property
    def least(self) -> int:
        """How narrow it may become: a column of texts as its longest word, or a short line of
        them."""
        if self.numeric or not self.wraps:
            return self.longest_line
        return max(self.longest_word, min(self.longest_line, SHORT_LINE))


def print_table(table: Table) -> None:
    """In its full width or, where that is not there, in parts one below the other, each with the
    columns that name its lines. Long texts take more lines, numbers stay whole, and a word is
    broken only where it alone has no room. A terminal shows the texts and does not obey them."""
    columns = _drawn(table)
    # A pipe has no width: give the table what it needs.
    width = None if sys.stdout.isatty() else max(132, min(_needed(columns), 160))
    # Rich takes NO_COLOR for colours alone, and leaves the codes of bold and italic type.
    plain: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    # Brackets are of intervals, colons of names: neither is markup.
    console = Console(width=width, markup=False, emoji=False, highlight=False, **plain)
    ends = set(itertools.accumulate(map(len, table.groups)))
    _print_lines(console, printable_lines(table.title), "table.title")
    for part in _parts(columns, console.width):
        console.print(_part(part, ends, console.width))
    _print_lines(console, printable_lines(table.caption), "table.caption")


def _drawn(table: Table) -> list[_Drawn]:
    lines = [("" if not line.span else line.cells[0], *line.cells[1:])
             for group in table.spanned for line in group]  # fmt: skip
    texts = [[printable_lines(_text(cell)) for cell in line] for line in lines]
    cells = zip(*texts, strict=True) if texts else ([] for _ in table.columns)
    return [
        _Drawn(printable_lines(column.name), list(each), column.numeric, column.wraps)
        for column, each in zip(table.columns, cells, strict=True)
    ]


def _text(cell: Cell) -> str:
    return cell.padded() if isinstance(cell, Interval) else str(cell)


def _print_lines(console: Console, text: str, style: str) -> None:
    """As they are where there is room; else broken between words."""
    wrap = TextWrapper(console.width, subsequent_indent="  ", break_long_words=False)
    wrap.break_on_hyphens = False
    for lines in paragraphs(text):
        fits = max(map(cell_len, lines)) <= console.width
        shown = lines if fits else wrap.wrap(" ".join(map(str.strip, lines)))
        console.print("\n".join(shown), style=style, soft_wrap=True)


def _parts(columns: Sequence[_Drawn], room: int) -> list[list[_Drawn]]:
    """The columns of each part: those that name a line, and as many others as there is room for."""
    names = [not (column.numeric or column.wraps) for column in columns]
    named = min(2, names.index(False) if False in names else 1)
    keys = list(columns[:named])
    parts: list[list[_Drawn]] = []
    for column in columns[named:]:
        if parts and _needed([*parts[-1], column], shrunk=True) <= room:
            parts[-1].append(column)
        else:
            parts.append([*keys, column])
    return parts or [keys]


def _part(columns: Sequence[_Drawn], ends: Collection[int], room: int) -> rich.table.Table:
    """A part of a table, as wide as it needs or there is room for. ends: how many lines there are
    down to each rule."""
    part = rich.table.Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, width in zip(columns, _widths(columns, room), strict=True):
        justify: Literal["right", "left"] = "right" if column.numeric else "left"
        part.add_column(column.name, justify=justify, overflow="fold", width=width)
    lines = zip(*(column.cells for column in columns), strict=True)
    for number, cells in enumerate(lines, start=1):
        part.add_row(*cells, end_section=number in ends)
    return part


def _widths(columns: Sequence[_Drawn], room: int) -> list[int]:
    """Of these columns, the widest narrowed first: texts; where that does not do, names to their
    longest word, then numbers, and then as far as it takes."""
    widths = [column.longest_line for column in columns]
    texts = [column.least for column in columns]
    words = [column.longest_word for column in columns]
    names = [c.longest_line if c.numeric else c.longest_word for c in columns]
    for least in (texts, names, words, [1] * len(columns)):
        while EDGE + sum(widths) + GAP * len(widths) > room:
            places = [i for i, width in enumerate(widths) if width > least[i]]
            if not places:
                break
            widths[max(places, key=lambda i: widths[i])] -= 1
    return widths


def _needed(columns: Iterable[_Drawn], *, shrunk: bool = False) -> int:
    """How wide these columns are side by side; shrunk: with texts over several lines."""
    return EDGE + sum((c.least if shrunk else c.longest_line) + GAP for c in columns)


def print_reservations(results: Mapping) -> None:
    """Say it where several versions of the code computed parts of the results, and where there are
    more images to come."""
    commits = list(dict.fromkeys(signature["commit"] for signature in results["computed_by"]))
    if len(commits) > 1:
        versions = counted(len(commits), "version")
        print(f"computed by {versions} of the code: {few(commits, limit=len(commits))}")
    if results["stopped"]:
        print(printable(results["stopped"]))


def variant_lines(config, defenses: Iterable[str]) -> list[str]:
    """Of those defences that are variants, what they are."""
    variants = config.variants.to_dict()
    lines = []
    for name in (name for name in defenses if name in variants):
        said = [f"{k} {v}" for k, v in variants[name].items() if k != "purifier"]
        lines.append(f"{name}: {', '.join([variants[name]['purifier'], *said])}")
    return lines


def shared_options(config, defenses: Iterable[str], num_draws: int) -> str:
    """What the defences of a table have of the config's own, as ', sigma 0.25, S 10, N 4, ADP T 10,
    jvp': no more than any of them has; num_draws: N."""
    options = [part for name in defenses for part in _with_parts(*purifier_options(config, name))]
    sigma, adp = config.adp.sigma, config.adp.to_dict()
    own = [kept for kind, kept in options if kind == "adp"]
    said = [f"sigma {sigma}"] if any(kept.get("sigma") == sigma for _, kept in options) else []
    if any(kind != "identity" for kind, _ in options):
        said += [f"S {config.defense.num_runs}, N {num_draws}"]
    shared = [f"T {adp['num_steps']}"] * any(o["num_steps"] == adp["num_steps"] for o in own)
    shared += [adp["curvature"]] * any(o["curvature"] == adp["curvature"] for o in own)
    said += [f"ADP {', '.join(shared)}"] if shared else []
    if any(kind == "adp_reference" for kind, _ in options):
        said += [f"adp_reference T {config.adp_reference.num_steps}"]
    return "".join(f", {each}" for each in said)


def _with_parts(kind: str, options: Mapping) -> list[tuple[str, Mapping]]:
    """A purifier and its options, and those of its parts."""
    parts = [options[part] for part in parts_of(kind)]
    return [(kind, options), *((part["purifier"], part) for part in parts)]


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of a difference says of the first against the second."""
    return "beats" if low > 0 else "is beaten by" if high < 0 else "is not told apart from"


def perturbation_lines(settings: Mapping) -> list[str]:
    """Of the score models that have learnt to undo something else than Gaussian noise, what; as the
    settings of Inputs have it."""
    models = {"score": settings} | settings.get("scores", {})
    learnt = {name: model.get("perturbation") for name, model in models.items()}
    return [f"{name}: learnt to undo {of['name']}" for name, of in learnt.items() if of]


def tell_work(asked: str, cost: str, left: str, folder: Path) -> None:
    """Say what is asked for and takes at most that cost, and what of it is left to do; left: ''
    where all was done before."""
    if not left:
        print(f"{asked}: all of it was done before, nothing is computed; in {shown(folder)}")
        return
    print(f"{asked}: at most {cost}; into {shown(folder)}")
    if left != cost:
        print(f"  a part of it was done before; left: at most {left}")


def tell_written(paths: Iterable[Path]) -> None:
    print("\nwritten:\n" + "\n".join(f"  {shown(path)}" for path in paths))


def stopped_early(taken: int, needed: int, max_images: int | None) -> str:
    """The words for it where --max_images leaves images for later, else ''."""
    if taken >= needed:
        return ""
    return (
        f"stopped after {taken:,} of {counted(needed, 'image')} (--max_images={max_images}); the "
        "same command with more of them, or without it, goes on from here"
    )
