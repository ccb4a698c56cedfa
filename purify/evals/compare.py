"""--mode=compare: two evaluations, row by row, on the images that both have."""

import os
from pathlib import Path
from typing import NamedTuple

from purify.evals.attacked.results import pair
from purify.evals.core.labels import labels
from purify.evals.core.store import read_records
from purify.evals.core.tables import Column, Interval, Table
from purify.evals.core.terminal import print_table
from purify.runtime.errors import FileError
from purify.runtime.messages import as_text, few, printable, shown
from purify.runtime.paths import same_path, split_paths
from purify.saving.files import inside
from purify.saving.jsonl import write_json
from purify.saving.settings import differing_settings, read_settings

IMAGES = ("name", "path", "test_split")  # of the settings' data: which images it is about


class Run(NamedTuple):
    """The folder of one evaluation: its settings, and its records by row."""

    folder: Path
    settings: dict
    rows: dict[str, list[dict]]


def run(config, workdir: Path | None, input: str | None, output: str | None) -> None:
    """Print the paired differences of the rows that two evaluations share, and write them.

    input: 'RUN_A,RUN_B', each the folder of an evaluation, or a workdir with exactly one of them.
    output: a .json file for the same numbers. Raises ValueError where the two are not of the same
    images, or share no row.
    """
    folders = split_paths(input or "")
    if len(folders) != 2:
        raise ValueError("--mode=compare needs --input=RUN_A,RUN_B, two folders of evaluations")
    if output and os.path.lexists(output):
        raise ValueError(
            f"'{shown(output)}' exists already; choose another --output, or move it away"
        )
    a, b = map(read_run, folders)
    comparison = compare(a, b)
    print_comparison(comparison)
    if output:
        write_json(Path(output), comparison)
        print(f"\nwritten: {shown(output)}")


def read_run(folder: Path) -> Run:
    """The evaluation in `folder`, finished or not; ValueError where there is none."""
    found = [path.parent.name for path in sorted(folder.glob("eval_robust/*/images.jsonl"))]
    own = os.path.lexists(folder / "images.jsonl")
    if not own and len(found) != 1:
        some = f"has {len(found)} of them: {few(found)}" if found else "is none"
        raise ValueError(f"'{shown(folder)}' must be the folder of an evaluation, but {some}")
    folder = folder if own else inside(folder, "eval_robust", found[0])
    rows = {
        name: list(records.values())
        for name, records in read_records(inside(folder, "images.jsonl")).items()
        if all("correct" in record for record in records.values())  # others: what an attack did
    }
    settings = read_settings(folder)
    for field, holds in (("seed", settings), *((f, settings.get("data", {})) for f in IMAGES)):
        if field not in holds:
            name = field if field == "seed" else f"data.{field}"
            raise FileError(f"'{shown(folder / 'settings.json')}' lacks {name}: bring it back")
    return Run(folder, settings, rows)


def compare(a: Run, b: Run) -> dict:
    """Every row of both: accuracies on the common images, and their difference, a minus b."""
    _check_same_images(a, b)
    shared = [name for name in a.rows if name in b.rows]
    if not shared:
        raise ValueError(
            f"no row is in both: {shown(a.folder)} has {few(a.rows, limit=20)}; {shown(b.folder)} "
            f"has {few(b.rows, limit=20)}"
        )
    entries = []
    for name in shared:
        ours, theirs = ({r["index"]: r for r in run.rows[name]} for run in (a, b))
        common = sorted(ours.keys() & theirs.keys())
        if any(ours[i]["label"] != theirs[i]["label"] for i in common):
            raise ValueError(
                f"{printable(name)}: the images of equal index have other labels in the other"
            )
        if not common:
            continue
        sides = [[side[i] for i in common] for side in (ours, theirs)]
        accuracies = (sum(_mean(r) for r in side) / len(side) for side in sides)
        entries.append(
            {"row": name}
            | dict(zip(("accuracy_a", "accuracy_b"), accuracies, strict=True))
            | pair(*sides, seed=a.settings["seed"])
        )
    return {
        "a": str(a.folder),
        "b": str(b.folder),
        "labels": dict(zip("ab", labels([a.settings, b.settings]), strict=True)),
        "differing_settings": differing_settings(a.settings, b.settings),
        "rows": entries,
    }


def _check_same_images(a: Run, b: Run) -> None:
    """ValueError unless both are of the same images, wherever these lay: by their hash or, where
    some were attacked elsewhere or an earlier version kept no hash, by what config.data says."""
    settings = a.settings, b.settings
    hashes = {of.get("images") for of in settings}
    given = any(of.get("given") for of in settings)  # attacked elsewhere: never the same
    if not given and len(hashes) == 1 and None not in hashes:
        return
    data = [of["data"] for of in settings]
    for field in IMAGES:
        ours, theirs = (of[field] for of in data)
        if not (same_path(ours, theirs) if field == "path" else ours == theirs):
            raise ValueError(
                f"{shown(a.folder)} and {shown(b.folder)} are of different images: data.{field} "
                f"{printable(repr(ours))} and {printable(repr(theirs))}"
            )
    if not given and len(hashes) > 1:
        raise ValueError(
            f"{shown(a.folder)} and {shown(b.folder)} are of different images: the files of "
            f"data.name {printable(repr(data[0]['name']))} held others"
        )


def print_comparison(comparison: dict) -> None:
    sides = [(side, comparison[side.lower()], comparison["labels"][side.lower()]) for side in "AB"]
    said = [
        printable(f"{side}: {as_text(folder)}{f', {label}' if label else ''}", limit=2000)
        for side, folder, label in sides
    ]
    numbers = (Column(name, numeric=True) for name in ("n", "A", "B", "A - B [95 %]", "p"))
    lines = [
        (
            entry["row"],
            str(entry["num_images"]),
            *(f"{100 * entry[f'accuracy_{side}']:.1f}" for side in "ab"),
            _difference(entry),
            f"{entry['mcnemar_p']:.2g}",
        )
        for entry in comparison["rows"]
    ]
    print_table(Table("\n".join(said), [Column("row"), *numbers], [lines], CAPTION))
    differing = comparison["differing_settings"]
    print("settings that differ, A -> B:" if differing else "all settings are the same")
    print("\n".join(f"  {printable(line)}" for line in differing))


def _difference(entry: dict) -> Interval:
    value, low, high = (100 * entry[name] for name in ("mean_difference", "low", "high"))
    mark = " " if low <= 0 <= high else "*"
    return Interval(value, low, high, end_digits=1, signed=True, after=mark)


CAPTION = """\
A, B: mean over draws of the images that both have, in %; A - B: paired over these images
p: McNemar's exact test on the first draw of each;  *: the interval excludes 0"""


def _mean(record: dict) -> float:
    return sum(record["correct"]) / len(record["correct"])
