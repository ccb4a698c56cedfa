"""Carlini and Wagner's attack: the nearest boundary of linear classifiers, and what it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.carlini_wagner import CarliniWagner
from attacks.losses import margin
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


def by_hand(attack, value, gradient, image):
    """The nearest wrong image, its distance and the last image, by Adam and bisection as a loop."""
    c, low, high, nearest, distance = attack.first_c, 0.0, np.inf, image, np.inf
    for _ in range(attack.searches):
        w, mean, square, any_wrong = np.arctanh((1 - 1e-6) * (2 * image - 1)), 0.0, 0.0, False
        for t in range(1, attack.num_steps + 1):
            x = 0.5 * (1 + np.tanh(w))
            ahead, away = value(x), np.linalg.norm((x - image).ravel())
            any_wrong |= ahead > 0
            if ahead > 0 and 0 < away < distance:
                nearest, distance = x, away
            along = 2 * (x - image) - (c * gradient(x) if ahead < 0 else 0.0)
            along = along * 0.5 * (1 - np.tanh(w) ** 2)
            mean, square = 0.9 * mean + 0.1 * along, 0.999 * square + 0.001 * along**2
            step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
            w = w - attack.learning_rate * step
        low, high = (low, c) if any_wrong else (c, high)
        c = 10 * c if np.isinf(high) else 0.5 * (low + high)
    return nearest, distance, 0.5 * (1 + np.tanh(w))


def test_its_search_is_adams_and_a_bisection(x64):
    """With too small a penalty at first, and steps that leave wrong images again."""
    logits_fn, key = noisy(0, np.float64, sigma=0.0), jax.random.key(0)
    attack = CarliniWagner(num_steps=25, searches=6, first_c=1e-3, learning_rate=0.1)
    _, images, _ = inputs(2, np.float64)
    search = quick(lambda x, y: attack.search(key, logits_fn, x, y))

    def ahead(x, label):
        return margin(logits_fn(key, x), label)

    value, gradient = quick(ahead), quick(jax.grad(ahead))
    answers = quick(lambda x: logits_fn(key, x))
    for image in np.asarray(0.1 + 0.8 * images):
        label = int(answers(image).argmax())
        found = search(image, label)
        nearest, distance, last = by_hand(
            attack,
            lambda x, y=label: float(value(x, y)),
            lambda x, y=label: np.asarray(gradient(x, y)),
            image,
        )
        assert np.isfinite(distance)
        np.testing.assert_allclose(found.image[0], nearest, atol=1e-9)
        np.testing.assert_allclose(found.last[0], last, atol=1e-9)
        assert float(found.distance[0]) == pytest.approx(distance, abs=1e-9)


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
