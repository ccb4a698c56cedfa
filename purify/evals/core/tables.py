"""A table of results, built once: `terminal` draws it for a terminal, a report in HTML."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

# The ends of a share's interval in % have three digits at most: on a terminal digits stand below
# digits.
_PERCENT_WIDTH = 3
NO_BREAK = "\u00a0"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A cell of a value and the ends of its interval.

    digits, end_digits: behind the point. signed: with a '+', as differences have. width: of an end
    on a terminal. after: what stands behind it, such as marks.
    """

    value: float
    low: float
    high: float
    digits: int = 1
    end_digits: int = 0
    signed: bool = False
    width: int = 0
    after: str = ""

    def __str__(self) -> str:
        return self._text(0).strip()

    @property
    def unbroken(self) -> str:
        """As it stands in a page: no line ends within the interval."""
        value, ends = str(self).split(" ", 1)
        return f"{value} {ends.replace(' ', NO_BREAK)}"

    def padded(self) -> str:
        """As it stands in a column of a terminal."""
        return self._text(self.width)

    def _text(self, width: int) -> str:
        sign = "+" if self.signed else ""
        ends = ", ".join(
            f"{end:{sign}z{width}.{self.end_digits}f}" for end in (self.low, self.high)
        )
        return f"{self.value:{sign}z.{self.digits}f} [{ends}]{self.after}"


def percent(share: Mapping, value: str = "value", *, after: str = "") -> Interval:
    """A share with its interval, `value`, 'low' and 'high' of the mapping, in %."""
    shown, low, high = (100 * share[name] for name in (value, "low", "high"))
    return Interval(shown, low, high, width=_PERCENT_WIDTH, after=after)


@dataclasses.dataclass(frozen=True)
class Badge:
    """A cell of one word or two that a page marks: tone is 'pass', 'fail' or 'neutral'."""

    text: str
    tone: str

    def __str__(self) -> str:
        return self.text


Cell = str | Interval | Badge


class Column(NamedTuple):
    """numeric: of numbers, which stand on the right. wraps: its texts may take several lines."""

    name: str
    numeric: bool = False
    wraps: bool = False


class Line(NamedTuple):
    """A line as it is drawn. span: over how many lines its first cell reaches, 0 where the one of a
    line above reaches down to it."""

    cells: Sequence[Cell]
    span: int = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """groups: lines of cells; there is a rule between groups. caption: what the columns mean, a
    line that begins with blanks going on with the line before it. merged: equal first cells of a
    group that follow each other stand once."""

    title: str
    columns: Sequence[Column]
    groups: Sequence[Sequence[Sequence[Cell]]]
    caption: str = ""
    merged: bool = False

    @property
    def kind(self) -> str:
        """Of the parts of a report."""
        return "Table"

    @property
    def lines(self) -> Iterator[Sequence[Cell]]:
        return itertools.chain.from_iterable(self.groups)

    @property
    def spanned(self) -> list[list[Line]]:
        """The groups, with first cells that stand once."""
        return [self._spanned(group) for group in self.groups]

    def _spanned(self, group: Sequence[Sequence[Cell]]) -> list[Line]:
        if not self.merged:
            return [Line(cells) for cells in group]
        runs = (list(run) for _, run in itertools.groupby(group, key=lambda cells: cells[0]))
        return [Line(cells, 0 if at else len(run)) for run in runs for at, cells in enumerate(run)]

    @property
    def notes(self) -> list[str]:
        """The caption, a paragraph each."""
        return [" ".join(map(str.strip, lines)) for lines in paragraphs(self.caption)]


def grouped(lines: Iterable[Sequence[Cell]]) -> list[list[Sequence[Cell]]]:
    """A group for the lines of each first cell."""
    return [list(run) for _, run in itertools.groupby(lines, key=lambda cells: cells[0])]


def paragraphs(text: str) -> list[list[str]]:
    """The lines of a text, together with those that begin with blanks and go on with them."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(" ") and found:
            found[-1].append(line)
        else:
            found.append([line])
    return found


def all_columns(rows: Iterable[Mapping], title: str = "") -> Table:
    """Whatever the rows hold that is one number, word or truth value; what is the same in all of
    them is a note."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    same = {n for n in names if len(flat) > 1 and len({str(row.get(n)) for row in flat}) == 1}
    varying = [name for name in names if name not in same]
    columns = [
        Column(name, all(isinstance(row.get(name), int | float | None) for row in flat))
        for name in varying
    ]
    lines = [[scalar(row.get(name)) for name in varying] for row in flat]
    told = [f"{n} {scalar(flat[0][n])}" for n in names if n in same and flat[0][n] is not None]
    same_in_all = f"the same in all rows: {', '.join(told)}" if told else ""
    return Table(title, columns, [lines] if lines else [], same_in_all)


def _flat(row: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is None or isinstance(value, str | int | float):
            yield f"{prefix}{name}", value


def scalar(value) -> str:
    """A number, word or truth value as a cell shows it; '' for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
