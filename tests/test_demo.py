"""The claims that the README makes of `make demo`, on a fresh run of it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from purify.data import datasets
from purify.data.image_io import to_float
from purify.purifiers.adp import ADP, CURVATURES
from purify.random import image_keys
from purify.saving.checkpoint import load_score
from tests.command import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_as_for_users")]


@dataclasses.dataclass(frozen=True)
class Demo:
    workdir: Path
    tfds: Path
    results: dict


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    workdir, baseline, tfds = folder / "digits", folder / "digits_pgd_at", folder / "tfds"
    for variant, mode, where in (
        ("", "train_classifier", workdir),
        (":pgd_at", "train_classifier", baseline),
        ("", "train", workdir),
        ("", "eval_robust", workdir),
        ("", "report", workdir),
    ):
        arguments = [f"--config=configs/digits.py{variant}", f"--mode={mode}", f"--workdir={where}"]
        if mode == "eval_robust":
            arguments.append(f"--config.variants.pgd_at.classifier={baseline}")
        result = main(*arguments, tfds=tfds)
        assert result.returncode == 0, result.stderr
    (folder,) = (workdir / "eval_robust").iterdir()
    return Demo(workdir, tfds, json.loads((folder / "results.json").read_text()))


def test_the_demo_shows_what_the_readme_says(demo):
    rows = {
        (row["defense"]["name"], row["attack"]): row
        for row in demo.results["rows"]
        if row["protocol"] == "mean" and not row["single_run"]
    }
    assert rows["identity", "clean"]["accuracy"] >= 0.97
    assert rows["identity", "blind"]["accuracy"] < 0.25
    assert rows["pgd_at", "clean"]["accuracy"] >= 0.95
    assert rows["pgd_at", "blind"]["accuracy"] >= 0.6
    won = {(c["a"], c["b"]) for c in demo.results["comparisons"] if c["beats"]}
    for attack in ("blind", "bpda"):
        for baseline in ("identity", "noise_only"):
            assert (f"adp-{attack}", f"{baseline}-{attack}") in won
    bpda, exact = rows["adp", "bpda"], rows["adp", "exact"]
    for field in ("loss", "norm", "eps", "eot", "eot_samples", "attack_steps", "restarts"):
        assert bpda[field] == exact[field], field


def test_the_demo_ends_with_a_report_of_its_numbers(demo):
    page = (demo.workdir / "report.html").read_text()
    assert len(page) < 3_000_000
    for row in demo.results["rows"]:
        if row["defense"]["name"] == "adp" and row["protocol"] == "mean" and not row["single_run"]:
            assert f">{100 * row['accuracy']:.1f} [" in page, row["attack"]
    assert page.count('class="card ') == 4 * 100  # blind, bpda, exact, strongest


def purified(adp, images, batch_size: int):
    """Purified images and the steps taken, in padded batches of one shape."""
    program = jax.jit(lambda adp, keys, x: jax.vmap(adp.trace)(keys, x))
    parts = []
    for start in range(0, len(images), batch_size):
        at = np.resize(np.arange(start, min(start + batch_size, len(images))), batch_size)
        x, trace = jax.device_get(program(adp, image_keys(0, at), images[at]))
        parts.append((x, trace.steps))
    return [np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("curvature", CURVATURES)
def test_batch_sizes_change_a_purified_image_by_rounding_only(demo, curvature):
    """Rounding of h is about 1e-6; a finite difference divides it by delta = 1e-3."""
    dataset = datasets.load("digits8x8", "train[:512]", data_dir=demo.tfds)
    adp = ADP(load_score(demo.workdir), curvature=curvature)
    (one, steps), (other, other_steps) = (
        purified(adp, to_float(dataset.images), batch_size) for batch_size in (512, 48)
    )
    flipped = steps != other_steps
    assert flipped.mean() < 0.01
    moved = np.abs(one - other).max((1, 2, 3))[~flipped]
    assert moved.max() < (1e-3 if curvature == "finite_difference" else 1e-4)
