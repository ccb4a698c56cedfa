"""Joint attacks: steps that mix two directions, by hand, and what the directions are and cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.apgd import APGD
from attacks.directions import DIRECTIONS, build_direction
from attacks.pgd import PGD
from purify.purifiers import build
from tests.oracles import LinearScore
from tests.test_ascent import Linear, Recorder, quick

SHAPE = (2, 3, 1)
IMAGE = jnp.full(SHAPE, 0.5)
KEY = jax.random.key(0)
# The gradient of the margin of class 1, and the direction: alike, opposite, and 0 on either side.
GRADIENT = np.array([2.0, -1.0, 3.0, 0.5, 0.0, -4.0])
ALONG = np.array([1.0, 5.0, 0.0, -2.0, 3.0, -1.0])
LOGITS = Linear(jnp.asarray([GRADIENT, np.zeros(6)], jnp.float32), jnp.zeros(2))
DIRECTION = jax.tree_util.Partial(lambda d, key, x: d, jnp.asarray(ALONG.reshape(SHAPE)))


def purifier(name: str):
    return build(name, LinearScore(jnp.diag(jnp.arange(1.0, 7.0)), 0.9 * IMAGE))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("num_steps", [1, 2])
def test_steps_are_the_mean_of_two_steepest_ones(norm, num_steps):
    """Under Linf (sign(gradient) + sign(direction)) / 2, and the unit vectors' mean under L2."""
    attack = PGD(norm, 0.4, num_steps=num_steps, step_size=0.02, loss="margin",
                 random_start=False, keep="last", selection_draws=1)  # fmt: skip
    result = quick(attack)(KEY, LOGITS, IMAGE, 1, direction_fn=DIRECTION)
    if norm == "linf":
        expected = [1.0, 0.0, 0.5, 0.0, 0.5, -1.0]
    else:
        expected = (GRADIENT / np.linalg.norm(GRADIENT) + ALONG / np.linalg.norm(ALONG)) / 2
    moved = np.ravel(result.image - IMAGE)
    np.testing.assert_allclose(moved, num_steps * 0.02 * np.array(expected), atol=1e-6)


def test_momentum_is_the_gradients_alone():
    """Both directions are constant here, so that momentum changes lengths only: none of a sign."""
    attack = PGD("linf", 0.4, num_steps=2, step_size=0.02, loss="margin", random_start=False,
                 momentum=1.0, keep="last", selection_draws=1)  # fmt: skip
    result = quick(attack)(KEY, LOGITS, IMAGE, 1, direction_fn=DIRECTION)
    np.testing.assert_allclose(
        np.ravel(result.image - IMAGE), 0.04 * np.array([1.0, 0.0, 0.5, 0.0, 0.5, -1.0]), atol=1e-6
    )


def test_a_direction_has_the_keys_of_the_gradients_draws_and_is_counted():
    recorder, keys = Recorder(lambda key, x: LOGITS(key, x)), []

    def direction_fn(key, x):
        jax.debug.callback(lambda data: keys.append(np.asarray(data)), jax.random.key_data(key))
        return x

    attack = PGD(num_steps=3, restarts=2, eot_samples=2, loss="margin", selection_draws=1)
    quick(lambda key: attack(key, recorder, IMAGE, 1, direction_fn=direction_fn))(KEY)
    jax.effects_barrier()
    assert len(keys) == len({tuple(key) for key in keys}) == attack.direction_queries == 6
    for data in keys:
        for i in range(attack.eot_samples):
            run = jax.random.fold_in(jax.random.wrap_key_data(data), i)
            assert len(recorder.at(run)) == 1  # the gradient's, and nobody else's
    assert sum(map(len, recorder.runs.values())) == (
        attack.gradient_queries + attack.selection_queries
    )


def test_directions_and_penalties_are_arguments_of_a_compiled_attack():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(attack, direction_fn, penalty_fn):
        traced.append(1)
        return attack(KEY, LOGITS, IMAGE, 1, direction_fn=direction_fn, penalty_fn=penalty_fn).image

    def zero(scale, key, x):
        return scale * jnp.sum(x)

    attack = PGD(num_steps=2, loss="margin", random_start=False, keep="last", selection_draws=1)
    images = [
        run(
            attack,
            jax.tree_util.Partial(DIRECTION.func, direction),
            jax.tree_util.Partial(zero, scale),
        )  # fmt: skip
        for direction in (DIRECTION.args[0], -DIRECTION.args[0])
        for scale in (jnp.float32(0.0), jnp.float32(9.0))
    ]
    assert len({np.asarray(image).tobytes() for image in images}) == 4 and len(traced) == 1


@pytest.mark.parametrize("name", ["one_step", "schedule", "adp"])
def test_full_is_the_mean_way_of_purification_and_score_the_models_output(name):
    x = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, SHAPE), jnp.float32)
    known = purifier(name)
    full, score = (build_direction(n, known, num_samples=3, chunk=2) for n in ("full", "score"))
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    expected = sum(np.asarray(known(key, x) - x, np.float64) for key in keys) / 3
    np.testing.assert_allclose(full(KEY, x), expected, atol=1e-6)
    np.testing.assert_allclose(score(KEY, x), known.score(x), rtol=1e-6)
    assert (full.nfe, score.nfe) == (3 * known.nfe, known.score.nfe)
    assert set(DIRECTIONS) == {"full", "score"}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_has_no_direction_is_refused(direction):
    for name, kind in (("identity", "Identity"), ("noise_only", "NoiseOnly")):
        with pytest.raises(ValueError, match=f"'{direction}' does not apply to {kind}: it has no"):
            build_direction(direction, build(name, None), num_samples=1)
    with pytest.raises(ValueError, match="direction='up' is unknown; known: score, full"):
        build_direction("up", purifier("adp"), num_samples=1)
    with pytest.raises(ValueError, match="APGD takes no direction_fn; use pgd"):
        APGD(num_steps=1)(KEY, LOGITS, IMAGE, 1, direction_fn=DIRECTION)
