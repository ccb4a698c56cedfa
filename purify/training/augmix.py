"""AugMix (Hendrycks et al., ICLR 2020): one image, mixed with what chains of operations make of it.

The operations are those of the paper's training, none of which is a corruption of CIFAR-10-C. They
are Pillow's, with the paper's ranges, in floating point: rotations and shifts are real numbers, so
that images of 8 x 8 are shifted at all. Grey levels are those of 8 bits, 0 to 255.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from purify.types import Array, Image, Key

WEAKEST = 0.01  # share of an operation's range, below which nothing is drawn


def _grey_levels(image: Image) -> Array:
    return jnp.round(255 * image).astype(jnp.int32)


def autocontrast(image: Image, strength: Array) -> Image:
    """Each channel stretched to [0, 1]."""
    low, high = image.min((0, 1), keepdims=True), image.max((0, 1), keepdims=True)
    # Less than a grey level apart is the same: it would stretch the rounding of a warp.
    flat = high - low < 0.5 / 255
    return jnp.where(flat, image, (image - low) / jnp.where(flat, 1.0, high - low))


def equalize(image: Image, strength: Array) -> Image:
    """Each channel's grey levels mapped to the share of darker pixels, as the brightest has it.

    Pillow rounds the pixels per grey level down to an integer, which is far off for small images
    and leaves those of fewer than 256 pixels as they are; here nothing is rounded.
    """

    def one(channel: Array, levels: Array) -> Array:
        counts = jnp.bincount(levels.ravel(), length=256)
        darker = (jnp.cumsum(counts) - counts).astype(channel.dtype)
        most = darker[levels.max()]
        return jnp.where(most > 0, darker[levels] / jnp.maximum(most, 1.0), channel)

    return jax.vmap(one, -1, -1)(image, _grey_levels(image))


def posterize(image: Image, strength: Array) -> Image:
    """The lowest 4 to 8 of a grey level's 8 bits cleared."""
    cleared = 4 + jnp.floor(4 * jnp.abs(strength)).astype(jnp.int32)
    levels = (_grey_levels(image) >> cleared) << cleared
    return levels.astype(image.dtype) / 255


def solarize(image: Image, strength: Array) -> Image:
    """Grey levels from a threshold on inverted; the threshold falls from 256 to 0."""
    threshold = 256 - jnp.floor(256 * jnp.abs(strength)).astype(jnp.int32)
    return jnp.where(_grey_levels(image) < threshold, image, 1 - image)


def _warp(image: Image, x_row: tuple, y_row: tuple) -> Image:
    """The pixel at (x, y) is taken from x' = a x + b y + c, (a, b, c) = x_row, and y' likewise:
    bilinear, zero from outside; coordinates in pixels from the upper left corner."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=image.dtype) + 0.5,
        jnp.arange(width, dtype=image.dtype) + 0.5,
        indexing="ij",
    )
    from_x, from_y = (a * x + b * y + c for a, b, c in (x_row, y_row))
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    sample = functools.partial(
        map_coordinates, coordinates=(from_y - 0.5, from_x - 0.5), order=1, mode="nearest"
    )
    return jnp.where(inside[..., None], jax.vmap(sample, -1, -1)(image), 0.0)


def rotate(image: Image, strength: Array) -> Image:
    """About the centre, counter-clockwise, by up to 30 degrees."""
    angle = -jnp.deg2rad(30 * strength)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (side / 2 for side in image.shape[:2])
    return _warp(image, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(image: Image, strength: Array) -> Image:
    """Rows shifted by up to 0.3 of their distance from the upper edge."""
    return _warp(image, (1.0, 0.3 * strength, 0.0), (0.0, 1.0, 0.0))


def shear_y(image: Image, strength: Array) -> Image:
    """Columns shifted by up to 0.3 of their distance from the left edge."""
    return _warp(image, (1.0, 0.0, 0.0), (0.3 * strength, 1.0, 0.0))


def translate_x(image: Image, strength: Array) -> Image:
    """Shifted to the left by up to a third of the width."""
    return _warp(image, (1.0, 0.0, image.shape[1] / 3 * strength), (0.0, 1.0, 0.0))


def translate_y(image: Image, strength: Array) -> Image:
    """Shifted upwards by up to a third of the height."""
    return _warp(image, (1.0, 0.0, 0.0), (0.0, 1.0, image.shape[0] / 3 * strength))


# (image, strength in [-1, 1], the share of the range that the docstring names) -> image in [0, 1]
OPERATIONS: dict[str, Callable[[Image, Array], Image]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "posterize": posterize,
    "rotate": rotate,
    "solarize": solarize,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}


@dataclasses.dataclass(frozen=True)
class AugMix:
    """`augmix(key, image)` -> x' - x, x' = (1 - m) x + m sum_i w_i chain_i(x): w of Dirichlet(1)
    over `width` chains, m uniform, each chain of 1 to `depth` random operations.

    severity: of 10, the share of each operation's range up to which its strength is drawn.

    No Gaussian noise is added: the least-squares target E[x - x' | x'] exists without it, and, m
    being uniform, the network has learnt on every point of the straight way back from x' to x.
    """

    severity: float = 3.0
    width: int = 3
    depth: int = 3
    has_levels: ClassVar[bool] = False

    def __post_init__(self):
        if not (10 * WEAKEST < self.severity <= 10 and self.width >= 1 and self.depth >= 1):
            raise ValueError(
                f"augmix needs {10 * WEAKEST} < severity <= 10, width >= 1 and depth >= 1, got "
                f"severity={self.severity}, width={self.width}, depth={self.depth}"
            )

    def __call__(self, key: Key, image: Image) -> Array:
        return self.mix(key, image) - image

    def mix(self, key: Key, image: Image) -> Image:
        """x' in [0, 1]."""
        weights_key, share_key, chains_key = jax.random.split(key, 3)
        # Exponentials over their sum are of Dirichlet(1), without its rejection sampling.
        weights = jax.random.exponential(weights_key, (self.width,), image.dtype)
        share = jax.random.uniform(share_key, (), image.dtype)
        keys = jax.random.split(chains_key, self.width)
        chains = jax.vmap(self._chain, (0, None))(keys, image)
        mixed = jnp.tensordot(weights / weights.sum(), chains, 1)
        return jnp.clip(image + share * (mixed - image), 0.0, 1.0)

    def _chain(self, key: Key, image: Image) -> Image:
        length_key, steps_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), 1, self.depth + 1)

        def step(image, at):
            number, key = at
            which_key, strength_key, sign_key = jax.random.split(key, 3)
            which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
            strength = jax.random.uniform(
                strength_key, (), image.dtype, WEAKEST, self.severity / 10
            ) * jax.random.rademacher(sign_key, (), image.dtype)
            # Under vmap every operation is computed, and one is taken.
            changed = jax.lax.switch(which, list(OPERATIONS.values()), image, strength)
            return jnp.where(number < length, changed, image), None

        steps = (jnp.arange(self.depth), jax.random.split(steps_key, self.depth))
        return jax.lax.scan(step, image, steps)[0]
