"""FAB: box-aware projections against linear programming, distances of linear classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from attacks.fab import FAB, HALVINGS, reach
from attacks.norms import NORMS
from tests.test_ascent import DUAL, ORDER, Linear, Recorder, compiled_alone, inputs, noisy, quick


def cases(n: int, dim: int):
    """Images (a third of the pixels at the border), weights (some 0) and gains of both signs."""
    rng = np.random.default_rng(0)
    x = np.clip(rng.uniform(-0.25, 1.25, (n, dim)), 0, 1)
    weights = rng.normal(size=(n, dim)) * (rng.random((n, dim)) > 0.1)
    possible = np.where(weights > 0, weights * (1 - x), -weights * x).sum(1)
    opposite = np.where(weights > 0, weights * x, -weights * (1 - x)).sum(1)
    share = rng.uniform(0.05, 0.95, n)
    gains = np.where(np.arange(n) % 2, share * possible, -share * opposite)
    return x, weights, gains


def shortest(norm: str, x, weights, gain):
    """The norm of the shortest difference, by linear programming or (L2) its own bisection."""
    n = len(x)
    if norm == "l2":
        bound = np.where(np.sign(gain) * weights > 0, 1 - x, x)

        def moved(t):
            return np.minimum(t * np.abs(weights), bound)

        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            enough = np.abs(weights) @ moved(middle) >= abs(gain)
            low, high = (low, middle) if enough else (middle, high)
        return np.linalg.norm(moved(high))
    # Variables: ups, downs, and for Linf the bound of both.
    eye, extra = np.eye(n), 1 if norm == "linf" else 0
    cost = np.append(np.zeros(2 * n), 1.0) if extra else np.ones(2 * n)
    rows = np.hstack(
        [np.vstack([eye, 0 * eye]), np.vstack([0 * eye, eye]), -np.ones((2 * n, extra))]
    )
    limits = [(0, 1 - v) for v in x] + [(0, v) for v in x] + [(0, None)] * extra
    found = optimize.linprog(
        cost,
        A_ub=rows if extra else None,
        b_ub=np.zeros(2 * n) if extra else None,
        A_eq=np.concatenate([weights, -weights, np.zeros(extra)])[None],
        b_eq=[gain],
        bounds=limits,
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("norm", NORMS)
def test_reach_is_the_shortest_way_in_the_box(norm, x64):
    xs, weights, gains = cases(40, 7)
    moved = np.asarray(jax.jit(jax.vmap(lambda *a: reach(norm, *a)))(xs, weights, gains))
    np.testing.assert_allclose(np.sum(weights * moved, 1), gains, rtol=1e-9)
    assert ((xs + moved) >= -1e-12).all() and ((xs + moved) <= 1 + 1e-12).all()
    lengths = np.linalg.norm(moved, ord=ORDER[norm], axis=1)
    expected = [shortest(norm, *case) for case in zip(xs, weights, gains, strict=True)]
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gain_that_the_box_does_not_allow_leads_to_its_corner(norm, x64):
    xs, weights, _ = cases(10, 7)
    moved = np.asarray(jax.jit(jax.vmap(lambda x, w: reach(norm, x, w, 99.0)))(xs, weights))
    corner = np.where(weights > 0, 1.0, np.where(weights < 0, 0.0, xs))
    np.testing.assert_allclose(xs + moved, corner, atol=1e-12)
    np.testing.assert_array_equal(reach(norm, xs[0], weights[0], 0.0), 0 * xs[0])


@pytest.mark.parametrize("norm", NORMS)
def test_of_a_linear_classifier_the_nearest_image_is_at_the_nearest_boundary(norm):
    """min over the wrong classes of margin / |w_y - w_t|_dual, well inside the box."""
    rng = np.random.default_rng(1)
    size, classes, n = 12, 5, 12
    weights = rng.normal(size=(classes, size))
    images = rng.uniform(0.45, 0.55, (n, size))
    bias = -0.5 * weights.sum(1)  # all classes alike in the middle of the box
    logits = images @ weights.T + bias
    labels = logits.argmax(1)
    differences = weights[labels][:, None] - weights[None]  # [n, classes, size]
    margins = logits[np.arange(n), labels][:, None] - logits
    with np.errstate(invalid="ignore"):
        distances = margins / np.linalg.norm(differences, ord=DUAL[norm], axis=2)
    expected = np.nanmin(distances, axis=1)
    assert expected.max() < 0.4  # no pixel meets the box
    attack = FAB(norm, 0.5, num_steps=30, targets=4, selection_draws=1)
    logits_fn = Linear(*(jnp.asarray(a, jnp.float32) for a in (weights, bias)))
    search = quick(jax.vmap(lambda k, i, y: attack.nearest(k, logits_fn, i, y)))
    keys = jax.random.split(jax.random.key(0), n)
    shaped = jnp.asarray(images.reshape(n, 2, 2, 3), jnp.float32)
    found, radii, *_ = search(keys, shaped, jnp.asarray(labels))
    flat = np.asarray(found, np.float64).reshape(n, size)
    assert ((flat @ weights.T + bias).argmax(1) != labels).all()
    # Steps go 5 % beyond a boundary, and the last segment is halved three times: 0.7 %.
    ratio = np.asarray(radii) / expected
    assert (ratio > 1).all() and (ratio < 1.01).all()


@pytest.mark.parametrize("norm", NORMS)
def test_its_search_is_the_papers(norm, x64):
    """Algorithm 1 as a loop, from the clean image and from a random start in half of the ball;
    alpha, ETA and BETA as in section 3, then three halvings."""
    logits_fn, key, num_steps = noisy(0, np.float64, sigma=0.0), jax.random.key(0), 12
    attack = FAB(norm, 0.3, num_steps=num_steps, targets=1, restarts=2)
    _, images, _ = inputs(4, np.float64)
    search = quick(lambda x, y: attack.search(key, logits_fn, x, y))
    logits_of = quick(lambda x: logits_fn(key, x))

    def gap(x, label, target):
        logits = logits_fn(key, x)
        return logits[label] - logits[target]

    gap_and_gradient = quick(jax.value_and_grad(gap))
    step_to = quick(lambda x, weights, gain: reach(norm, x, weights, gain))
    random = quick(lambda key, x: NORMS[norm].random(key, x, 0.15))

    def size(difference):
        return np.linalg.norm(np.ravel(difference), ord=ORDER[norm])

    for image in np.asarray(0.1 + 0.8 * images):
        logits = np.array(logits_of(image))
        label = int(logits.argmax())
        logits[label] = -np.inf
        target, found = int(logits.argmax()), search(image, label)
        for run in range(2):
            own = jax.random.fold_in(jax.random.split(key)[1], run)
            x = np.asarray(random(jax.random.split(own, 3)[0], image)) if run else image
            nearest, distance = None, np.inf
            for _ in range(num_steps):
                value, gradient = gap_and_gradient(x, label, target)
                here = np.asarray(step_to(x, -gradient, value))
                at_image = value + jnp.sum(gradient * (image - x))
                there = np.asarray(step_to(image, -gradient, at_image))
                alpha = min(size(here) / (size(here) + size(there)), 0.1)
                x = (1 - alpha) * (x + 1.05 * here) + alpha * (image + 1.05 * there)
                x = np.clip(x, 0, 1)
                if int(logits_of(x).argmax()) != label:
                    if 0 < size(x - image) < distance:
                        nearest, distance = x, size(x - image)
                    x = image + 0.9 * (x - image)
            right = image
            for _ in range(3):
                middle = 0.5 * (right + nearest)
                if int(logits_of(middle).argmax()) != label:
                    nearest = middle
                else:
                    right = middle
            np.testing.assert_allclose(found.image[run], nearest, atol=1e-9)
            np.testing.assert_allclose(found.last[run], x, atol=1e-9)
            assert float(found.distance[run]) == pytest.approx(size(nearest - image), abs=1e-9)


@pytest.mark.parametrize("inside", [True, False])
def test_an_image_is_fooled_where_its_boundary_is_in_the_ball(inside):
    logits_fn = Linear(jnp.array([[0.0] * 4, [1.0, -2.0, 0.5, 1.0]]), jnp.array([0.0, 0.5]))
    image = jnp.full((2, 2, 1), 0.5)
    distance = (0.5 + 0.25) / 4.5  # the margin over |w|_1
    attack = FAB(
        eps=distance * (1.02 if inside else 0.98), num_steps=20, targets=1, selection_draws=1
    )
    result = quick(attack)(jax.random.key(0), logits_fn, image, 1)
    assert (result.loss > 0) == inside and result.start_loss == pytest.approx(-0.75)


def test_what_it_asks_is_counted():
    attack = FAB(eps=0.2, num_steps=3, targets=2, restarts=2, eot_samples=2, selection_draws=5)
    recorder = Recorder(noisy())
    keys, images, labels = inputs(1)
    compiled_alone(attack)(keys[0], recorder, images[0], labels[0])
    jax.effects_barrier()
    assert attack.gradient_queries == 4 * 3 * 2
    assert attack.selection_queries == (4 * (3 + HALVINGS) + 1) * 2 + (3 * 4 + 1) * 5
    assert sum(map(len, recorder.runs.values())) == (
        attack.gradient_queries + attack.selection_queries
    )


def test_more_targets_than_wrong_classes_are_refused():
    keys, images, labels = inputs(1)
    with pytest.raises(ValueError, match="targets=9 must be less than the 4 classes there are"):
        FAB()(keys[0], noisy(), images[0], labels[0])


def test_a_wrong_clean_image_is_the_nearest_one_itself():
    keys, images, _ = inputs(4)
    logits_fn = noisy(sigma=0.0)
    labels = jax.vmap(lambda k, x: logits_fn(k, x).argmin())(keys, images)
    attack = FAB(eps=0.2, num_steps=3, targets=2)
    search = quick(jax.vmap(lambda k, i, y: attack.nearest(k, logits_fn, i, y)))
    found = search(keys, images, labels)
    np.testing.assert_array_equal(found.distance, 0.0)
    np.testing.assert_array_equal(found.image, images)
