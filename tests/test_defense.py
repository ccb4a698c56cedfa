"""Purify, classify, average: against means taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.adp import ADP
from purify.defense import AVERAGES, Defense, combine
from purify.purifiers import Identity, NoiseOnly, Schedule
from tests.oracles import LinearClassifier, QuadraticClassifier, make_score

SHAPE, CLASSES, KEY = (4, 4, 1), 3, jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.uniform(size=SHAPE), jnp.float32)
WEIGHTS = jnp.asarray(RNG.standard_normal((CLASSES, 16)), jnp.float32)


def defense(purifier=None, **options):
    return Defense(purifier or NoiseOnly(sigma=0.3), LinearClassifier(WEIGHTS), **options)


@jax.jit
def call(logits_fn, key, image):
    return logits_fn(key, image)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


# Three runs of three classes; the votes go 0, 2, 2.
RUNS = np.array([[2.0, 0.5, -1.0], [0.1, 0.0, 0.2], [-3.0, 1.0, 1.5]], np.float32)
BY_HAND = {
    "logits": [-0.3, 0.5, 0.7 / 3],
    "softmax": np.log(softmax(RUNS).mean(0)),
    "vote": [1 / 3, 0, 2 / 3],
}


def test_every_average_has_an_oracle():
    assert set(BY_HAND) == set(AVERAGES)


@pytest.mark.parametrize("average", AVERAGES)
def test_runs_are_combined_as_by_hand(average):
    np.testing.assert_allclose(combine(jnp.asarray(RUNS), average), BY_HAND[average], atol=1e-6)


def test_the_averages_may_disagree():
    """Which is why the average is part of the defence that an attack has to aim at."""
    assert [int(np.argmax(BY_HAND[average])) for average in AVERAGES] == [1, 0, 2]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("chunk", [None, 1, 2, 9], ids=lambda chunk: f"chunk={chunk}")
def test_a_draw_combines_single_runs_with_folded_keys(average, chunk):
    """5 runs: 2 does not divide them, 9 exceeds them."""
    ensemble = defense(num_runs=5, average=average, chunk=chunk)
    singles = []
    for i in range(5):
        key = jax.random.fold_in(KEY, i)
        singles.append(WEIGHTS @ ensemble.purifier(key, IMAGE).ravel())
        np.testing.assert_allclose(ensemble.run(key, IMAGE), singles[i], rtol=1e-5)
    assert np.std(singles, axis=0).min() > 0.01
    # Sums of 16 float32 products.
    np.testing.assert_allclose(ensemble.runs(KEY, IMAGE), singles, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        call(ensemble, KEY, IMAGE), combine(jnp.stack(singles), average), rtol=1e-5, atol=1e-5
    )


def test_without_purification_every_run_is_the_classifier():
    alone = defense(Identity(), num_runs=1)
    np.testing.assert_allclose(alone(KEY, IMAGE), WEIGHTS @ IMAGE.ravel(), rtol=1e-5)
    assert alone.runs(KEY, IMAGE).shape == (1, CLASSES)


@pytest.mark.parametrize("chunk", [None, 2])
def test_trace_gives_the_runs_and_what_was_done_in_each(chunk):
    adp = ADP(make_score(SHAPE), num_steps=4)
    ensemble = defense(adp, num_runs=3, chunk=chunk)
    logits, trace = jax.jit(ensemble.trace)(KEY, IMAGE)
    assert logits.shape == (3, CLASSES)
    assert trace.steps.shape == trace.nfe.shape == (3,)
    assert trace.step_sizes.shape == trace.score_norms.shape == (3, 4)
    # The two are separate programs: a rounding over delta = 1e-3, times 16 weights.
    np.testing.assert_allclose(logits, jax.jit(ensemble.runs)(KEY, IMAGE), atol=1e-3)
    for i in range(3):
        _, alone = adp.trace(jax.random.fold_in(KEY, i), IMAGE)
        assert alone.nfe == trace.nfe[i]
        np.testing.assert_allclose(alone.step_sizes, trace.step_sizes[i], atol=1e-4)


def test_the_gradient_of_a_draw_is_the_mean_over_its_runs():
    ensemble = Defense(NoiseOnly(sigma=0.3), QuadraticClassifier(WEIGHTS), num_runs=4)

    def gradient(logits_fn, key):
        return jax.jit(jax.grad(lambda x: logits_fn(key, x)[1]))(IMAGE)

    singles = [gradient(ensemble.run, jax.random.fold_in(KEY, i)) for i in range(4)]
    np.testing.assert_allclose(
        gradient(ensemble, KEY), np.mean(singles, axis=0), rtol=1e-4, atol=1e-5
    )


def test_a_defense_is_an_argument_of_a_compiled_function():
    traced = []

    @jax.jit
    def logits(ensemble, key, image):
        traced.append(1)
        return ensemble(key, image)

    ensemble = defense(Schedule(make_score(SHAPE), num_steps=2), num_runs=2)
    first = logits(ensemble, KEY, IMAGE)
    other = jax.tree.map(lambda a: 1.1 * a, ensemble)  # as another checkpoint
    second = logits(other, KEY, IMAGE)
    assert len(traced) == 1 and np.all(first != second)
    np.testing.assert_allclose(second, other(KEY, IMAGE), rtol=1e-4, atol=1e-4)
    logits(ensemble.replace(num_runs=3), KEY, IMAGE)  # a hyper-parameter is another program
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "median"}, "average='median' is unknown; known: logits, softmax, vote"),
        ({"num_runs": 0}, "num_runs=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be None or at least 1"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        defense(**options)
