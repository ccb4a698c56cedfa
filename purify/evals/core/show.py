"""What shows the results of a mode, on a terminal, in a report and as figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from purify.evals.core.tables import Table


def _nothing(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    return []


def title_says(results: Mapping) -> str:
    """The first line of the title."""
    return str(results["title"]).partition("\n")[0]


class Shown(NamedTuple):
    """How the results of a mode are shown, as results.json has them.

    title: of its section. says: results -> the line that stands for them in a summary. tables:
    results -> its tables. lines: results -> what a terminal says below them. draw: (folder,
    results, suffix) -> the figures that it drew there. figures: name of a figure, these or others
    of the mode -> its caption, and what it shows for who cannot see it.
    """

    title: str
    says: Callable[[Mapping], str]
    tables: Callable[[Mapping], Sequence[Table]]
    lines: Callable[[Mapping], Sequence[str]] = lambda results: ()
    draw: Callable[..., list[Path]] = _nothing
    figures: Mapping[str, tuple[str, str]] = {}
