"""The 8-bit grid that corrupted images are kept on."""

import numpy as np

# Of one level: what rounding of float32 moved below a level is not cut off to the one before.
SLACK = 1e-3


def truncate(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and cut off to uint8 levels, as `np.uint8(255 * image)` does in CIFAR-10-C."""
    return np.floor(255.0 * np.clip(image, 0.0, 1.0).astype(np.float64) + SLACK).astype(np.uint8)


def nearest(image: np.ndarray) -> np.ndarray:
    """The image with each value at the nearest of the 256 levels, as an encoder stores it."""
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)) / 255.0
