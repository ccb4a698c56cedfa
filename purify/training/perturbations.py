"""What a score model learns to undo: random displacements x' - x of one image, in a table.

In place of Gaussian noise any perturbation x -> x' can be learnt: h regresses (x - x') / sigma_eff,
sigma_eff being the root-mean-square of x' - x. So h is minus the displacement in units of
sigma_eff, and ADP with its bounds of steps, which refer to such an h, applies as it is: at sigma 0,
without noise of its own, on images that are corrupted already. Purifiers that follow a known level
of Gaussian noise (schedule, one_step) are approximations for 'dct', whose noise of the same rms
lies elsewhere in the spectrum, and know no level of 'augmix'.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from purify.data.image_io import to_float
from purify.options import check_options, choose
from purify.random import image_keys
from purify.runtime.compilation import jit
from purify.training.augmix import AugMix
from purify.types import Array, Image, Key


class Perturbation(Protocol):
    """A frozen dataclass of options, `perturbation(key, image) -> displacement` [H, W, C] of an
    image in [0, 1].

    has_levels: the displacement has root-mean-square 1 in expectation, at any image, to be
        multiplied by a noise level; else it is x' - x itself.
    """

    has_levels: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, key: Key, image: Image) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """z ~ N(0, I)."""

    has_levels: ClassVar[bool] = True

    def __call__(self, key: Key, image: Image) -> Array:
        return jax.random.normal(key, image.shape, image.dtype)


@dataclasses.dataclass(frozen=True)
class DCTNoise:
    """z = IDCT(w n), n ~ N(0, I), in the orthonormal two-dimensional DCT-II of each channel.

    The standard deviation w(u, v) is proportional to (1 + sqrt(u^2 + v^2))^-power, u and v counting
    half-waves per image side, and of mean square 1, so that z has rms 1. Power 1 is noise with the
    1/f spectrum of natural images; power 0 is white, which is Gaussian noise on pixels.

    h(x') is then sigma times the noise's covariance C (C = IDCT w^2 DCT) times the score of x', in
    general no gradient field: the energy head learns the gradient field nearest to it.
    """

    power: float = 1.0
    has_levels: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.power < math.inf:
            raise ValueError(f"dct: power={self.power} must be at least 0 and finite")

    def __call__(self, key: Key, image: Image) -> Array:
        height, width, _ = image.shape
        deviations = jnp.asarray(self.deviations(height, width), image.dtype)[..., None]
        n = jax.random.normal(key, image.shape, image.dtype)
        rows, columns = (jnp.asarray(dct_matrix(side), image.dtype) for side in (height, width))
        # The inverse of an orthonormal matrix is its transpose.
        return jnp.einsum("uy,vx,uvc->yxc", rows, columns, deviations * n)

    def deviations(self, height: int, width: int) -> np.ndarray:
        """w [height, width], of mean square 1."""
        u, v = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        w = (1.0 + np.hypot(u, v)) ** -self.power
        return w / np.sqrt(np.mean(w**2))


def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix, float64 [frequency, pixel]."""
    frequency, pixel = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    matrix = np.sqrt(2 / size) * np.cos(np.pi * frequency * (2 * pixel + 1) / (2 * size))
    matrix[0] = np.sqrt(1 / size)
    return matrix


PERTURBATIONS = {"gaussian": Gaussian, "dct": DCTNoise, "augmix": AugMix}
GAUSSIAN = Gaussian()


def build(name: str, **options) -> Perturbation:
    """The perturbation `name` with its options; ValueError that lists what exists otherwise."""
    make = choose("perturbation", PERTURBATIONS, name)
    check_options(name, make, options)
    return make(**options)


def scaled(perturbation: Perturbation, sigma_eff: float) -> Callable[[Key, Image], Array]:
    """The displacement in units of sigma_eff."""
    return lambda key, image: perturbation(key, image) / sigma_eff


def effective_sigma(
    perturbation: Perturbation, images: np.ndarray, *, seed: int, batch_size: int = 256
) -> float:
    """sigma_eff, the rms of x' - x over images (uint8 [n, H, W, C]), one draw of each.

    ValueError where the perturbation leaves all of them as they are.
    """

    @jit
    @jax.vmap
    def sum_of_squares(key: Key, image: Image) -> Array:
        return jnp.sum(perturbation(key, image) ** 2)

    total = 0.0
    for start in range(0, len(images), batch_size):
        at = np.arange(start, start + batch_size) % len(images)  # one shape, compiled once
        keys = image_keys(seed, at, stream="perturbation")
        sums = np.asarray(sum_of_squares(keys, to_float(images[at])), np.float64)
        total += float(sums[: len(images) - start].sum())
    if not total > 0:
        raise ValueError("the perturbation leaves every training image as it is")
    return math.sqrt(total / images.size)
