"""The noise that every purifier injects first, to screen the adversarial perturbation."""

import math

import jax
import jax.numpy as jnp

from attacks.gradients import straight_through as identity_gradient
from purify.types import Array, Image, Key


def add_noise(
    key: Key, image: Image, sigma: float | Array, *, straight_through: bool = False
) -> Image:
    """clip(x + sigma n, 0, 1), n ~ N(0, I); sigma in pixel units of [0, 1].

    straight_through: differentiate the clip as the identity.
    """
    noisy = image + sigma * jax.random.normal(key, image.shape, image.dtype)
    clipped = jnp.clip(noisy, 0.0, 1.0)
    return identity_gradient(clipped, noisy) if straight_through else clipped


def check_sigma(sigma: float) -> None:
    """ValueError unless noise can be of that level."""
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma} must be at least 0 and finite")
