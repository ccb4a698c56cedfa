"""Noise: Gaussian, shot, impulse and speckle.

Functions of this package take a generator, a float image [H, W, C] in [0, 1] and a severity from 1
to 5, and return a float image of that shape, not clipped yet. Constants are those of CIFAR-10-C
(Hendrycks and Dietterich, ICLR 2019; hendrycks/robustness, make_cifar_c.py), for 32 x 32 pixels.
"""

import numpy as np


def gaussian_noise(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Normal noise, the same everywhere."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return image + rng.normal(scale=scale, size=image.shape)


def shot_noise(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Poisson noise, of so many photons at white."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return rng.poisson(photons * image) / photons


def impulse_noise(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Salt and pepper in equal parts, in each channel for itself."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit, salt = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    return np.where(hit, salt.astype(image.dtype), image)


def speckle_noise(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Normal noise in proportion to the brightness."""
    scale = (0.06, 0.10, 0.12, 0.16, 0.20)[severity - 1]
    return image + image * rng.normal(scale=scale, size=image.shape)
