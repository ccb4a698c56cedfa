"""What reads results: each target writes a whole example into a folder, and reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from purify.evals.compare import compare, read_run
from purify.evals.core.store import read_records
from purify.evals.report import page
from purify.evals.report.runs import find_runs
from purify.saving import schema
from purify.saving.jsonl import read_json, read_lines, write_json, write_lines
from purify.saving.settings import read_settings
from tests.command import ROOT
from tests.written import RECORDS, SIGNATURE, robust_results, write_evaluation

DIGITS, NAME = ROOT / "docs" / "digits", "0123abcd"
CONFIG = {"data": {"name": "digits8x8", "test_split": "test"}, "seed": 0}


class Target(NamedTuple):
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def published(name: str, *rows: str, but: int = 4) -> dict:
    """A published results.json, of whose lists of rows the first ones are kept."""
    results = json.loads((DIGITS / name).read_text())
    return results | {field: results[field][:but] for field in rows}


def corrupted() -> dict:
    """Of two corruptions and all defences."""
    results = published("corruptions/results.json", "rows")
    kept = {"clean", results["means"][1]["corruption"]}
    return results | {"means": [e for e in results["means"] if e["corruption"] in kept]}


RESULTS: dict[str, Callable[[], dict]] = {
    "eval_robust": robust_results,
    "check_gradients": lambda: {
        "title": "gradients",
        "checks": [{"check": "blind", "verdict": "PASS", "p": 0.5, "numbers": {"blind": 0.5}}],
        "config": CONFIG,
    },
    "certify": lambda: published("certify.json"),
    "eval_corruptions": corrupted,
    "detect": lambda: published("detect.json", "rows"),
    "ablate": lambda: published("ablation.json", "rows", but=20),
    "sample": lambda: {
        "samples": {"num_images": 64, "file": "samples.npz"},
        "paths": [{"defense": {"name": "adp", "T": 2}, "index": 5, "steps": 2, "sizes": [1]}],
        "meaning": "samples",
        "config": CONFIG,
    },
}


def make_report(folder: Path, mode: str) -> None:
    """A workdir with one evaluation of that mode."""
    evaluation = folder / mode / NAME
    if mode == "eval_robust":
        write_evaluation(evaluation)
    else:
        evaluation.mkdir(parents=True)
        write_json(evaluation / "settings.json", {"seed": 0})
        write_json(evaluation / "results.json", RESULTS[mode]())


def read_report(folder: Path) -> str:
    found = find_runs([folder])
    return page.render(found.runs, found.points)


def make_two(folder: Path) -> None:
    for name in "ab":
        write_evaluation(folder / name)


def read_two(folder: Path) -> dict:
    return compare(*(read_run(folder / name) for name in "ab"))


TARGETS = {
    "records": Target(
        lambda folder: write_lines(folder / "images.jsonl", RECORDS.values()),
        lambda folder: read_records(folder / "images.jsonl"),
    ),
    "settings": Target(
        lambda folder: (folder / "settings.json").write_bytes(
            (DIGITS / "detect_then_purify" / "settings.json").read_bytes()
        ),
        read_settings,
    ),
    "metrics": Target(
        lambda folder: write_lines(folder / "metrics.jsonl", [{"step": 1, "loss": 0.5}] * 2),
        lambda folder: read_lines(folder / "metrics.jsonl", schema.metrics),
    ),
    "provenance": Target(
        lambda folder: write_lines(folder / "provenance.jsonl", [SIGNATURE] * 2),
        lambda folder: read_lines(folder / "provenance.jsonl", schema.signature),
    ),
    "json": Target(
        lambda folder: write_json(folder / "sha256.json", {"d/data": "0" * 64}),
        lambda folder: read_json(folder / "sha256.json"),
    ),
    "compare": Target(make_two, read_two),
    **{
        f"report of {mode}": Target(
            lambda folder, mode=mode: make_report(folder, mode),  # type: ignore[misc]
            read_report,
        )
        for mode in RESULTS
    },
}
