"""configs/cifar10.py from end to end: its tiny variant, and one step of the full-size networks."""

import json

import numpy as np
import pytest

from purify.saving.jsonl import read_lines
from tests.command import main

TINY = "--config=configs/cifar10.py:tiny"
FULL = "--config=configs/cifar10.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Flags that make a data set of coloured noise, whose mean colour is its class."""
    rng = np.random.default_rng(0)
    path, arrays = tmp_path_factory.mktemp("data") / "images.npz", {}
    for split, n in (("train", 64), ("test", 16)):
        labels = np.arange(n) % 4
        colours = 0.3 + 0.4 * np.eye(4, 3)[labels]
        noise = 0.1 * rng.standard_normal((n, 32, 32, 3))
        arrays[f"{split}_images"] = np.clip(colours[:, None, None] + noise, 0, 1).astype(np.float32)
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)
    return "--config.data.name=npz", f"--config.data.path={path}"


def run(*arguments, devices: int = 1) -> str:
    result = main(*arguments, devices=devices)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_tiny_variant_runs_on_four_devices(images, tmp_path):
    workdir = f"--workdir={tmp_path}"
    for mode in ("train_classifier", "train", "eval_robust"):
        shown = run(TINY, f"--mode={mode}", *images, workdir, devices=4)
    assert "adp" in shown and "results.json" in shown
    (results,) = (tmp_path / "eval_robust").glob("*/results.json")
    results = json.loads(results.read_text())
    assert results["computed_by"][0]["devices"] == 4
    clean = {
        row["defense"]["name"]: row["accuracy"]
        for row in results["rows"]
        if row["attack"] == "clean" and row["protocol"] == "mean" and not row["single_run"]
    }
    assert clean["identity"] == 1.0  # the colours are told apart: batch normalisation works
    assert set(clean) == {"identity", "noise_only", "one_step", "schedule", "adp"}


@pytest.mark.slow
def test_batch_normalisation_sees_the_batch_of_all_devices(images, tmp_path):
    """Its mean and variance, and so the loss and the gradient, of the first steps."""
    reports = []
    for devices in (1, 4):
        few = ("num_steps=3", "warmup_steps=0", "log_every=1", "augment=none")
        few = [f"--config.classifier.train.{change}" for change in few]
        folder = tmp_path / str(devices)
        workdir = f"--workdir={folder}"
        run(TINY, "--mode=train_classifier", *images, *few, workdir, devices=devices)
        reports.append(read_lines(folder / "classifier/metrics.jsonl"))
    for one, four in zip(*reports, strict=True):
        assert one == pytest.approx(four, rel=1e-4)


@pytest.mark.slow
def test_the_small_variants_certify_a_cache_full_at_once(images, tmp_path):
    workdir = f"--workdir={tmp_path}"
    for mode, role in (("train_classifier", "classifier"), ("train", "score")):
        once = [f"--config.{role}.train.{field}" for field in ("num_steps=1", "warmup_steps=0")]
        run(TINY, f"--mode={mode}", *images, *once, workdir)
    few = [f"--config.certify.{field}" for field in ("num_images=2", "num_samples=64")]
    run(TINY, "--mode=certify", *images, *few, workdir)
    (folder,) = (tmp_path / "certify").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert [row["defense"]["name"] for row in results["rows"]] == ["noise_only", "one_step"]
    assert results["computed_by"][0]["chunk"] == 32
    records = read_lines(folder / "images.jsonl")
    assert len(records) == 4 and {sum(record["counts"]) for record in records} == {64}


@pytest.mark.slow
def test_the_full_size_networks_take_a_training_and_a_purification_step(images, tmp_path):
    workdir = f"--workdir={tmp_path}"
    one_step = [
        f"--config.{role}.train.{field}={value}"
        for role in ("classifier", "score")
        for field, value in (
            ("num_steps", 1),
            ("batch_size", 2),
            ("warmup_steps", 0),
        )
    ]
    shown = run(FULL, "--mode=train_classifier", *images, *one_step, workdir)
    assert "36,475,348 parameters" in shown
    shown = run(FULL, "--mode=train", *images, *one_step, workdir)
    assert "29,694,083 parameters" in shown
    given, output = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(given, np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    files = (f"--input={given}", f"--output={output}")
    few = ("--config.adp.num_steps=1", "--config.eval.batch_size=2")
    run(FULL, "--mode=purify", *files, *images, *few, workdir)
    assert (np.load(output) != np.load(given)).any()
