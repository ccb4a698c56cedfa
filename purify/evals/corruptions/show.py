"""What an evaluation on corruptions leaves: results.json, a figure, the table on the terminal.

The image is the unit everywhere: what is averaged, over draws, severities or corruptions, is
averaged within an image first, and intervals are over images.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from purify.data.corruptions import EXTRA
from purify.evals import plots
from purify.evals.attacked.results import cost_fields, defense_fields, estimate
from purify.evals.attacked.rows import Row
from purify.evals.core.figures import drawn
from purify.evals.core.inputs import Inputs
from purify.evals.core.result_files import write_results
from purify.evals.core.show import Shown
from purify.evals.core.stats import paired_difference
from purify.evals.core.tables import Column, Interval, Table, percent
from purify.evals.core.terminal import (
    perturbation_lines,
    print_reservations,
    print_table,
    shared_options,
    tell_written,
    variant_lines,
)

CLEAN = "clean"
UNDEFENDED = "identity"
# The entries over several corruptions.
MEAN, EXTRA_MEAN = "mean", "extra_mean"


def write(
    config,
    evaluation,
    rows: list[Row],
    cases: Sequence,
    settings: dict,
    inputs: Inputs,
    *,
    source: str | None,
) -> None:
    """Write results.json and the figure; print the table and the paths.

    cases: of evals.corruptions, by whose names the rows are named. source: the folder that the
    corrupted images were read from, None where they were made.
    """
    store, seed = evaluation.store, config.seed
    done = {}
    for row in rows:
        records, indices = store.records(row.name), evaluation.indices[: row.num_images]
        done[row.defense_name, row.attack_name] = row, [records[int(index)] for index in indices]
    frost = not source and any(case.corruption == "frost" for case in cases)
    results = {
        "title": inputs.titled(_title(config, rows[0].num_images, source, settings)),
        "note": FROST if frost else "",
        "rows": result_rows(done, cases, seed=seed),
        "means": corruption_means(done, cases, seed=seed),
        "source": source,
        "weights": settings["weights"],
        **store.computed_by(),
        "trained": inputs.trained(),
        "config": config.to_dict(),
    }
    paths = [write_results(store.folder, results), store.folder / "images.jsonl"]
    print_table(results_table(results))
    print_reservations(results)
    tell_written([*paths, *draw_figures(store.folder / "figures", results)])


def result_rows(done: Mapping, cases: Sequence, *, seed: int) -> list[dict]:
    """The entries of results.json for each defence and case, and for clean images (severity 0).

    done: (defence, name of the case or CLEAN) -> (row, its records).
    """
    which = {case.name: (case.corruption, case.severity) for case in cases}
    entries = []
    for (_, name), (row, records) in done.items():
        corruption, severity = which.get(name, (CLEAN, 0))
        values = _per_image(records)
        accuracy = estimate(values, one_outcome=row.num_draws == 1, seed=seed)
        entries.append(
            {
                "defense": defense_fields(row),
                "corruption": corruption,
                "severity": severity,
                "num_images": accuracy.n,
                "num_draws": row.num_draws,
                "protocol": "mean",
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                **cost_fields(records),
                "seed": seed,
            }
        )
    return entries


def corruption_means(done: Mapping, cases: Sequence, *, seed: int) -> list[dict]:
    """For each defence: clean, the mean over severities of each corruption, and over those of the
    15 corruptions (MEAN) and of the 4 extra ones (EXTRA_MEAN) that there are.

    Each with its accuracy and, where the undefended classifier is among the defences, the paired
    difference from it; better, worse: its 95 % interval excludes 0.
    """
    cells = {CLEAN: [CLEAN]}
    for case in cases:
        cells.setdefault(case.corruption, []).append(case.name)
    for name, extra in ((MEAN, False), (EXTRA_MEAN, True)):
        if members := [case.name for case in cases if (case.corruption in EXTRA) == extra]:
            cells[name] = members
    defenses = dict.fromkeys(defense for defense, _ in done)
    entries = []
    for defense in defenses:
        for name, members in cells.items():
            values = _over(done, defense, members)
            row = done[defense, CLEAN][0]
            once = len(members) == row.num_draws == 1
            accuracy = estimate(values, one_outcome=once, seed=seed)
            entry = {
                "defense": defense_fields(row),
                "corruption": name,
                "of": members,
                "num_images": accuracy.n,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
            }
            if UNDEFENDED in defenses and defense != UNDEFENDED:
                difference = paired_difference(values, _over(done, UNDEFENDED, members), seed=seed)
                entry["difference"] = difference._asdict()
                entry |= {"better": difference.low > 0, "worse": difference.high < 0}
            entries.append(entry)
    return entries


def _per_image(records: list[dict]) -> np.ndarray:
    """The share of draws that are right, of each image: [n]."""
    return np.array([np.mean(record["correct"]) for record in records])


def _over(done: Mapping, defense: str, members: Iterable[str]) -> np.ndarray:
    """The same, averaged over several cases within each image: [n]."""
    return np.mean([_per_image(done[defense, name][1]) for name in members], axis=0)


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


def _title(config, num_images: int, source: str | None, settings: Mapping) -> str:
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
    "Common corruptions", says, lambda results: [results_table(results)], draw_figures, FIGURES
)
