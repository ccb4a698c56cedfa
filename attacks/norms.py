"""The balls an attack may move in, for one image: steepest ascent, projection, start, distance."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Norm(NamedTuple):
    """steepest(gradient) -> direction: the unit-norm step that raises a linear function most.
    project(point, center, eps) -> point: the nearest point of the ball and of the box [0, 1].
    random(key, center, eps) -> point: a random start in the ball and the box.
    size(difference) -> scalar: the norm itself.
    """

    steepest: Callable[[Array], Array]
    project: Callable[[Array, Array, float], Array]
    random: Callable[[Array, Array, float], Array]
    size: Callable[[Array], Array]


def _linf_project(point: Array, center: Array, eps: float) -> Array:
    return jnp.clip(point, jnp.maximum(center - eps, 0.0), jnp.minimum(center + eps, 1.0))


def _linf_random(key: Array, center: Array, eps: float) -> Array:
    noise = jax.random.uniform(key, center.shape, center.dtype, -eps, eps)
    return _linf_project(center + noise, center, eps)


def _l2_size(difference: Array) -> Array:
    return jnp.sqrt(jnp.sum(difference**2))


def _l2_steepest(gradient: Array) -> Array:
    # By its largest entry first: squares of a confident classifier's gradients underflow.
    largest = jnp.max(jnp.abs(gradient))
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.maximum(_l2_size(scaled), jnp.finfo(gradient.dtype).tiny)


def _l2_project(point: Array, center: Array, eps: float) -> Array:
    """The nearest point of ball and box is clip(center + t (point - center)) for some t in [0, 1]
    (from the optimality conditions). Shrinking first and clipping after would leave budget unused
    wherever a pixel is clipped."""
    return _last_inside(_l2_size, point, center, eps)


def _last_inside(size: Callable, point: Array, center: Array, eps: float) -> Array:
    """clip(center + t (point - center), 0, 1) for the largest t in [0, 1] that is in the ball: its
    distance grows with t, hence bisection."""

    def at(t):
        return jnp.clip(center + t * (point - center), 0.0, 1.0)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        inside = size(at(middle) - center) <= eps
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    one = jnp.ones((), point.dtype)
    low, _ = jax.lax.fori_loop(0, 40, halve, (0.0 * one, one))
    return at(jnp.where(size(at(one) - center) <= eps, one, low))


def _l2_random(key: Array, center: Array, eps: float) -> Array:
    """Uniform in the ball, then projected onto the box."""
    direction_key, radius_key = jax.random.split(key)
    direction = _l2_steepest(jax.random.normal(direction_key, center.shape, center.dtype))
    radius = eps * jax.random.uniform(radius_key, (), center.dtype) ** (1.0 / center.size)
    return _l2_project(center + radius * direction, center, eps)


def _l1_size(difference: Array) -> Array:
    return jnp.sum(jnp.abs(difference))


def sparse_sign(gradient: Array, share: Array | float, stuck: Array | bool = False) -> Array:
    """The signs of that share of the pixels, of largest gradient, scaled to L1 norm 1.

    The true steepest step moves one pixel only; a sparse one is the compromise of Croce and Hein
    (ICML 2021, "Mind the box"). stuck: pixels that the box keeps from moving. They do not count;
    but those of larger gradient are pushed along, lest a projection take back what they gained.
    """
    magnitudes = jnp.abs(gradient)
    count = jnp.clip(jnp.round(share * gradient.size), 1, gradient.size).astype(int)
    free = jnp.where(stuck, 0.0, magnitudes)
    threshold = jnp.sort(free.ravel())[gradient.size - count]
    # Asked this way round a NaN stays one.
    return jnp.where(magnitudes < threshold, 0.0, jnp.sign(gradient)) / count


def _l1_steepest(gradient: Array) -> Array:
    return sparse_sign(gradient, 1.0 / gradient.size)


def _l1_project(point: Array, center: Array, eps: float) -> Array:
    """The nearest point of ball and box shrinks every difference by the same amount, not beyond 0,
    and cuts it off at the box (from the optimality conditions): bisection for that amount."""
    # Rounding can lengthen the sum of many small differences, each pixel by a quarter of this.
    rounding = jnp.finfo(point.dtype).eps
    eps = eps * (1.0 - 4.0 * rounding) - point.size * rounding / 4.0
    difference = point - center
    room = jnp.where(difference > 0, 1.0 - center, center)
    magnitudes = jnp.abs(difference)

    def moved(shrink):
        return jnp.clip(magnitudes - shrink, 0.0, room)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        inside = jnp.sum(moved(middle)) <= eps
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    largest = jnp.max(magnitudes)
    _, shrink = jax.lax.fori_loop(0, 50, halve, (0.0 * largest, largest))
    shrink = jnp.where(jnp.sum(moved(0.0)) <= eps, 0.0, shrink)
    return jnp.clip(center + jnp.sign(difference) * moved(shrink), 0.0, 1.0)


def _l1_random(key: Array, center: Array, eps: float) -> Array:
    """Uniform in the ball (differences of exponentials: Barthe et al. 2005), then projected."""
    sign_key, size_key, rest_key = jax.random.split(key, 3)
    sizes = jax.random.exponential(size_key, center.shape, center.dtype)
    total = jnp.sum(sizes) + jax.random.exponential(rest_key, (), center.dtype)
    signs = jax.random.rademacher(sign_key, center.shape, center.dtype)
    return _l1_project(center + eps * signs * sizes / total, center, eps)


NORMS = {
    "linf": Norm(jnp.sign, _linf_project, _linf_random, lambda d: jnp.max(jnp.abs(d))),
    "l2": Norm(_l2_steepest, _l2_project, _l2_random, _l2_size),
    "l1": Norm(_l1_steepest, _l1_project, _l1_random, _l1_size),
}


def farthest(norm: str, point: Array, center: Array, eps: float) -> Array:
    """Where the ray from `center` through `point`, cut off at the box, leaves the ball of that norm
    and radius; `center` where the two are the same. Where the box ends all of it before, its end.
    """
    difference = point - center
    largest = jnp.max(jnp.abs(difference))
    # So far that all pixels that move by a hundredth of the largest or more meet the box. A NaN
    # stays one.
    ahead = 100.0 * difference / jnp.where(largest == 0, 1.0, largest)
    last = _last_inside(NORMS[norm].size, center + ahead, center, eps)
    # Projections leave room for what rounding adds to the sum of many small differences.
    return NORMS[norm].project(last, center, eps)
