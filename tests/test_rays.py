"""RayS: the nearest boundary of linear classifiers, from answers alone, and what it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
