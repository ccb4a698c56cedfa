"""Detect, then purify: which branch is taken, its gradient, and attacks that look natural."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.gradients import attacked_purifier
from purify.defense import Defense
from purify.detectors import Penalty
from purify.evals.attacked.results import defense_fields
from purify.evals.attacked.rows import Row
from purify.evals.sample.measure import ShownPath
from purify.purifiers import Identity, NoiseOnly, OneStep, Schedule, build
from purify.purifiers.adp import ADP
from purify.purifiers.detect_then_purify import DetectThenPurify, score_norm
from purify.purifiers.noise import add_noise
from purify.types import Stepwise
from tests.oracles import LinearScore
from tests.test_ascent import Linear, quick

SHAPE, KEY = (2, 3, 2), jax.random.key(0)
MEAN = jnp.full(SHAPE, 0.5)
# h(x) = mean - x: its norm is the rms distance from mid-grey.
SCORE = LinearScore(jnp.eye(12), MEAN)


def detector(threshold=0.2, **parts) -> DetectThenPurify:
    parts = dict(natural=OneStep(SCORE, sigma=0.05), suspected=Schedule(SCORE)) | parts
    return DetectThenPurify(SCORE, **parts, threshold=threshold)


def at_norm(norm: float):
    """An image of that score norm."""
    offset = np.random.default_rng(0).standard_normal(SHAPE)
    return jnp.asarray(0.5 + norm * offset / np.sqrt(np.mean(offset**2)), jnp.float32)


def test_the_score_norm_is_the_root_mean_square():
    assert score_norm(SCORE, at_norm(0.17)) == pytest.approx(0.17, rel=1e-5)


def test_the_score_norm_has_a_gradient_where_h_is_zero():
    """That of the square root there would be infinite, times 0."""
    gradient = jax.grad(lambda x: score_norm(SCORE, x))(MEAN)
    np.testing.assert_array_equal(gradient, 0.0)


def test_an_image_just_at_the_threshold_is_natural():
    image = at_norm(0.2)
    assert not detector(float(score_norm(SCORE, image))).is_suspected(image)


@pytest.mark.parametrize(("norm", "branch"), [(0.199, "natural"), (0.201, "suspected")])
def test_the_score_norm_decides_which_part_purifies(norm, branch):
    purifier, image = detector(), at_norm(norm)
    np.testing.assert_array_equal(purifier(KEY, image), getattr(purifier, branch)(KEY, image))
    traced, trace = purifier.trace(KEY, image)
    np.testing.assert_array_equal(traced, purifier(KEY, image))
    assert trace.steps == {"natural": 1, "suspected": 5}[branch]
    assert trace.step_sizes.shape == (5,) and trace.nfe == purifier.nfe == 1 + 1 + 5


@pytest.mark.parametrize(("norm", "branch"), [(0.199, "natural"), (0.201, "suspected")])
@pytest.mark.parametrize("natural", [OneStep(SCORE, sigma=0.05), NoiseOnly(0.05), Identity()])
def test_the_path_is_that_of_the_part_that_purifies(norm, branch, natural):
    """From its noised image to what it makes of that, as long as the other one may take."""
    purifier, image = detector(natural=natural), at_norm(norm)
    path, trace = purifier.path(KEY, image)
    part = getattr(purifier, branch)
    assert isinstance(purifier, Stepwise) and path.shape == (1 + 5, *SHAPE)
    assert len(path) + 1 == ShownPath("", purifier, None).length
    noised = add_noise(KEY, image, getattr(part, "sigma", 0.0))
    np.testing.assert_allclose(path[0], noised, rtol=1e-6)
    purified, of_call = purifier.trace(KEY, image)
    np.testing.assert_allclose(path[-1], purified, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), trace, of_call)
    for after in path[1 + int(trace.steps) :]:
        np.testing.assert_array_equal(after, path[-1])


def test_results_tell_what_decides_and_both_parts():
    """Beside the entries that every defence has."""
    purifier = detector(0.3, natural=Schedule(SCORE, sigma=0.1, num_steps=7), suspected=ADP(SCORE))
    of = {
        name: defense_fields(Row(name, "clean", Defense(own, None), None, None, {}, 1, 1))
        for name, own in (("detecting", purifier), ("adp", purifier.suspected))
    }
    own = {"sigma": 0.25, "second_sigma": None, "T": 10, "curvature": "jvp"}
    assert of["adp"] == {"name": "adp", **own, "S": 10, "average": "logits"}
    natural = {"sigma": 0.1, "second_sigma": None, "T": 7, "curvature": None}
    decides = {"threshold": 0.3, "natural": natural, "suspected": own}
    assert of["detecting"] == of["adp"] | {"name": "detecting"} | decides


@pytest.mark.parametrize("norm", [0.199, 0.201])
def test_the_exact_gradient_is_that_of_the_branch_that_is_taken(norm):
    attacked, image = attacked_purifier("exact", detector()), at_norm(norm)
    part = attacked.natural if norm < 0.2 else attacked.suspected
    by_both, by_one = (
        jax.grad(lambda x, p=p: jnp.sum(p(KEY, x) ** 2))(image) for p in (attacked, part)
    )
    np.testing.assert_allclose(by_both, by_one, rtol=1e-6)


def test_a_gradient_mode_reaches_every_part():
    adp = build("adp", SCORE)
    exact = attacked_purifier("exact", detector(natural=adp, suspected=adp))
    assert adp.loop == "while" and exact.natural.loop == exact.suspected.loop == "scan"
    detached = attacked_purifier("exact_detached_step", detector(natural=adp, suspected=adp))
    assert detached.natural.detach_step and detached.suspected.detach_step


def test_threshold_zero_suspects_everything_and_without_noise_nothing_is_drawn():
    assert detector(0.0).is_suspected(at_norm(1e-3))
    assert detector().stochastic
    assert not detector(natural=Identity(), suspected=Identity()).stochastic


def test_a_penalised_attack_stays_natural_at_the_optimum_of_those_that_do():
    """Of a linear classifier, within a ball in which all images further than the threshold from
    mid-grey are suspected: unpenalised it ends at a corner, well above the threshold."""
    rng = np.random.default_rng(1)
    weights, threshold = rng.normal(size=12).astype(np.float32), 0.05
    logits_fn = Linear(jnp.asarray([0 * weights, weights]), jnp.asarray([0.0, -0.5 * sum(weights)]))
    purifier = detector(threshold)
    image = at_norm(0.02)

    def ended(weight):
        attack = attacks.build(
            "apgd", eps=0.2, num_steps=200, loss="margin", selection_draws=1, restarts=4
        )
        options = {"penalty_fn": Penalty.of(purifier, weight)} if weight else {}
        return quick(lambda k: attack(k, logits_fn, image, 0, **options).image)(KEY)

    assert purifier.is_suspected(ended(0.0))
    # A unit of score norm is worth sqrt(12) |w| of margin: more than that keeps to the threshold.
    slope = 12**0.5 * np.linalg.norm(weights)
    natural = ended(2 * slope)
    assert score_norm(SCORE, natural) == pytest.approx(threshold, rel=0.01)
    best = threshold * slope  # along w from mid-grey; steps of signs end beside it, at the kink
    assert weights @ np.ravel(natural - 0.5) == pytest.approx(best, rel=0.05)
    assert score_norm(SCORE, ended(0.5 * slope)) > 2 * threshold  # a small weight does not pay


def test_the_penalty_is_what_exceeds_the_threshold():
    penalty = Penalty.of(detector(0.2), 3.0)
    assert penalty(KEY, at_norm(0.3)) == pytest.approx(0.3, rel=1e-4)
    assert penalty(KEY, at_norm(0.1)) == 0.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: detector(-0.1), "threshold=-0.1 must be at least 0"),
        (
            lambda: detector(natural=build("adp_reference", SCORE)),
            "ReferenceADP decides a batch together",
        ),
        (lambda: Penalty.of(NoiseOnly(), 1.0), "penalty=1.0 does not apply to NoiseOnly"),
        (
            lambda: build("detect_then_purify", SCORE, natural=dict(purifier="identity")),
            "detect_then_purify needs suspected=dict",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
