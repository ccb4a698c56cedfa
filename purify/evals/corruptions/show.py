"""The table and the figure of an evaluation on corruptions, from results.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from purify.data.corruptions import EXTRA
from purify.evals import plots
from purify.evals.core.figures import drawn
from purify.evals.core.show import Shown
from purify.evals.core.tables import Column, Interval, Table, percent
from purify.evals.core.terminal import (
    perturbation_lines,
    shared_options,
    variant_lines,
)
from purify.evals.corruptions.numbers import CLEAN, EXTRA_MEAN, MEAN


def _over_several(entry: Mapping) -> bool:
    return entry["corruption"] in (MEAN, EXTRA_MEAN)


def draw_figures(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    """Draw what the means of results.json say, as files of that suffix; their paths."""
    shown = [entry for entry in results["means"] if not _over_several(entry)]
    return drawn(
        folder / f"corruptions{suffix}", lambda path: plots.corruption_accuracies(path, shown)
    )


def results_table(results: Mapping) -> Table:
    """Corruptions by defences, means over severities; then mean corruption errors."""
    caption = "\n".join(filter(None, [CAPTION, results.get("note")]))
    names = list(dict.fromkeys(entry["defense"]["name"] for entry in results["means"]))
    columns = [Column("corruption"), *(Column(name, numeric=True, wraps=True) for name in names)]
    lines: dict[str, list[dict]] = {}
    for entry in results["means"]:
        lines.setdefault(entry["corruption"], []).append(entry)
    common = [name for name in lines if name not in (CLEAN, MEAN, EXTRA_MEAN, *EXTRA)]
    extra = [name for name in lines if name in EXTRA]
    groups = [
        [(_label(name, common, extra), *map(_cell, lines[name])) for name in group if name in lines]
        for group in ([CLEAN], common, [MEAN], extra, [EXTRA_MEAN])
    ]
    return Table(results["title"], columns, list(filter(None, groups)), caption)


def says(results: Mapping) -> str:
    """The mean error of each defence."""
    means = [entry for entry in results["means"] if entry["corruption"] == MEAN]
    errors = (f"{e['defense']['name']} {100 * (1 - e['accuracy']):.1f} %" for e in means)
    return f"mean error: {', '.join(errors)}" if means else ""


def _label(name: str, common: list[str], extra: list[str]) -> str:
    if name == MEAN:
        return f"mean error of {len(common)}"
    return f"mean error of {len(extra)} extra" if name == EXTRA_MEAN else name


def _cell(entry: dict) -> Interval:
    """'accuracy [95 %]' in %, or the error of a mean, and its sign against the undefended one."""
    mark = "+" if entry.get("better") else "-" if entry.get("worse") else " "
    cell = percent(entry, "accuracy", after=mark)
    if not _over_several(entry):
        return cell
    value, low, high = 100 - cell.value, 100 - cell.high, 100 - cell.low
    return dataclasses.replace(cell, value=value, low=low, high=high)


CAPTION = """\
accuracy in %, mean over draws and severities [95 %, bootstrap over images, exact where an image
  has one outcome]; identity: the undefended classifier
mean error: 100 less the mean accuracy over the corruptions above it
+, -: better or worse than the undefended classifier (paired 95 % interval excludes 0; of many such
  marks one in twenty comes by chance)"""
FROST = "frost: a texture of our own, not comparable with CIFAR-10-C's photographs"


def title(config, num_images: int, source: str, settings: Mapping) -> str:
    """The settings that the whole table shares."""
    cfg = config.corruptions
    severities = ", ".join(map(str, sorted(set(cfg.severities))))
    shared = (
        f"{config.data.name} {config.data.test_split}, n {num_images}, severities {severities}"
        f"{shared_options(config, cfg.defenses, cfg.num_draws)}"
    )
    given = [f"corrupted images: {source}"] if source else []
    variants = variant_lines(config, cfg.defenses)
    return "\n".join([shared, *given, *variants, *perturbation_lines(settings)])


FIGURES = {
    "corruptions": (
        "Accuracy by corruption and defence",
        "Accuracy of each defence on each corruption, with 95 % intervals; the numbers are in "
        "the table",
    ),
}
SHOWN = Shown(
    "Common corruptions",
    says,
    lambda results: [results_table(results)],
    draw=draw_figures,
    figures=FIGURES,
)
