"""Two evaluations compared: paired by image, refused where there is nothing to pair."""

import json

import pytest

from purify.evals.compare import compare, read_run
from purify.evals.core.stats import mcnemar, paired_difference
from purify.saving.jsonl import write_json, write_lines
from tests.command import main
from tests.written import RECORDS, scored

SETTINGS = {
    "seed": 0,
    "data": {"name": "digits8x8", "path": "", "test_split": "test"},
    "adp": {"sigma": 0.25},
    "images": "same",
}


SVHN = SETTINGS["data"] | {"name": "svhn"}


def make_run(folder, rows: dict[str, dict[int, list[bool]]], labels=None, **changes):
    """An evaluation's folder with these outcomes, row -> dataset index -> draws."""
    folder.mkdir(parents=True)
    write_json(folder / "settings.json", SETTINGS | changes)
    records = [
        scored(row, i, draws, (labels or {}).get(i, 1))
        for row, outcomes in rows.items()
        for i, draws in outcomes.items()
    ]
    attacks = [RECORDS["attack"] | {"index": i} for i in range(3)]
    write_lines(folder / "images.jsonl", records + attacks)
    return folder


@pytest.fixture
def two(tmp_path):
    """Rows that differ in their images and draws; the second run has another sigma and order."""
    ours = {i: [i < 30, i < 25] for i in range(40)}
    theirs = {i: [i < 12] for i in reversed(range(5, 60))}
    return (
        make_run(tmp_path / "a" / "eval_robust" / "1234", {"adp-bpda": ours, "adp-clean": ours}),
        make_run(tmp_path / "b", {"adp-bpda": theirs, "x-clean": ours}, adp={"sigma": 0.1}),
    )


def test_rows_of_both_are_paired_on_their_common_images(two):
    comparison = compare(*(read_run(folder) for folder in two))
    (entry,) = comparison["rows"]
    common = range(5, 40)
    means = [(i < 30) / 2 + (i < 25) / 2 for i in common]
    other = [float(i < 12) for i in common]
    expected = paired_difference(means, other, seed=0)
    assert (entry["row"], entry["num_images"]) == ("adp-bpda", 35)
    assert entry["accuracy_a"] == pytest.approx(sum(means) / 35)
    assert entry["accuracy_b"] == pytest.approx(7 / 35)
    assert (entry["mean_difference"], entry["low"], entry["high"]) == expected[:3]
    assert entry["mcnemar_p"] == mcnemar([i < 30 for i in common], other)
    assert comparison["differing_settings"] == ["adp.sigma: 0.25 -> 0.1"]


def test_the_command_prints_and_writes_the_table(two, tmp_path):
    output = tmp_path / "out.json"
    workdir = two[0].parent.parent  # a workdir with one evaluation stands for it
    command = ("--mode=compare", f"--input={workdir},{two[1]}", f"--output={output}")
    result = main(*command)
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(output.read_text())["rows"]
    shown = next(line for line in result.stdout.splitlines() if "adp-bpda" in line)
    assert f"{100 * entry['mean_difference']:+.1f} [" in shown and shown.rstrip().count("*") == 1
    assert "adp.sigma: 0.25 -> 0.1" in result.stdout
    assert f"A: {two[0]}, sigma 0.25\nB: {two[1]}, sigma 0.1\n" in result.stdout
    again = main(*command)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_what_cannot_be_paired_is_refused(two, tmp_path):
    a = read_run(two[0])
    rows = {"adp-bpda": {5: [True]}}
    other = read_run(make_run(tmp_path / "c", rows, images="svhn", data=SVHN))
    with pytest.raises(ValueError, match="data.name 'digits8x8' and 'svhn'"):
        compare(a, other)
    replaced = read_run(make_run(tmp_path / "g", rows, images="other"))
    with pytest.raises(ValueError, match="the files of data.name 'digits8x8' held others"):
        compare(a, replaced)
    relabelled = read_run(make_run(tmp_path / "d", rows, labels={5: 2}))
    with pytest.raises(ValueError, match="other labels"):
        compare(a, relabelled)
    with pytest.raises(ValueError, match="no row is in both"):
        compare(a, read_run(make_run(tmp_path / "e", {"adp-exact": {5: [True]}})))
    with pytest.raises(ValueError, match="is none"):
        read_run(tmp_path / "nowhere")
    for name in ("1", "2"):
        make_run(tmp_path / "f" / "eval_robust" / name, rows)
    with pytest.raises(ValueError, match="has 2 of them"):
        read_run(tmp_path / "f")
    assert main("--mode=compare", "--input=x").returncode == 2
