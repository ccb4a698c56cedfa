"""Carlini and Wagner's attack: the nearest boundary of linear classifiers, and what it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.carlini_wagner import CarliniWagner
from tests.test_ascent import Linear, Recorder, compiled_alone, inputs, noisy, quick


def linear(seed: int, size: int = 12):
    """A binary linear classifier, an image inside the box whose answer is class 1, and its distance
    to the boundary."""
    rng = np.random.default_rng(seed)
    weights, image = rng.normal(size=size), rng.uniform(0.3, 0.7, size)
    distance = rng.uniform(0.05, 0.4)
    bias = distance * np.linalg.norm(weights) - weights @ image
    logits_fn = Linear(
        jnp.asarray([np.zeros(size), weights], jnp.float32), jnp.asarray([0, bias], jnp.float32)
    )
    return logits_fn, jnp.asarray(image.reshape(3, 2, 2), jnp.float32), distance


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_that_of_the_linear_boundary(seed):
    logits_fn, image, distance = linear(seed)
    attack = CarliniWagner(num_steps=300, searches=8)
    x, found, *_ = quick(lambda i: attack.nearest(jax.random.key(0), logits_fn, i, 1))(image)
    assert jnp.argmax(logits_fn(None, x)) == 0
    assert found == pytest.approx(float(jnp.linalg.norm((x - image).ravel())), rel=1e-5)
    assert distance < found < 1.02 * distance


@pytest.mark.parametrize("inside", [True, False])
def test_an_image_is_fooled_where_its_boundary_is_in_the_ball(inside):
    logits_fn, image, distance = linear(0)
    attack = CarliniWagner(eps=distance * (1.03 if inside else 0.97), num_steps=300)
    result = quick(attack)(jax.random.key(0), logits_fn, image, 1)
    assert (result.loss > 0) == inside
    assert jnp.linalg.norm((result.image - image).ravel()) <= attack.eps + 1e-6


def test_what_it_asks_is_counted():
    attack = CarliniWagner(num_steps=3, searches=2, eot_samples=2, selection_draws=5)
    recorder = Recorder(noisy())
    keys, images, labels = inputs(1)
    compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    assert (attack.gradient_queries, attack.selection_queries) == (12, 20)
    assert sum(map(len, recorder.runs.values())) == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="linf"), "norm='linf' is not defined for carlini_wagner; use l2"),
        (dict(learning_rate=0.0), "learning_rate=0.0 must be positive"),
        (dict(searches=0), "searches=0 must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CarliniWagner(**options)
