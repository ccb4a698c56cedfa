"""Projections against their defining inequality and scipy; steps and starts against geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from attacks.norms import NORMS, farthest
from tests.oracles import QUICK

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
EPS = {"linf": 0.2, "l2": 0.7, "l1": 0.9}
both_norms = pytest.mark.parametrize("name", NORMS)


def size(name: str, difference) -> np.ndarray:
    """The norm of the last axis, in double precision."""
    return np.linalg.norm(np.asarray(difference, np.float64), ord=ORDER[name], axis=-1)


def cases(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centres in [0, 1] (a third of their pixels at the border) and points, mostly outside."""
    rng = np.random.default_rng(seed)
    centers = np.clip(rng.uniform(-0.5, 1.5, (n, dim)), 0, 1)
    return centers, centers + rng.normal(size=(n, dim)) * rng.uniform(0.01, 2, (n, 1))


def project(name: str, points, centers, eps: float) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(NORMS[name].project, (0, 0, None)))(points, centers, eps))


def last_of_rays(name: str, points, centers, eps: float) -> np.ndarray:
    ends = jax.jit(jax.vmap(lambda point, center: farthest(name, point, center, eps)))
    return np.asarray(ends(points, centers))


def test_a_new_norm_needs_an_oracle_here():
    assert set(NORMS) == set(ORDER) == set(EPS)


@both_norms
def test_size_is_the_norm(name):
    images = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(
        [NORMS[name].size(image) for image in images], size(name, images.reshape(5, -1)), rtol=1e-6
    )


@both_norms
def test_projection_is_the_nearest_point_of_ball_and_box(name, x64):
    """y is the nearest point of a convex set to p exactly if <p - y, q - y> <= 0 for all its q."""
    eps, dim = EPS[name], 6
    centers, points = cases(200, dim)
    nearest = project(name, points, centers, eps)
    assert (size(name, nearest - centers) <= eps + 1e-12).all()
    assert nearest.min() >= 0 and nearest.max() <= 1
    rng = np.random.default_rng(1)
    outward = points - nearest
    for _ in range(300):
        # Points of the set that reach into its corners: a long random step, shrunk until inside.
        others = np.clip(centers + rng.normal(size=centers.shape) * rng.choice([0.1, 1, 9]), 0, 1)
        others = centers + (others - centers) * np.minimum(
            1, eps / np.maximum(size(name, others - centers), 1e-9)[:, None]
        )
        # Forty halvings of the L2 bisection leave 1e-12 of a distance of at most about 5.
        assert (np.sum(outward * (others - nearest), -1) <= 1e-10).all()


@both_norms
def test_projection_is_scipys_constrained_minimum(name, x64):
    eps, dim = EPS[name], 5
    centers, points = cases(12, dim, seed=2)
    nearest = project(name, points, centers, eps)
    for center, point, ours in zip(centers, points, nearest, strict=True):
        low, high = np.zeros(dim), np.ones(dim)
        ball = []
        if name == "linf":
            low, high = np.maximum(low, center - eps), np.minimum(high, center + eps)
        elif name == "l2":
            ball = [{"type": "ineq", "fun": lambda y, c=center: eps**2 - np.sum((y - c) ** 2)}]
        else:  # no pixel moves away from the point, so that the distance is smooth
            sign = np.sign(point - center)
            low, high = np.where(sign > 0, center, low), np.where(sign > 0, high, center)
            ball = [{"type": "ineq", "fun": lambda y, c=center, s=sign: eps - s @ (y - c)}]
        # Its line search can get stuck in rounding; from another start it does not.
        tried = [
            optimize.minimize(
                lambda y, p=point: np.sum((y - p) ** 2),
                start,
                jac=lambda y, p=point: 2 * (y - p),
                bounds=list(zip(low, high, strict=True)),
                constraints=ball,
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 200},
            )
            for start in (center, 0.5 * (center + np.clip(point, low, high)))
        ]
        found = next(one for one in tried if one.success)
        # SLSQP keeps its constraints, and finds its minimiser, to about 1e-7.
        np.testing.assert_allclose(ours, found.x, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "eps"),
    [
        ("linf", (32, 32, 3), 0.5),
        ("l2", (32, 32, 3), 0.5),
        ("l2", (64, 64, 3), 4.0),
        ("l1", (32, 32, 3), 12.0),
        ("l1", (32, 32, 3), 50.0),
    ],
)
@pytest.mark.parametrize("moved", [project, last_of_rays])
def test_points_of_float32_images_are_in_the_ball_to_rounding(moved, name, shape, eps):
    dim = int(np.prod(shape))
    centers, points = (a.astype(np.float32).reshape(-1, *shape) for a in cases(20, dim))
    nearest = moved(name, points, centers, eps)
    distance = size(name, nearest.reshape(20, -1).astype(np.float64) - centers.reshape(20, -1))
    # The slack that attacks are checked with, and no more; nor is budget left unused.
    assert (distance <= eps + 1e-6).all()
    assert (distance > eps * (1 - 1e-5)).sum() >= 15
    assert nearest.dtype == np.float32 and nearest.min() >= 0 and nearest.max() <= 1


@pytest.mark.parametrize("moved", [project, last_of_rays])
@pytest.mark.parametrize(("shape", "eps"), [((28, 28, 1), 2.0), ((32, 32, 3), 12.0)])
def test_so_are_points_of_flat_images_whose_pixels_all_round_alike_under_l1(moved, shape, eps):
    dim = int(np.prod(shape))
    centers = np.repeat(np.linspace(0.5, 1, 40, dtype=np.float32)[:, None], dim, 1)
    centers = centers.reshape(-1, *shape)
    few = np.random.default_rng(0).random(centers.shape) < 0.1
    points = centers - np.where(few, np.float32(0.5), np.float32(0.01))
    distance = size(
        "l1", (moved("l1", points, centers, eps).astype(float) - centers).reshape(40, -1)
    )
    assert (distance <= eps + 1e-6).all() and (distance > eps * (1 - 1e-4)).all()


@both_norms
def test_projection_leaves_points_of_the_set_alone(name):
    centers, points = (a.astype(np.float32) for a in cases(50, 6, seed=3))
    inside = project(name, points, centers, EPS[name] * 0.999)
    # To the rounding of centre + (point - centre), both below 1.
    np.testing.assert_allclose(project(name, inside, centers, EPS[name]), inside, atol=1.2e-7)
    np.testing.assert_array_equal(project(name, centers, centers, EPS[name]), centers)


@both_norms
def test_steepest_ascent_is_the_unit_step_that_raises_a_linear_function_most(name, x64):
    rng = np.random.default_rng(4)
    gradients = rng.normal(size=(20, 6))
    directions = np.asarray(jax.vmap(NORMS[name].steepest)(gradients))
    np.testing.assert_allclose(size(name, directions), 1.0, rtol=1e-12)
    gain = np.sum(gradients * directions, -1)
    np.testing.assert_allclose(gain, np.linalg.norm(gradients, DUAL[name], axis=-1), rtol=1e-12)
    others = rng.normal(size=(500, 1, 6))
    others /= size(name, others)[..., None]
    assert (np.sum(others * gradients, -1) <= gain + 1e-12).all()


@both_norms
def test_a_zero_gradient_gives_a_zero_step(name):
    np.testing.assert_array_equal(NORMS[name].steepest(jnp.zeros((2, 2, 1))), np.zeros((2, 2, 1)))


@both_norms
def test_random_starts_lie_in_the_ball_and_in_the_box(name):
    centers = cases(8, 12)[0].astype(np.float32)
    keys = jax.random.split(jax.random.key(0), (300, 8))
    draw = jax.vmap(jax.vmap(NORMS[name].random, (0, 0, None)), (0, None, None))
    draw = jax.jit(draw, compiler_options=QUICK)
    starts = np.asarray(draw(keys, centers, EPS[name]), np.float64)
    assert (size(name, starts - centers) <= EPS[name] + 1e-6).all()
    assert starts.min() >= 0 and starts.max() <= 1
    # Where the box does not bind, both sides of every pixel are visited.
    inner = (centers > 0.05) & (centers < 0.95)
    assert (starts < centers).any(0)[inner].all() and (starts > centers).any(0)[inner].all()


@both_norms
def test_random_starts_fill_the_ball_uniformly(name):
    eps, dim, n = 0.3, 4, 4000
    center = jnp.full((2, 2, 1), 0.5)  # eps inside the box
    keys = jax.random.split(jax.random.key(1), n)
    draw = jax.jit(jax.vmap(NORMS[name].random, (0, None, None)), compiler_options=QUICK)
    starts = draw(keys, center, eps)
    offsets = np.asarray(starts - 0.5, np.float64).reshape(n, dim) / eps
    # Of uniform points of a unit ball, size ** dim is uniform on [0, 1]. One draw of fixed keys,
    # so that a p-value above 1 % now stays above it.
    assert stats.kstest(size(name, offsets) ** dim, "uniform").pvalue > 0.01
    # Every direction alike: the variance of one coordinate is 1/3 in a cube, 1/(dim + 2) in a
    # ball; five standard errors of n samples are at most 0.08 of it.
    variance = {"linf": 1 / 3, "l2": 1 / (dim + 2), "l1": 2 / (dim + 1) / (dim + 2)}[name]
    np.testing.assert_allclose(
        np.cov(offsets.T), variance * np.eye(dim), atol=5 * variance * (2 / n) ** 0.5
    )
    np.testing.assert_allclose(offsets.mean(0), 0, atol=5 * (variance / n) ** 0.5)


def test_steepest_ascent_is_a_unit_step_for_tiny_gradients_too():
    """Squares of 1e-25 are 0 in float32: a confident classifier's gradient is still a direction."""
    gradient = jnp.array([3e-25, -4e-25, 0.0], jnp.float32)
    steepest = NORMS["l2"].steepest(gradient)
    np.testing.assert_allclose(steepest, [0.6, -0.8, 0.0], rtol=1e-5)
    assert (NORMS["l2"].steepest(jnp.zeros(3)) == 0).all()


@both_norms
def test_the_farthest_point_of_a_ray_is_on_the_sphere_and_on_the_ray(name, x64):
    """Or, where the box ends the ray before, at its end; a NaN stays one."""
    eps, dim = EPS[name], 6
    centers, points = cases(200, dim)
    rays = np.clip(points, 0, 1)
    ends = last_of_rays(name, rays, centers, eps)
    moved, along = ends - centers, rays - centers
    sizes = size(name, moved)
    stopped = np.where(along > 0, ends == 1, ends == 0)
    stopped |= np.abs(along) <= 0.01 * np.abs(along).max(1, keepdims=True)  # too slow to get there
    on_sphere = np.isclose(sizes, eps, rtol=1e-8)  # 40 halvings of a ray of up to 100
    assert (sizes <= eps + 1e-12).all() and (on_sphere | stopped.all(1)).all()
    assert on_sphere.mean() > 0.9
    for ray, step, end in zip(along, moved, stopped, strict=True):
        scale = step[~end] / ray[~end]  # of pixels that the box has not stopped
        np.testing.assert_allclose(scale[1:], np.full_like(scale[1:], scale[:1]), rtol=1e-9)
    same = farthest(name, jnp.asarray(centers[0]), jnp.asarray(centers[0]), eps)
    np.testing.assert_array_equal(same, centers[0])
    broken = farthest(name, jnp.full(dim, jnp.nan), jnp.asarray(centers[0]), eps)
    assert np.isnan(broken).all()
