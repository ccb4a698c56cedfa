"""What evaluations print: tables, and what a reader should know beside them."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


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
    """In its full width or, where that is not there, with cells that take more lines, the widest
    first: none loses its end."""
    # A pipe has no width: give the table what it needs. Markup off: intervals have brackets.
    needed = Console(width=10_000, markup=False).measure(table).maximum
    width = None if sys.stdout.isatty() else max(132, min(needed, 160))
    console = Console(width=width, markup=False, highlight=False)
    if needed > console.width:
        for column in table.columns:
            column.no_wrap, column.overflow = False, "fold"
    console.print(table)


def print_reservations(results: dict) -> None:
    """Say it where several versions of the code computed parts of the results, and where there are
    more images to come."""
    commits = list(dict.fromkeys(signature["commit"] for signature in results["computed_by"]))
    if len(commits) > 1:
        print(f"computed by {len(commits)} versions of the code: {', '.join(commits)}")
    if results["stopped"]:
        print(results["stopped"])


def variant_lines(config, defenses: Iterable[str]) -> list[str]:
    """Of those defences that are variants, what they are."""
    variants = config.variants.to_dict()
    lines = []
    for name in (name for name in defenses if name in variants):
        said = [f"{k} {v}" for k, v in variants[name].items() if k != "purifier"]
        lines.append(f"{name}: {', '.join([variants[name]['purifier'], *said])}")
    return lines


def perturbation_lines(settings: Mapping) -> list[str]:
    """Of the score models that have learnt to undo something else than Gaussian noise, what; as the
    settings of Inputs have it."""
    models = {"score": settings} | settings.get("scores", {})
    learnt = {name: model.get("perturbation") for name, model in models.items()}
    return [f"{name}: learnt to undo {of['name']}" for name, of in learnt.items() if of]


def tell_written(paths: Iterable[Path]) -> None:
    print("\nwritten:\n" + "\n".join(f"  {path}" for path in paths))


def stopped_early(taken: int, needed: int, max_images: int | None) -> str:
    """The words for it where --max_images leaves images for later, else ''."""
    if taken >= needed:
        return ""
    return (
        f"stopped after {taken} of {needed} images (--max_images={max_images}); the same "
        "command with more of them, or without it, goes on from here"
    )
