"""FMN: the nearest boundary of linear classifiers, and what it asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.fab import reach
from attacks.fmn import FMN
from attacks.losses import margin
from attacks.norms import NORMS
from tests.test_ascent import DUAL, ORDER, Linear, Recorder, compiled_alone, inputs, noisy, quick


@pytest.mark.parametrize("norm", NORMS)
def test_of_a_linear_classifier_the_nearest_image_is_at_the_nearest_boundary(norm):
    """margin / |w_y - w_t|_dual of the likeliest wrong class, in the middle of the box."""
    rng = np.random.default_rng(1)
    size, n = 12, 12
    weights = rng.normal(size=(2, size))
    images = rng.uniform(0.45, 0.55, (n, size))
    bias = -0.5 * weights.sum(1)
    logits = images @ weights.T + bias
    labels = logits.argmax(1)
    margins = np.abs(logits[:, 0] - logits[:, 1])
    expected = margins / np.linalg.norm(weights[0] - weights[1], ord=DUAL[norm])
    attack = FMN(norm, 0.5, num_steps=200, selection_draws=1)
    logits_fn = Linear(*(jnp.asarray(a, jnp.float32) for a in (weights, bias)))
    search = quick(jax.vmap(lambda k, i, y: attack.nearest(k, logits_fn, i, y)))
    shaped = jnp.asarray(images.reshape(n, 2, 2, 3), jnp.float32)
    found = search(jax.random.split(jax.random.key(0), n), shaped, jnp.asarray(labels))
    logits = np.asarray(jax.vmap(lambda x: logits_fn(None, x))(found.image))
    ahead = np.where(labels == 0, 1, -1) * (logits[:, 1] - logits[:, 0])
    assert (ahead > -1e-6).all()  # as the search saw it more than 0; another program rounds it
    moved = np.asarray(found.image, np.float64).reshape(n, size) - images
    # The last steps change the radius by a thousandth, and by less before; pixels are rounded.
    within = dict(rtol=1e-4, atol=5e-7)
    np.testing.assert_allclose(np.linalg.norm(moved, ord=ORDER[norm], axis=1), expected, **within)
    np.testing.assert_allclose(found.distance, expected, **within)


@pytest.mark.parametrize("norm", NORMS)
def test_its_search_is_what_it_says(norm, x64):
    """As a loop: the radius of REACH times the linear model's until an answer is wrong; then a
    share smaller or larger, never above the nearest. Shares and lengths fall by a cosine."""
    logits_fn, key, num_steps = noisy(0, np.float64, sigma=0.0), jax.random.key(0), 30
    attack = FMN(norm, 0.3, num_steps=num_steps)
    _, images, _ = inputs(4, np.float64)
    search = quick(lambda x, y: attack.search(key, logits_fn, x, y))

    def odds(x, label):
        logits = logits_fn(key, x)
        return jnp.log(jnp.sum(jnp.exp(logits).at[label].set(0.0))) - logits[label]

    ahead, gradient = quick(lambda x, y: margin(logits_fn(key, x), y)), quick(jax.grad(odds))
    project, answers = quick(NORMS[norm].project), quick(lambda x: logits_fn(key, x))
    to_boundary = quick(lambda x, weights, gain: reach(norm, x, weights, gain))
    for image in np.asarray(0.1 + 0.8 * images):
        label = int(answers(image).argmax())
        found = search(image, label)
        x, radius, nearest, distance = image, np.inf, image, np.inf
        for t in range(num_steps):
            value, along = float(ahead(x, label)), np.asarray(gradient(x, label))
            away = np.linalg.norm(np.ravel(x - image), ord=ORDER[norm])
            if value > 0 and 0 < away < distance:
                nearest, distance = x, away
            falls = 0.5 * (1 + np.cos(np.pi * t / num_steps))
            length, share = 0.01 + 0.99 * falls, 0.001 + 0.049 * falls
            at_image = value + np.sum(along * (image - x))
            moved = to_boundary(image, along, -at_image)
            if value > 0:
                radius = min(radius * (1 - share), distance)
            elif np.isinf(distance):
                radius = 2 * np.linalg.norm(np.ravel(moved), ord=ORDER[norm])
            else:
                radius *= 1 + share
            ahead_of = x + length * along / np.linalg.norm(along.ravel())
            x = np.asarray(project(ahead_of, image, radius))
        assert np.isfinite(distance)
        np.testing.assert_allclose(found.image[0], nearest, atol=1e-8)
        np.testing.assert_allclose(found.last[0], x, atol=1e-8)


@pytest.mark.parametrize("inside", [True, False])
def test_an_image_is_fooled_where_its_boundary_is_in_the_ball(inside):
    logits_fn = Linear(jnp.array([[0.0] * 4, [1.0, -2.0, 0.5, 1.0]]), jnp.array([0.0, 0.5]))
    image = jnp.full((2, 2, 1), 0.5)
    distance = (0.5 + 0.25) / 4.5  # the margin over |w|_1
    attack = FMN(eps=distance * (1.02 if inside else 0.98), selection_draws=1)
    result = quick(attack)(jax.random.key(0), logits_fn, image, 1)
    assert (result.loss > 0) == inside and result.start_loss == pytest.approx(-0.75)


def test_what_it_asks_is_counted():
    attack = FMN(eps=0.2, num_steps=7, eot_samples=2, selection_draws=5)
    recorder = Recorder(noisy())
    keys, images, labels = inputs(1)
    compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    assert (attack.gradient_queries, attack.selection_queries) == (14, 20)
    assert sum(map(len, recorder.runs.values())) == 34
