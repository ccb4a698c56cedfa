"""Auto-PGD against its published algorithm, written here as a loop over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks.apgd import APGD, _periods
from attacks.ascent import Best, View
from attacks.losses import margin
from tests.test_ascent import Noisy, inputs, noisy, quick

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


# Period ends at steps 6, 11, 15, 18, 20, 22 and 24 of 25, of lengths 6, 5, 4, 3, 2, 2 and 2: to
# rise often enough takes 5, 4, 3, 3, 2, 2 and 2 rises.
@pytest.mark.parametrize(
    ("losses", "halved_at"),
    [
        # Five rises of six; then five of five, but the best loss, 9, stays: halved for that alone.
        # Three of four from 9 on, the best stays, but was just halved. It stays again: halved. Two
        # of two to a new best loss. One of two: halved. Two of two.
        (
            [0, 1, 2, 3, 4, 9, 5, *(6, 6.5, 7, 7.5, 8), *(5, 6, 7, 8), *(8.2, 8.4, 8.6)]
            + [9.5, 9.6, *(9.0, 9.5), *(9.7, 9.8)],
            [11, 18, 22],
        ),
        # The first loss is no rise: four of six. Then it rises from the best loss on, and no more.
        (
            [0, 1, 2, 3, 4, 3.5, 3, *range(5, 10), *(10,) * 4, *range(11, 14), *range(14, 20)],
            [6, 15],
        ),
        # Four rises of five and three of four, but not at the end of a period: the best loss rose.
        ([*range(11), 9.5, *range(11, 14), 12.5, *range(14, 23)], []),
        # All rise, and none is halved; then none does, and all are.
        (list(range(25)), []),
        (list(range(25, 0, -1)), [6, 11, 15, 18, 20, 22, 24]),
    ],
    ids=["a best loss that stays", "too few rises", "a last fall", "all rise", "all fall"],
)
def test_steps_are_halved_where_the_loss_stops_rising(losses, halved_at):
    """Of a run whose losses are given: worked out by hand."""
    attack = APGD(eps=0.1, num_steps=25)
    image = gradient = jnp.full((1, 1, 1), 0.5)
    state, best = attack.begin(image), Best(image, jnp.array(-jnp.inf), gradient)
    step = quick(attack.step)
    sizes = []
    for t, loss in enumerate(losses):
        view = View(jnp.float32(loss), gradient)
        best = best.or_higher(state.x, view)
        state = step(state, view, best, jnp.array(t), image)
        sizes.append(float(state.size))
    assert [t for t in range(25) if sizes[t] < [0.2, *sizes][t]] == halved_at
    assert sizes[-1] == pytest.approx(0.2 / 2 ** len(halved_at))


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


def algorithm_1(
    norm: str,
    loss_fn,
    gradient_fn,
    image,
    eps: float,
    num_steps: int,
    *,
    start=None,
    as_coded=False,
):
    """Algorithm 1 of Croce and Hein (2020), from the clean image or another start: the iterates,
    the best, the last, and how often the step was halved. Their x_max is found by the loss, and its
    gradient is kept.

    as_coded: as AutoAttack's code has it, which halves at three rises of four too, counts the first
    loss as a rise, and after going back to the best iterate compares with the one it left.
    """

    def ahead(x, size, gradient):
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        return project(norm, x + size * direction, image, eps)

    checkpoints = np.flatnonzero(_periods(num_steps)[0]).tolist()
    x = image if start is None else start
    size, halvings, xs = 2 * eps, 0, [x]
    losses = [loss_fn(x)]
    best, best_loss, best_gradient = x, losses[0], gradient_fn(x)
    previous, since, at_last, halved_last = x, 0, best_loss if as_coded else -np.inf, True
    for k in range(num_steps):
        gradient = gradient_fn(x)
        if losses[-1] > best_loss:
            best, best_loss, best_gradient = x, losses[-1], gradient
        if k in checkpoints:
            rose = np.diff(losses[-(k - since) - 1 :]) > 0
            if as_coded:
                rose[0] |= since == 0
            rises, enough = np.sum(rose), 0.75 * (k - since)
            rarely = rises <= enough if as_coded else rises < enough
            halved_now = rarely or (not halved_last and best_loss <= at_last)
            since, at_last, halved_last = k, best_loss, halved_now
            if halved_now:
                size, halvings = size / 2, halvings + 1
                x, gradient = best, best_gradient
                losses[-1] = losses[-1] if as_coded else best_loss
        z = ahead(x, size, gradient)
        if k:
            z = project(norm, x + 0.75 * (z - x) + 0.25 * (x - previous), image, eps)
        previous, x = x, z
        xs.append(x)
        losses.append(loss_fn(x))
    return xs[:-1], best, x, halvings


def project_l1(x, center, eps: float):
    """Every difference shrunk by the same amount, and cut off at the box."""
    low, high = 0.0, np.abs(x - center).max()

    def moved(shrink):
        shrunk = np.maximum(np.abs(x - center) - shrink, 0)
        return np.clip(center + np.sign(x - center) * shrunk, 0, 1)

    if np.abs(moved(0.0) - center).sum() <= eps:
        return moved(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        inside = np.abs(moved(middle) - center).sum() <= eps
        low, high = (low, middle) if inside else (middle, high)
    return moved(high)


def algorithm_l1(
    loss_fn, gradient_fn, image, eps: float, num_steps: int, *, start=None, as_coded=False
):
    """APGD for L1 of Croce and Hein (2021), section 4.2, from the clean image or another start,
    away from the box: the iterates, the step sizes, and how often the best one moved fewer pixels
    than before. as_coded: the number of pixels is rounded up, as by AutoAttack's code."""
    checkpoints = range(0, num_steps, max(int(0.04 * num_steps), 1))[1:]
    size, count, moved_last, restarts = eps, 0.2 * image.size, image.size, 0
    x = best = image if start is None else start
    best_loss, xs, sizes = -np.inf, [], []
    for k in range(num_steps):
        xs.append(x)
        gradient, loss = gradient_fn(x), loss_fn(x)
        if loss > best_loss:
            best, best_loss, best_gradient = x, loss, gradient
        if k in checkpoints:
            moved = np.sum(best != image)
            count = moved / 1.5
            if moved < 0.95 * moved_last:
                size, x, gradient, restarts = eps, best, best_gradient, restarts + 1
            else:
                size = max(size / 1.5, eps / 10)
            moved_last = moved
        sizes.append(size)
        number = max(int(np.ceil(count) if as_coded else np.rint(count)), 1)
        largest = np.abs(gradient) >= np.sort(np.abs(gradient).ravel())[-number]
        x = project_l1(x + size * np.sign(gradient) * largest / number, image, eps)
    return xs, sizes, restarts


def followed(attack, logits_fn):
    """(ascend(image, label) -> (iterates, the best, the last), from the clean image; the margin and
    its gradient as functions of NumPy arrays (image, label))."""
    key, seen = jax.random.key(0), []

    def value(x, label):
        return margin(logits_fn(key, x), label)

    gradient = jax.grad(value)

    @quick
    def ascend(image, label):
        def evaluate(t, x):
            jax.debug.callback(lambda t, x: seen.append((int(t), np.asarray(x))), t, x)
            return View(value(x, label), gradient(x, label))

        return attack.ascend(evaluate, image, image)

    def visited(image, label):
        seen.clear()
        best, last, _ = ascend(image, label)
        jax.effects_barrier()
        return [x for _, x in sorted(seen, key=lambda entry: entry[0])], best, last

    return visited, quick(value), quick(gradient)


@pytest.mark.parametrize("norm", EPS)
def test_iterates_are_those_of_the_published_algorithm(norm, x64):
    _, images, labels = inputs(12, np.float64)
    eps, num_steps = EPS[norm], 40
    attack = APGD(norm, eps, num_steps=num_steps, loss="margin", random_start=False)
    visited, value, gradient = followed(attack, noisy(0, np.float64, sigma=0.0))
    halvings = []
    for image, label in zip(images, labels, strict=True):
        ours, best, last = visited(image, label)
        theirs, their_best, their_last, halved = algorithm_1(
            norm,
            lambda x, y=label: float(value(x, y)),
            lambda x, y=label: np.asarray(gradient(x, y)),
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


def test_l1_iterates_are_those_of_the_published_algorithm(x64):
    """On a network whose best iterate moves fewer pixels at times, and at others more."""
    rng, eps, num_steps = np.random.default_rng(0), 1.0, 60
    first, second = 2 * rng.normal(size=(16, 72)), rng.normal(size=(4, 16))
    images = rng.uniform(0.4, 0.6, (4, 6, 6, 2))  # the box, for which there are rules, is far
    logits_fn = Noisy(jnp.asarray(first), jnp.asarray(second), sigma=0.0)
    attack = APGD("l1", eps, num_steps=num_steps, loss="margin", random_start=False)
    visited, value, gradient = followed(attack, logits_fn)
    restarts, shorter = 0, 0
    for image in images:
        label = int(logits_fn(jax.random.key(0), image).argmax())
        ours, *_ = visited(image, label)
        theirs, sizes, restarted = algorithm_l1(
            lambda x, y=label: float(value(x, y)),
            lambda x, y=label: np.asarray(gradient(x, y)),
            image,
            eps,
            num_steps,
        )
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
        restarts, shorter = restarts + restarted, shorter + np.sum(np.diff(sizes) < 0)
    assert restarts >= 4 and shorter >= 4  # both branches of the rule were needed


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
