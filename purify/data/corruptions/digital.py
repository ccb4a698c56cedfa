"""Contrast, colour, geometry and compression; see noise.py for what functions take.

What differs from the programs that made CIFAR-10-C: scikit-image's HSV is written out, and OpenCV's
affine map, which interpolates at 1/32 of a pixel, is SciPy's.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from purify.data.image_io import to_uint8


def contrast(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Nearer to the mean of each channel."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = image.mean((0, 1), keepdims=True)
    return factor * (image - mean) + mean


def brightness(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """More value V in HSV; of a greyscale image, more grey."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = image.max(-1, keepdims=True)
    brighter = np.minimum(value + more, 1.0)
    # Hue and saturation stay: all channels by one factor. Black has none, and turns grey.
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1.0), brighter)


def saturate(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Less (severity 1 and 2) or more saturation S in HSV; a greyscale image stays as it is.

    Grey pixels of a colour image have hue 0, so what is added to their saturation makes them red.
    """
    factor, more = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    if image.shape[-1] == 1:
        return image
    value = image.max(-1, keepdims=True)
    depth = value - image.min(-1, keepdims=True)
    saturation = depth / np.where(value > 0, value, 1.0)
    # How far below V each channel lies, in units of the deepest one's: the hue.
    below = np.where(depth > 0, (value - image) / np.where(depth > 0, depth, 1.0), [0.0, 1.0, 1.0])
    return value * (1.0 - np.clip(factor * saturation + more, 0.0, 1.0) * below)


def elastic_transform(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """An affine map that moves three points, then a smooth random displacement of each pixel.

    Lengths are in units of the shorter side.
    """
    reach, sigma, shift = min(image.shape[:2]) * np.array(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    )[severity - 1]  # fmt: skip
    size = image.shape[:2]
    centre, third = np.array(size) // 2, min(size) // 3
    points = centre + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + rng.uniform(-shift, shift, points.shape)
    # The map back, (row, column, 1) of the output -> (row, column) of the input.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    grid = np.stack(np.mgrid[: size[0], : size[1]], axis=-1)
    mapped = _sampled(image, grid @ back[:2] + back[2], mode="mirror")
    aside = rng.uniform(-1, 1, (2, *size))
    aside = ndimage.gaussian_filter(aside, sigma, mode="reflect", truncate=3, axes=(1, 2))
    return _sampled(mapped, grid + reach * np.moveaxis(aside, 0, -1), mode="reflect")


def _sampled(image: np.ndarray, places: np.ndarray, *, mode: str) -> np.ndarray:
    """The image [H, W, C] at places [H, W, 2], rows and columns; bilinear."""
    coordinates = np.moveaxis(places, -1, 0)
    channels = [
        ndimage.map_coordinates(channel, coordinates, order=1, mode=mode)
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def pixelate(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Shrunk and enlarged again, by the means of boxes."""
    factor = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = image.shape[:2]
    small = _to_pillow(image).resize(
        (int(factor * width), int(factor * height)), Image.Resampling.BOX
    )
    return _from_pillow(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    quality = (80, 65, 58, 50, 40)[severity - 1]
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return _from_pillow(Image.open(file))


def _to_pillow(image: np.ndarray) -> Image.Image:
    levels = to_uint8(image)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _from_pillow(image: Image.Image) -> np.ndarray:
    levels = np.asarray(image)
    return (levels[..., None] if levels.ndim == 2 else levels) / 255.0
