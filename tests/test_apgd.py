"""Auto-PGD against its published algorithm, written here as a loop over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.apgd import APGD, _periods
from attacks.ascent import View
from attacks.losses import margin
from tests.test_ascent import inputs, noisy, quick

EPS = {"linf": 0.15, "l2": 0.5}


def test_periods_are_those_of_the_paper():
    """Section 3: p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the budget."""
    ends, lengths = map(np.array, _periods(100))
    assert np.flatnonzero(ends).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert lengths[ends].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_periods_fit_every_budget(num_steps):
    ends, lengths = _periods(num_steps)
    assert len(ends) == len(lengths) == num_steps and not ends[0] and min(lengths) >= 1


def project(norm: str, x, center, eps: float):
    if norm == "linf":
        return np.clip(x, np.maximum(center - eps, 0), np.minimum(center + eps, 1))
    low, high = 0.0, 1.0
    if np.linalg.norm(np.clip(x, 0, 1) - center) <= eps:
        return np.clip(x, 0, 1)
    for _ in range(100):
        middle = (low + high) / 2
        moved = np.clip(center + middle * (x - center), 0, 1) - center
        low, high = (middle, high) if np.linalg.norm(moved) <= eps else (low, middle)
    return np.clip(center + low * (x - center), 0, 1)


def algorithm_1(norm: str, loss_fn, gradient_fn, image, eps: float, num_steps: int):
    """Algorithm 1 of Croce and Hein (2020) from the clean image: the iterates, and how often the
    step was halved. Their x_max is found by the loss, and its gradient is kept."""

    def ahead(x, size, gradient):
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        return project(norm, x + size * direction, image, eps)

    checkpoints = np.flatnonzero(_periods(num_steps)[0]).tolist()
    size, halvings, x, xs = 2 * eps, 0, image, [image]
    losses = [loss_fn(x)]
    best, best_loss, best_gradient = x, losses[0], gradient_fn(x)
    previous, since, at_last, halved_last = x, 0, -np.inf, True
    for k in range(num_steps):
        gradient = gradient_fn(x)
        if losses[-1] > best_loss:
            best, best_loss, best_gradient = x, losses[-1], gradient
        if k in checkpoints:
            last_losses = losses[-(k - since) - 1 :]
            rises = np.sum(np.diff(last_losses) > 0)
            halved_now = rises < 0.75 * (k - since) or (not halved_last and best_loss <= at_last)
            since, at_last, halved_last = k, best_loss, halved_now
            if halved_now:
                size, halvings = size / 2, halvings + 1
                x, gradient, losses[-1] = best, best_gradient, best_loss
        z = ahead(x, size, gradient)
        if k:
            z = project(norm, x + 0.75 * (z - x) + 0.25 * (x - previous), image, eps)
        previous, x = x, z
        xs.append(x)
        losses.append(loss_fn(x))
    return xs[:-1], best, x, halvings


@pytest.mark.parametrize("norm", EPS)
def test_iterates_are_those_of_the_published_algorithm(norm, x64):
    logits_fn = noisy(0, np.float64, sigma=0.0)
    _, images, labels = inputs(12, np.float64)
    key, eps, num_steps = jax.random.key(0), EPS[norm], 40
    attack = APGD(norm, eps, num_steps=num_steps, loss="margin", random_start=False)

    def value(x, y):
        return margin(logits_fn(key, x), y)

    gradient = jax.grad(value)
    value_once, gradient_once = quick(value), quick(gradient)

    def visited(image, label):
        xs = []

        def evaluate(t, x):
            jax.debug.callback(lambda t, x: xs.append((int(t), np.asarray(x))), t, x)
            return View(value(x, label), gradient(x, label))

        best, last, _ = quick(lambda image: attack.ascend(evaluate, image, image))(image)
        jax.effects_barrier()
        return [x for _, x in sorted(xs, key=lambda entry: entry[0])], best, last

    halvings = []
    for image, label in zip(images, labels, strict=True):
        ours, best, last = visited(image, label)
        theirs, their_best, their_last, halved = algorithm_1(
            norm,
            lambda x, y=label: float(value_once(jnp.asarray(x), y)),
            lambda x, y=label: np.asarray(gradient_once(jnp.asarray(x), y)),
            np.asarray(image),
            eps,
            num_steps,
        )
        halvings.append(halved)
        # Both halve intervals to project onto an L2 ball, 40 and 100 times.
        atol = {"linf": 1e-9, "l2": 1e-6}[norm]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
        np.testing.assert_allclose(best, their_best, rtol=0, atol=atol)
        np.testing.assert_allclose(last, their_last, rtol=0, atol=atol)
    assert max(halvings) >= 3  # the rule was needed


def test_l1_steps_grow_sparser_with_the_best_iterate(x64):
    """On a linear function whose optimum moves two pixels, one of them up to the box."""
    weights = jnp.arange(1.0, 51.0).reshape(5, 5, 2)
    image = jnp.full((5, 5, 2), 0.5).at[4, 4, 1].set(0.8)
    shares = []

    def evaluate(t, x):
        jax.debug.callback(lambda x: shares.append(np.mean(np.asarray(x) != np.asarray(image))), x)
        return View(jnp.sum(weights * x), weights)

    attack = APGD("l1", 0.5, num_steps=60, random_start=False)
    best, *_ = quick(lambda image: attack.ascend(evaluate, image, image))(image)
    jax.effects_barrier()
    assert shares[1] == 0.2 and shares[-1] <= 0.06
    optimum = image.at[4, 4, 1].set(1.0).at[4, 4, 0].set(0.8)
    np.testing.assert_allclose(best, optimum, atol=1e-6)
