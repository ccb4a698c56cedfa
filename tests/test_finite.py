"""Logits that are no numbers are no answers: every mode says so, of which defence and image."""

import dataclasses
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from purify.defense import Defense
from purify.evals import ablate, certify, corruptions, detect, gradients, robust, sample
from purify.evals.attacked.choosing import choose
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.rows import Row, strongest_of
from purify.evals.certify.measure import measure
from purify.evals.certify.plan import CertifyOptions, SmoothedRow
from purify.evals.core.engine import Engine, check_finite
from purify.evals.core.store import Store
from purify.purifiers import Identity, NoiseOnly
from purify.saving.checkpoint import Checkpoints, load_run
from purify.saving.settings import claim


@pytest.fixture(scope="module")
def broken(trained, tmp_path_factory):
    """A workdir whose score model is sound, and whose classifier has one NaN among its weights."""
    workdir = tmp_path_factory.mktemp("broken")
    shutil.copytree(trained.workdir / "score", workdir / "score")
    variables, settings, _ = load_run(trained.workdir, "classifier")
    leaves, structure = jax.tree.flatten(variables)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(jnp.nan)
    claim(workdir / "classifier", settings)
    with Checkpoints(workdir / "classifier", training=True) as checkpoints:
        checkpoints.save(0, {"ema": jax.tree.unflatten(structure, leaves)})
    return workdir


MODES = {
    "eval_robust": (robust, "identity-clean: logits", dict(eval__attacks=())),
    "eval_corruptions": (
        corruptions,
        "identity-clean: logits",
        dict(corruptions__names=("fog",), corruptions__num_images=4),
    ),
    "certify": (
        certify,
        "noise_only-0.25: logits",
        dict(certify__defenses=("noise_only",), certify__num_images=2, certify__num_samples=20),
    ),
    "detect": (
        detect,
        "'prediction_change' of calibration images",
        dict(detect__statistics=("prediction_change",), detect__num_images=4),
    ),
    "check_gradients": (
        gradients,
        "defense-exact: losses before the attack",
        dict(defense__purifier="identity", check__num_images=4, check__surrogate=""),
    ),
    "sample": (
        sample,
        "path-one_step: score norms or logits",
        dict(sample__purifiers=("one_step",), sample__num_images=0),
    ),
    "ablate": (
        ablate,
        "adp-clean: logits",
        dict(ablate__names=("T",), ablate__attacks=("blind",), ablate__num_images=4),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_classifier_with_a_nan_among_its_weights_answers_nothing(trained, broken, mode):
    """Counted as class 0, it would be right on a tenth of the images, and certified there."""
    module, said, changes = MODES[mode]
    with pytest.raises(ValueError, match=f"{said} .*not finite .* index [0-9]"):
        module.run(trained.config(**changes), broken)


@flax.struct.dataclass
class AfraidOfLight:
    """Two classes by the mean pixel; NaN for images much lighter than 0.5."""

    num_classes = 2

    def __call__(self, image):
        mean = image.mean()
        logits = jnp.stack([0.5 - mean, mean - 0.5])
        return jnp.where(mean > 0.55, jnp.nan, 1.0) * logits


def a_defense(purifier) -> Defense:
    return Defense(purifier, AfraidOfLight(), num_runs=1)


def an_engine(store, count: int = 3) -> Engine:
    images = np.full((count, 4, 4, 1), 0.49, np.float32)
    labels, indices = np.zeros(count, int), 10 + np.arange(count)
    return Engine(store, images, labels, indices, seed=0, batch_size=2)


def test_attacked_images_without_an_answer_are_named(tmp_path):
    """Where the defence gives no answer the gradient is NaN, and the image that follows it."""
    attack = attacks.build("pgd", eps=0.3, step_size=0.2, num_steps=2, selection_draws=1)
    defense = a_defense(Identity())
    options = {"gradient": "exact", "fixed_key": False}
    row = Row("mine", "exact", defense, attack, defense, options, num_images=3, num_draws=1)
    with Store(tmp_path, "eval_robust", {}) as store:
        with pytest.raises(ValueError, match="mine-exact: attacked images are not.*index 10, 11"):
            Evaluation(an_engine(store)).run([row])


def test_a_choice_among_images_without_an_answer_is_none(tmp_path):
    """Attacked elsewhere, or before an error was one: candidates are measured before they count."""
    attack = attacks.build("pgd", eps=0.3, step_size=0.2, num_steps=2, selection_draws=1)
    defense = a_defense(Identity())
    options = {"gradient": "exact", "fixed_key": False}
    row = Row("mine", "exact", defense, attack, defense, options, num_images=3, num_draws=1)
    other = dataclasses.replace(row, attack_name="other")
    strongest = strongest_of("strongest", [row, other], options, survivors=False)
    with Store(tmp_path, "eval_robust", {}) as store:
        engine = an_engine(store)
        engine.progress = Silent()
        evaluation = Evaluation(engine)
        for each in (row, other):
            images = np.full((3, 4, 4, 1), 0.79, np.float32)
            store.write(each.crafted, images.shape, range(3), images)
            done = {"loss": 1.0, "start_loss": 0.0, "interim_success": True, "distance": 0.3}
            costs = dict(queries=1, nfe=0, nge=0, seconds=0.0)
            store.append(
                f"attack:{each.crafted}", [{"index": 10 + i} | done | costs for i in range(3)]
            )
        with pytest.raises(ValueError, match="mine-strongest: margins of mine-exact images"):
            seams = dict(attack=evaluation.attack, images=evaluation.attacked_images)
            choose(engine, strongest, [0, 1, 2], **seams)


class Silent:
    """A progress bar that shows nothing."""

    total = n = 0

    def set_description(self, text):
        pass

    def update(self, work):
        pass

    def write(self, text):
        pass


def test_a_sample_without_an_answer_certifies_nothing(tmp_path):
    """One of hundreds is enough: among 16 pixels of noise some samples are lighter."""
    images = np.full((1, 4, 4, 1), 0.5, np.float32)
    options = CertifyOptions(("mine",), num_selection=10, chunk=200)
    row = SmoothedRow("mine", a_defense(NoiseOnly(0.25)), 0.25, 1, 500, 10)
    with Store(tmp_path, "certify", {}) as store:
        engine = Engine(store, images, np.zeros(1, int), np.array([7]), seed=0)
        with (
            pytest.raises(ValueError, match="mine-0.25: logits of the defence .* index 7"),
            engine.working([row.job]),
        ):
            measure(engine, [row], options, num_classes=2)
        assert not store.records("mine-0.25")


def test_images_are_named_by_their_index_and_few_at_once():
    values = np.zeros((9, 2))
    check_finite(values, np.arange(9), "logits")
    values[1:, 1] = np.inf
    with pytest.raises(
        ValueError, match=r"^mine are not .* 8 of 9 images, index 11, .*15, \.\.\.:"
    ):
        check_finite(values, 10 + np.arange(9), "mine")
