"""Purify, classify, average: against means taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.adp import ADP
from purify.defense import AVERAGES, Defense, combine
from purify.purifiers import Identity, NoiseOnly, Schedule
from tests.oracles import LinearClassifier, QuadraticClassifier, make_score

pytestmark = pytest.mark.usefixtures("x64")

SHAPE, CLASSES, KEY = (4, 4, 1), 3, jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(size=SHAPE)
WEIGHTS = RNG.standard_normal((CLASSES, 16))


def defense(purifier=None, **options):
    classifier = LinearClassifier(jnp.asarray(WEIGHTS))
    return Defense(purifier or NoiseOnly(sigma=0.3), classifier, **options)


@jax.jit
def call(logits_fn, key, image):
    return logits_fn(key, image)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


# Three runs of three classes; the votes go 0, 2, 2.
RUNS = np.array([[2.0, 0.5, -1.0], [0.1, 0.0, 0.2], [-3.0, 1.0, 1.5]])
BY_HAND = {
    "logits": [-0.3, 0.5, 0.7 / 3],
    "softmax": np.log(softmax(RUNS).mean(0)),
    "vote": [1 / 3, 0, 2 / 3],
}


def test_every_average_has_an_oracle():
    assert set(BY_HAND) == set(AVERAGES)


@pytest.mark.parametrize("average", AVERAGES)
def test_runs_are_combined_as_by_hand(average):
    np.testing.assert_allclose(combine(jnp.asarray(RUNS), average), BY_HAND[average], atol=1e-14)


def test_the_averages_may_disagree():
    """Which is why the average is part of the defence that an attack has to aim at."""
    assert [int(np.argmax(BY_HAND[average])) for average in AVERAGES] == [1, 0, 2]


@pytest.mark.parametrize("chunk", [None, 1, 2, 9], ids=lambda chunk: f"chunk={chunk}")
def test_a_draw_combines_single_runs_with_folded_keys(chunk):
    """5 runs: 2 does not divide them, 9 exceeds them."""
    ensemble = defense(num_runs=5, chunk=chunk)
    keys = [jax.random.fold_in(KEY, i) for i in range(5)]
    singles = jnp.stack([WEIGHTS @ ensemble.purifier(key, IMAGE).ravel() for key in keys])
    assert np.std(singles, axis=0).min() > 0.01

    @jax.jit
    def every_average(ensemble, key, image):
        drawn = {average: ensemble.replace(average=average)(key, image) for average in AVERAGES}
        return ensemble.run(keys[3], image), ensemble.runs(key, image), drawn

    run, runs, drawn = every_average(ensemble, KEY, IMAGE)
    # Sums of 16 products.
    np.testing.assert_allclose(run, singles[3], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(runs, singles, rtol=1e-12, atol=1e-12)
    for average in AVERAGES:
        np.testing.assert_allclose(
            drawn[average], combine(singles, average), rtol=1e-12, atol=1e-12
        )


def test_without_purification_every_run_is_the_classifier():
    alone = defense(Identity(), num_runs=1)
    np.testing.assert_allclose(alone(KEY, IMAGE), WEIGHTS @ IMAGE.ravel(), rtol=1e-12)
    assert alone.runs(KEY, IMAGE).shape == (1, CLASSES)


@jax.jit
def trace_purifier(purifier, key, image):
    return purifier.trace(key, image)


@jax.jit
def trace_and_runs(ensemble):
    logits, trace = ensemble.trace(KEY, IMAGE)
    return logits, ensemble.runs(KEY, IMAGE), trace


@pytest.mark.parametrize("chunk", [None, 2])
def test_trace_gives_the_runs_and_what_was_done_in_each(chunk):
    adp = ADP(make_score(SHAPE), num_steps=4)
    ensemble = defense(adp, num_runs=3, chunk=chunk)
    logits, runs, trace = trace_and_runs(ensemble)
    assert logits.shape == (3, CLASSES)
    assert trace.steps.shape == trace.nfe.shape == (3,)
    assert trace.step_sizes.shape == trace.score_norms.shape == (3, 4)
    # A rounding of 1e-16 over delta = 1e-3, some steps and 16 weights.
    np.testing.assert_allclose(logits, runs, rtol=1e-9)
    for i in range(3):
        _, alone = trace_purifier(adp, jax.random.fold_in(KEY, i), IMAGE)
        assert alone.nfe == trace.nfe[i]
        np.testing.assert_allclose(alone.step_sizes, trace.step_sizes[i], rtol=1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_purifier_that_takes_no_steps_has_empty_traces(chunk):
    logits, runs, trace = trace_and_runs(defense(NoiseOnly(sigma=0.3), num_runs=3, chunk=chunk))
    assert trace.step_sizes.shape == (3, 0)
    np.testing.assert_allclose(logits, runs, rtol=1e-12)


def test_the_gradient_of_a_draw_is_the_mean_over_its_runs():
    ensemble = Defense(NoiseOnly(sigma=0.3), QuadraticClassifier(jnp.asarray(WEIGHTS)), num_runs=4)

    @jax.jit
    def gradients(key, image):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
        of_run = jax.vmap(jax.grad(lambda key, x: ensemble.run(key, x)[1], 1), (0, None))
        return jax.grad(lambda x: ensemble(key, x)[1])(image), of_run(keys, image)

    of_draw, of_runs = gradients(KEY, IMAGE)
    assert np.std(of_runs, axis=0).max() > 1.0  # the runs really differ
    np.testing.assert_allclose(of_draw, np.mean(of_runs, axis=0), rtol=1e-12, atol=1e-12)


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
    np.testing.assert_allclose(second, other(KEY, IMAGE), rtol=1e-9)
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
