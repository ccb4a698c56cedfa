"""The networks that are shipped: what they are, what they do to real images; and `make cifar10`."""

import json
import os
import subprocess

import jax
import numpy as np
import pytest

from purify import models
from purify.data import datasets
from purify.data.image_io import to_float
from purify.models.networks import Classifier, Score
from purify.purifiers import OneStep
from purify.random import image_keys
from purify.saving import weight_files
from purify.saving.checkpoint import weight_hash
from tests.command import ROOT
from tests.test_import_weights import SHARED, WEIGHTS, needs_shared

SHIPPED = ROOT / "pretrained" / "cifar10_unet.safetensors"
BASELINE = ROOT / "pretrained" / "cifar10_pgd_at.safetensors"
TFDS = SHARED / "tfds"


def shipped() -> tuple[Score, dict]:
    settings, variables = weight_files.load(SHIPPED)
    return Score(variables, models.build(**settings["network"]), settings["head"]), settings


def test_the_shipped_score_model_is_small_and_says_what_made_it():
    score, settings = shipped()
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(score.variables))
    assert count < 1_000_000 and SHIPPED.stat().st_size <= 4e6
    assert settings["image_shape"] == [32, 32, 3] and settings["data"]["name"] == "cifar10"
    assert settings["data"]["train_split"] == "train[:3500]"  # the rest was kept for choices
    card = (ROOT / "pretrained" / "README.md").read_text()
    assert SHIPPED.name in card and f"{count:,}" in card


def test_the_shipped_baseline_is_what_its_card_says():
    settings, variables = weight_files.load(BASELINE)
    assert settings["adversarial"]["method"] == "pgd_at"
    assert settings["adversarial"]["eps"] == pytest.approx(8 / 255)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    card = (ROOT / "pretrained" / "README.md").read_text()
    assert BASELINE.name in card and f"{count:,}" in card and weight_hash(variables) in card


@needs_shared
def test_the_shipped_baseline_is_right_on_half_of_real_images():
    """48 of the first 100 when it was measured: an image more or less is rounding."""
    settings, variables = weight_files.load(BASELINE)
    classifier = Classifier(variables, models.build(**settings["network"]))
    test = datasets.load("cifar10", "test[:100]", data_dir=TFDS)
    answers = np.asarray(jax.jit(jax.vmap(classifier))(to_float(test.images))).argmax(-1)
    assert 46 <= (answers == test.labels).sum() <= 50


@needs_shared
def test_the_shipped_score_model_denoises_real_images():
    """One step takes away at least three quarters of the noise's energy at sigma 0.25, and half of
    it at 0.1 (images of the test split, which it never saw)."""
    score, _ = shipped()
    images = to_float(datasets.load("cifar10", "test[:50]", data_dir=TFDS).images)
    keys = image_keys(0, np.arange(len(images)))
    for sigma, share in ((0.25, 0.25), (0.1, 0.5)):
        purified = jax.jit(jax.vmap(OneStep(score, sigma)))(keys, images)
        assert np.mean((purified - images) ** 2) < share * sigma**2


@pytest.mark.slow
@needs_shared
def test_make_cifar10_evaluates_without_training(tmp_path):
    budget = {
        "eval.num_images": 4,
        "eval.batch_size": 4,
        "eval.num_draws": 2,
        "eval.defenses": '("identity","noise_only","schedule")',
        "eval.attacks": '("blind",)',
        "attacks.blind.num_steps": 2,
        "defense.num_runs": 2,
        "defense.purifier": "schedule",
    }
    arguments = " ".join(f"'--config.{field}={value}'" for field, value in budget.items())
    command = [
        *("make", "cifar10", f"CIFAR10_RUN={tmp_path}/run", f"TFDS_DATA_DIR={TFDS}"),
        f"ARGS={arguments}",
    ]
    without = {k: v for k, v in os.environ.items() if k != "TFDS_DATA_DIR"}
    run = lambda more=(): subprocess.run(  # noqa: E731
        [*command, *more], cwd=ROOT, env=without, capture_output=True, text=True
    )
    missing = run()  # no classifier: the way to one is told
    assert missing.returncode and "--mode=train_classifier" in missing.stderr, missing.stderr
    for _ in range(2):  # the second time nothing is left to do
        result = run([f"CLASSIFIER={WEIGHTS}"])
        assert result.returncode == 0, result.stderr[-3000:]
    (path,) = (tmp_path / "run/eval_robust").glob("*/results.json")
    names = {row["defense"]["name"] for row in json.loads(path.read_text())["rows"]}
    assert names == {"identity", "noise_only", "schedule"}
