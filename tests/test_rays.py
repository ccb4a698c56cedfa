"""RayS: the nearest boundary of linear classifiers, from answers alone, and what it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.objective import Runs
from attacks.rays import RayS
from tests.test_ascent import Linear, Recorder, compiled_alone, inputs, noisy, quick


def linear(seed: int, size: int):
    """A binary linear classifier, an image well inside the box that it gets right, and the Linf
    distance to the boundary, margin / |w|_1."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=size)
    image = rng.uniform(0.4, 0.6, size)
    distance = rng.uniform(0.03, 0.2)
    bias = distance * np.abs(weights).sum() - weights @ image  # the answer is class 1
    logits_fn = Linear(
        jnp.asarray(np.stack([np.zeros(size), weights]), jnp.float32),
        jnp.asarray([0, bias], jnp.float32),
    )
    return logits_fn, jnp.asarray(image.reshape(-1, 2, 1), jnp.float32), distance


@pytest.mark.parametrize("seed", range(4))
def test_the_radius_is_the_distance_to_a_linear_boundary(seed):
    logits_fn, image, distance = linear(seed, 16)
    attack = RayS(eps=0.5, num_steps=600, selection_draws=1, tolerance=1e-4)
    x, radius, *_ = quick(lambda i: attack.nearest(jax.random.key(0), logits_fn, i, 1))(image)
    assert distance < radius <= distance + 2e-4
    assert jnp.argmax(logits_fn(None, x)) == 0
    assert np.abs(x - image).max() == pytest.approx(float(radius), abs=1e-6)


@pytest.mark.parametrize("inside", [True, False])
def test_the_image_is_fooled_exactly_where_the_boundary_is_in_the_ball(inside):
    logits_fn, image, distance = linear(0, 16)
    eps = distance * 1.05 if inside else distance * 0.95
    attack = RayS(eps=eps, num_steps=600, selection_draws=1)
    result = quick(attack)(jax.random.key(0), logits_fn, image, 1)
    assert (result.loss > 0) == inside and result.start_loss < 0
    assert np.abs(result.image - image).max() <= eps + 1e-6


@pytest.mark.parametrize("num_steps", [80, 203])
def test_its_search_goes_block_by_block_and_level_by_level(num_steps):
    """As a loop: from random signs along which the answer changes, blocks change sign one after the
    other, half as long at each level; where that is wrong at the radius, it is bisected."""
    logits_fn, image, _ = linear(2, 12)
    attack = RayS(eps=0.5, num_steps=num_steps, tolerance=1e-3)
    key, image = jax.random.key(0), np.asarray(image)
    found = quick(lambda x: attack.search(key, logits_fn, x, 1))(image)
    wrong_at = quick(lambda x: logits_fn(key, x).argmax() != 1)
    asked = 0

    def wrong(direction, radius):
        nonlocal asked
        asked += 1
        return bool(wrong_at(np.clip(image + np.float32(radius) * direction, 0, 1)))

    direction, radius, level, block = np.ones_like(image), np.inf, 0, 0
    while asked < num_steps:
        length = -(-image.size // 2**level)
        pixels = np.arange(image.size).reshape(image.shape)
        candidate = np.where(pixels // length == block, -direction, direction)
        if np.isinf(radius):
            signs_key = jax.random.split(jax.random.fold_in(key, asked))[0]
            candidate = np.asarray(jax.random.rademacher(signs_key, image.shape, image.dtype))
        low, high = 0.0, min(radius, 1.0)
        if wrong(candidate, high):
            while asked < num_steps and high - low >= 1e-3:
                middle = 0.5 * (low + high)
                low, high = (low, middle) if wrong(candidate, middle) else (middle, high)
            if high - low < 1e-3:
                direction, radius = candidate, high
        last = (block + 1) * length >= image.size
        level, block = (min(level + 1, 4), 0) if last else (level, block + 1)
    assert level >= 2 and float(found.distance[0]) == pytest.approx(radius, abs=1e-6)
    np.testing.assert_allclose(
        found.image[0], np.clip(image + np.float32(radius) * direction, 0, 1), atol=1e-6
    )


def test_half_of_the_runs_are_no_majority():
    class Halves(RayS):
        def runs(self, *args, **kwargs):
            logits = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # one of two is wrong, whatever is asked
            return lambda key, x: Runs(logits + 0.0 * x.sum(), jnp.zeros(2))

    image = jnp.full((2, 2, 1), 0.5)
    found = Halves(eps=0.5, num_steps=30, eot_samples=2).search(jax.random.key(0), None, image, 1)
    assert np.isinf(found.distance[0])


def test_only_answers_are_seen():
    logits_fn, image, _ = linear(1, 16)

    def answers(key, image):
        return 7.0 * (jnp.arange(2) == jnp.argmax(logits_fn(key, image)))

    attack = RayS(eps=0.5, num_steps=200)
    key = jax.random.key(0)
    ours, theirs = (attack.nearest(key, fn, image, 1) for fn in (logits_fn, answers))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_question_is_answered_by_the_majority_and_counted():
    attack = RayS(eps=0.2, num_steps=40, eot_samples=3, selection_draws=5)
    recorder = Recorder(noisy())
    keys, images, labels = inputs(1)
    compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    assert attack.gradient_queries == 0
    assert attack.selection_queries == sum(map(len, recorder.runs.values())) == 40 * 3 + 4 * 5


def test_behind_noise_the_majority_finds_the_boundary_of_the_likelier_answer():
    """A third of the draws are wrong wherever the image is: single answers would say that it is
    fooled where it stands."""
    logits_fn, image, distance = linear(2, 16)

    def third_wrong(key, image):
        logits = logits_fn(key, image)
        return jnp.where(jax.random.bernoulli(key, 1 / 3), -logits, logits)

    radii = {
        draws: float(
            quick(
                lambda i, d=draws: (
                    RayS(eps=0.5, num_steps=600, eot_samples=d)
                    .nearest(jax.random.key(0), third_wrong, i, 1)
                    .distance
                )
            )(image)
        )
        for draws in (1, 101)
    }
    assert radii[1] < 0.5 * distance < distance < radii[101] < 1.5 * distance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="l2"), "norm='l2' is not defined for rays; use linf"),
        (dict(tolerance=0.0), "tolerance=0.0 must be positive"),
        (dict(num_steps=0), "num_steps=0 must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RayS(**options)
