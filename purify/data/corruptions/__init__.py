"""Common corruptions of images at five severities, as in CIFAR-10-C.

The corruptions and their constants are those of Hendrycks and Dietterich (ICLR 2019), as
hendrycks/robustness has them for CIFAR-10 (ImageNet-C/create_c/make_cifar_c.py). Images are of
other random numbers than CIFAR-10-C's files, and `frost` is another texture altogether: see
weather.py. Constants are meant for 32 x 32 pixels; other sizes work.
"""

from collections.abc import Callable

import jax
import numpy as np

from purify.data.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from purify.data.corruptions.digital import (
    brightness,
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from purify.data.corruptions.levels import truncate
from purify.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from purify.data.corruptions.weather import fog, frost, snow, spatter
from purify.data.image_io import to_float
from purify.options import choose
from purify.types import Key

# In CIFAR-10-C's order; the last four are its extra ones, left out of its mean.
CORRUPTIONS: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(key: Key, image: np.ndarray, *, name: str, severity: int) -> np.ndarray:
    """A corrupted image, float32 [H, W, C] on the 8-bit levels of [0, 1], a function of the key.

    Computed on the host, one image at a time. Levels are cut off, not rounded, as CIFAR-10-C's are.

    Args:
      key: a typed JAX key.
      image: float [H, W, C] in [0, 1], C 1 or 3, at least 8 x 8.
      name: one of CORRUPTIONS. severity: one of SEVERITIES.

    Raises ValueError for another name, severity or shape.
    """
    function = choose("corruption", CORRUPTIONS, name)
    if severity not in SEVERITIES:
        known = ", ".join(map(str, SEVERITIES))
        raise ValueError(f"severity {severity!r} of {name} is unknown; known: {known}")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or min(image.shape[:2]) < 8:
        raise ValueError(
            f"an image of shape {image.shape} cannot be corrupted: it must be [H, W, C], C 1 or 3, "
            "H and W at least 8"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    return to_float(truncate(function(rng, image.astype(np.float64), severity)))
