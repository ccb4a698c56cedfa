"""The claims that the README makes of `make demo`, on a fresh run of it."""

import json

import pytest

from tests.command import main


@pytest.mark.slow
def test_the_demo_shows_what_the_readme_says(tmp_path):
    workdir = tmp_path / "digits"
    for mode in ("train_classifier", "train", "eval_robust"):
        result = main(
            "--config=configs/digits.py",
            f"--mode={mode}",
            f"--workdir={workdir}",
            tfds=tmp_path / "tfds",
        )
        assert result.returncode == 0, result.stderr
    (folder,) = (workdir / "eval_robust").iterdir()
    results = json.loads((folder / "results.json").read_text())
    rows = {
        (row["defense"]["name"], row["attack"]): row
        for row in results["rows"]
        if row["protocol"] == "mean" and not row["single_run"]
    }
    assert rows["identity", "clean"]["accuracy"] >= 0.97
    assert rows["identity", "blind"]["accuracy"] < 0.25
    won = {(c["a"], c["b"]) for c in results["comparisons"] if c["beats"]}
    for attack in ("blind", "bpda"):
        for baseline in ("identity", "noise_only"):
            assert (f"adp-{attack}", f"{baseline}-{attack}") in won
    bpda, exact = rows["adp", "bpda"], rows["adp", "exact"]
    for field in ("loss", "norm", "eps", "eot", "eot_samples", "attack_steps", "restarts"):
        assert bpda[field] == exact[field], field
