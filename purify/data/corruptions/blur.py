"""Blur: defocus, glass, motion, zoom and Gaussian; see noise.py for what functions take.

What differs from the programs that made CIFAR-10-C: OpenCV's and scikit-image's filters are
SciPy's, with the same borders; ImageMagick's motion blur is written anew, with its weights and
offsets (`smear`).
"""

import numpy as np
from scipy import ndimage

from purify.data.corruptions.levels import nearest, truncate


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [H, W, C] or [H, W]; the edge goes on outside."""
    return ndimage.gaussian_filter(image, sigma, mode="nearest", axes=(0, 1))


def gaussian_blur(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    return blurred(image, (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1])


def defocus_blur(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """The mean over a disk, whose edge is softened."""
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    rows, columns = np.mgrid[-3:4, -3:4]
    disk = (rows**2 + columns**2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * soft**2))
    kernel = ndimage.convolve(disk, np.outer(taps, taps), mode="constant")
    return ndimage.correlate(image, (kernel / kernel.sum())[..., None], mode="mirror")


def glass_blur(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Blurred, each pixel taken from where it was or one further up or left, and blurred again.

    CIFAR-10-C means to swap pixels, but swaps views of one array: each takes its neighbour's value
    and gives none. Its files are what counts, so nothing is swapped here. It goes from the last
    pixel to the first, so no pixel that is taken was written before.
    """
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    image = truncate(blurred(image, sigma)) / 255.0
    rows, columns = np.mgrid[2 : image.shape[0], 2 : image.shape[1]]
    for _ in range(rounds):
        up, left = rng.integers(0, 2, (2, *rows.shape))
        image[2:, 2:] = image[rows - up, columns - left]
    return blurred(image, sigma)


def motion_blur(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Along a line at up to 45 degrees from the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return nearest(smear(image, radius=radius, sigma=sigma, degrees=rng.uniform(-45, 45)))


def smear(image: np.ndarray, *, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """One-sided motion blur of [H, W, C]; the edge goes on outside.

    Pixel p is the mean of the pixels at p + i (cos, sin), rounded, for i from 0 to 2 radius, with
    weights exp(-i^2 / (2 sigma^2)).
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle, reach = np.radians(degrees), len(steps)
    down, right = (np.ceil(steps * f(angle) - 0.5).astype(int) for f in (np.sin, np.cos))
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    return sum(
        weight * padded[reach + y : reach + y + height, reach + x : reach + x + width]
        for weight, y, x in zip(weights / weights.sum(), down, right, strict=True)
    )


def zoom_blur(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """The mean of the image and of itself at several magnifications."""
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    return (image + sum(zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the image [H, W, C], magnified to its size; bilinear."""
    middle = image
    for axis in (0, 1):
        size = image.shape[axis]
        kept = int(np.ceil(size / factor))
        start = (size - kept) // 2
        middle = middle.take(range(start, start + kept), axis)
    large = ndimage.zoom(middle, (factor, factor, 1), order=1, mode="nearest")
    top, left = ((large.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
    return large[top : top + image.shape[0], left : left + image.shape[1]]
