"""What evaluations print: tables, and what a reader should know beside them."""

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from purify.evals.core.defenses import purifier_options
from purify.evals.core.store import Store
from purify.purifiers import parts_of
from purify.runtime.messages import counted, few, printable, printable_lines, shown

GAP, EDGE = 2, 1  # beside each column of a table, and at its left
SHORT_LINE = 30  # letters of a text


def empty_table(title: str, caption: str) -> Table:
    """Without columns yet; the caption explains them."""
    return Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def with_interval(value: float, low: float, high: float) -> str:
    """Of numbers in %: '97.5 [ 96,  99]', digits below digits."""
    return f"{value:.1f} [{low:3.0f}, {high:3.0f}]"


def print_wide(table: Table) -> None:
    """In its full width or, where that is not there, in parts one below the other, each with the
    columns that name its lines. Long texts take more lines, numbers stay whole, and a word is
    broken only where it alone has no room."""
    table = _printable(table)
    # A pipe has no width: give the table what it needs.
    needed = _needed(table, range(len(table.columns)))
    width = None if sys.stdout.isatty() else max(132, min(needed, 160))
    # Rich takes NO_COLOR for colours alone, and leaves the codes of bold and italic type.
    plain: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
    # Brackets are of intervals, colons of names: neither is markup.
    console = Console(width=width, markup=False, emoji=False, highlight=False, **plain)
    _print_lines(console, str(table.title or ""), "table.title")
    for columns in _parts(table, console.width):
        console.print(_part(table, columns, console.width))
    _print_lines(console, str(table.caption or ""), "table.caption")


def _printable(table: Table) -> Table:
    """The same table, whose texts a terminal shows and does not obey."""
    safe = empty_table(*(printable_lines(str(text or "")) for text in (table.title, table.caption)))
    for column in table.columns:
        name = printable_lines(str(column.header))
        safe.add_column(name, justify=column.justify, no_wrap=column.no_wrap)
    cells = zip(*(column.cells for column in table.columns), strict=True)
    for row, texts in zip(table.rows, cells, strict=True):
        safe.add_row(*(printable_lines(str(t)) for t in texts), end_section=row.end_section)
    return safe


def _print_lines(console: Console, text: str, style: str) -> None:
    """As they are where there is room; else broken between words."""
    wrap = TextWrapper(console.width, subsequent_indent="  ", break_long_words=False)
    wrap.break_on_hyphens = False
    for lines in paragraphs(text):
        fits = max(map(cell_len, lines)) <= console.width
        shown = lines if fits else wrap.wrap(" ".join(map(str.strip, lines)))
        console.print("\n".join(shown), style=style, soft_wrap=True)


def paragraphs(text: str) -> list[list[str]]:
    """The lines of a text, together with those that begin with blanks and go on with them."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(" ") and found:
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _parts(table: Table, room: int) -> list[list[int]]:
    """The columns of each part: those that name a line, and as many others as there is room for."""
    names = [column.justify == "left" and column.no_wrap for column in table.columns]
    keys = list(range(min(2, names.index(False) if False in names else 1)))
    parts: list[list[int]] = []
    for column in range(len(keys), len(table.columns)):
        if parts and _needed(table, [*parts[-1], column], shrunk=True) <= room:
            parts[-1].append(column)
        else:
            parts.append([*keys, column])
    return parts or [keys]


def _part(table: Table, columns: Sequence[int], room: int) -> Table:
    """The part of a table that has these columns, as wide as they need or there is room for."""
    part = Table(box=table.box, padding=table.padding)
    widths = _widths(table, columns, room)
    for at, width in zip(columns, widths, strict=True):
        column = table.columns[at]
        part.add_column(column.header, justify=column.justify, overflow="fold", width=width)
    texts = zip(*(table.columns[at].cells for at in columns), strict=True)
    for row, cells in zip(table.rows, texts, strict=True):
        part.add_row(*cells, end_section=row.end_section)
    return part


def _widths(table: Table, columns: Sequence[int], room: int) -> list[int]:
    """Of these columns, the widest narrowed first: texts; where that does not do, names to their
    longest word, then numbers, and then as far as it takes."""
    chosen = [table.columns[at] for at in columns]
    widths = [_longest_line(column) for column in chosen]
    texts = [_least(column) for column in chosen]
    words = [_longest_word(column) for column in chosen]
    names = [words[i] if c.justify == "left" else widths[i] for i, c in enumerate(chosen)]
    for least in (texts, names, words, [1] * len(chosen)):
        while EDGE + sum(widths) + GAP * len(widths) > room:
            places = [i for i, width in enumerate(widths) if width > least[i]]
            if not places:
                break
            widths[max(places, key=lambda i: widths[i])] -= 1
    return widths


def _needed(table: Table, columns: Iterable[int], *, shrunk: bool = False) -> int:
    """How wide these columns are side by side; shrunk: with texts over several lines."""
    width = _least if shrunk else _longest_line
    return EDGE + sum(width(table.columns[at]) + GAP for at in columns)


def _least(column: Column) -> int:
    """How narrow it may become: a column of texts as its longest word, or a short line of them."""
    longest = _longest_line(column)
    if column.no_wrap or column.justify != "left":
        return longest
    return max(_longest_word(column), min(longest, SHORT_LINE))


def _longest_line(column: Column) -> int:
    return max(cell_len(str(text)) for text in (column.header, *column.cells))


def _longest_word(column: Column) -> int:
    texts = (column.header, *column.cells)
    return max((cell_len(word) for text in texts for word in str(text).split()), default=1)


def print_reservations(results: dict) -> None:
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


@contextlib.contextmanager
def telling_done_before(store: Store):
    """Say it afterwards where nothing was to be computed inside, as the records show."""

    def size() -> int:
        path = store.folder / "images.jsonl"
        return path.stat().st_size if path.exists() else 0

    before = size()
    yield
    if size() == before:
        print("all of it was done before, nothing was computed")


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
