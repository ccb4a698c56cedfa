"""Statistics of detectors, by their definitions, and what an attacker descends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.defense import Defense
from purify.detectors import STATISTICS, Passes, Penalty, build_statistic
from purify.purifiers import Identity, NoiseOnly, build
from purify.purifiers.detect_then_purify import score_norm
from tests.oracles import LinearClassifier, LinearScore, few_optimisations, make_score

SHAPE, KEY = (2, 3, 2), jax.random.key(0)
SCORE = LinearScore(0.3 * jnp.eye(12), jnp.full(SHAPE, 0.5))
IMAGE = jax.random.uniform(jax.random.key(1), SHAPE)
CLASSIFIER = LinearClassifier(jax.random.normal(jax.random.key(2), (3, 12)))


def defense(purifier=None, num_runs=4, classifier=CLASSIFIER):
    return Defense(purifier or build("one_step", SCORE, sigma=0.2), classifier, num_runs)


def each_run(purifier, num_runs):
    return [purifier(jax.random.fold_in(KEY, i), IMAGE) for i in range(num_runs)]


def test_the_score_norm_is_that_of_the_image_itself():
    statistic = build_statistic("score_norm", defense(), SCORE)
    assert statistic(KEY, IMAGE) == score_norm(SCORE, IMAGE)
    assert (statistic.nfe, statistic.stochastic) == (1, False)


def test_the_energy_is_half_the_squared_distance_per_pixel():
    score = make_score(SHAPE, head="energy")
    statistic = build_statistic("energy", defense(), score)
    towards = score.network.apply(score.variables, IMAGE[None])[0]
    expected = 0.5 * float(np.mean((IMAGE - towards) ** 2))
    assert float(statistic(KEY, IMAGE)) == pytest.approx(expected, rel=1e-5)


def test_the_reconstruction_error_is_the_mean_over_runs():
    purifier = build("one_step", SCORE, sigma=0.2)
    statistic = build_statistic("reconstruction_error", defense(purifier), SCORE)
    errors = [np.sqrt(np.mean((x - IMAGE) ** 2)) for x in each_run(purifier, 4)]
    assert float(statistic(KEY, IMAGE)) == pytest.approx(np.mean(errors), rel=1e-5)
    assert (statistic.nfe, statistic.stochastic) == (4, True)


def test_the_prediction_change_is_the_total_variation():
    purifier = NoiseOnly(sigma=0.4)
    statistic = build_statistic("prediction_change", defense(purifier), SCORE)
    before = jax.nn.softmax(CLASSIFIER(IMAGE))
    after = np.mean([jax.nn.softmax(CLASSIFIER(x)) for x in each_run(purifier, 4)], axis=0)
    # The largest difference over all events, which for three classes are those and what they leave.
    assert float(statistic(KEY, IMAGE)) == pytest.approx(
        float(np.abs(after - before).max()), rel=1e-4
    )
    unchanged = build_statistic("prediction_change", defense(Identity()), SCORE)(KEY, IMAGE)
    assert float(unchanged) == pytest.approx(0.0, abs=1e-6)


def test_jointly_the_image_and_more_often_the_purified_one_are_fooled():
    joint = build_statistic("prediction_change", defense(NoiseOnly(sigma=0.4)), SCORE).joint()
    keys = jax.random.split(KEY, 500)
    answers = jax.vmap(joint.run, (0, None))(keys, IMAGE)
    as_it_is = np.isclose(answers, CLASSIFIER(IMAGE), rtol=1e-6).all(1)
    assert as_it_is.mean() == pytest.approx(0.2, abs=0.06)  # 3.4 standard deviations
    assert len({tuple(row) for row in np.asarray(answers[~as_it_is])}) == (~as_it_is).sum()
    others = [name for name in STATISTICS if name not in ("prediction_change", "energy")]
    assert all(build_statistic(name, defense(), SCORE).joint() is None for name in others)


def test_what_is_not_above_the_threshold_passes():
    statistic = build_statistic("score_norm", defense(), SCORE)
    norm = statistic(KEY, IMAGE)
    assert Passes(statistic, norm)(KEY, IMAGE) and not Passes(statistic, norm - 1e-3)(KEY, IMAGE)
    assert Passes(statistic, norm).nfe == 1


@pytest.mark.parametrize("name", STATISTICS)
def test_what_an_attacker_descends_on_is_no_less_and_has_a_gradient(name):
    score = make_score(SHAPE, head="energy")
    statistic = build_statistic(name, defense(build("one_step", score, sigma=0.3)), score)
    keys = jax.random.split(jax.random.key(3), 20)
    images = jax.random.uniform(jax.random.key(4), (20, *SHAPE))
    with few_optimisations():
        values, (bounds, slopes) = (
            jax.jit(jax.vmap(f))(keys, images)
            for f in (statistic, jax.value_and_grad(statistic.descent, argnums=1))
        )
    assert (values <= bounds * (1 + 1e-5)).all()
    assert jnp.isfinite(slopes).all() and (jnp.abs(slopes).max((1, 2, 3)) > 0).all()


def test_what_is_descended_on_of_the_prediction_change_is_pinskers_bound():
    """The root of half of KL(before || after)."""
    purifier = NoiseOnly(sigma=0.4)
    statistic = build_statistic("prediction_change", defense(purifier), SCORE)
    before = np.asarray(jax.nn.softmax(CLASSIFIER(IMAGE)), np.float64)
    after = np.mean([jax.nn.softmax(CLASSIFIER(x)) for x in each_run(purifier, 4)], axis=0)
    divergences = [np.sum(p * np.log(p / q)) for p, q in ((before, after), (after, before))]
    assert abs(divergences[0] / divergences[1] - 1) > 0.01
    found = float(statistic.descent(KEY, IMAGE))
    assert found == pytest.approx(np.sqrt(0.5 * divergences[0]), rel=1e-4)


def test_two_sure_and_different_answers_leave_the_attacker_a_slope():
    sure = LinearClassifier(300 * CLASSIFIER.weights)
    statistic = build_statistic("prediction_change", defense(NoiseOnly(sigma=0.5), 1, sure), SCORE)
    keys = [key for key in jax.random.split(KEY, 40) if statistic(key, IMAGE) > 0.999]
    assert keys
    slopes = [jax.grad(f, argnums=1)(keys[0], IMAGE) for f in (statistic, statistic.descent)]
    assert np.abs(slopes[0]).max() < 1e-6 < 1 < np.abs(slopes[1]).max()


def test_the_descent_is_finite_where_nothing_changes():
    statistic = build_statistic("prediction_change", defense(Identity()), SCORE)
    assert jnp.isfinite(jax.grad(statistic.descent, argnums=1)(KEY, IMAGE)).all()


def test_a_penalty_is_of_the_descent():
    statistic = build_statistic("prediction_change", defense(NoiseOnly(sigma=0.4)), SCORE)
    penalty = Penalty(statistic, 0.01, 5.0)
    expected = 5 * (float(statistic.descent(KEY, IMAGE)) - 0.01)
    assert float(penalty(KEY, IMAGE)) == pytest.approx(expected, rel=1e-5) and expected > 0
    assert penalty.nfe == statistic.nfe


@pytest.mark.parametrize(
    ("name", "said"),
    [("nonsense", "statistic 'nonsense' is unknown"), ("energy", "needs a score model with head=")],
)
def test_what_does_not_exist_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        build_statistic(name, defense(), make_score(SHAPE))
