"""Snow, frost, fog and spatter; see noise.py for what functions take.

What differs from the programs that made CIFAR-10-C: frost has six photographs there, which are not
ours to ship, and here a texture that is drawn anew for each image (`ice`), so that it is NOT
comparable with CIFAR-10-C's; Canny's edges in `spatter` are the outlines of the drops, which is all
that it finds in them, and its distances are exact; snow is smeared by blur.smear.
"""

import numpy as np
from scipy import ndimage

from purify.data.corruptions.blur import blurred, smear, zoomed
from purify.data.corruptions.levels import nearest, truncate

LUMINANCE = np.array([0.299, 0.587, 0.114])
# Colours, RGB.
WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255
ICE = np.array([0.82, 0.91, 1.0])


def fog(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """A fractal haze, added; the brightest pixel stays the brightest."""
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    brightest = image.max()
    haze = plasma(rng, image.shape[:2], decay)[..., None]
    return (image + amount * haze) * brightest / (brightest + amount)


def snow(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Flakes of thresholded noise, smeared as they fall, on a whitened image."""
    loc, scale, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    flakes = zoomed(rng.normal(loc, scale, (*image.shape[:2], 1)), zoom)
    flakes = truncate(np.where(flakes < least, 0.0, flakes)) / 255.0
    flakes = smear(flakes, radius=radius, sigma=sigma, degrees=rng.uniform(-135, -45))
    flakes = nearest(flakes)
    whitened = np.maximum(image, 1.5 * grey(image) + 0.5)
    return kept * image + (1 - kept) * whitened + flakes + np.rot90(flakes, 2)


def frost(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Ice over a dimmed image, of `ice`: not comparable with CIFAR-10-C's."""
    kept, amount = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    return kept * image + amount * tinted(ice(rng, image.shape[:2]), ICE, image)


def ice(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """How white the ice is, [H, W] in [0, 1]: a fractal cover, and crystals where another fractal
    crosses its mean, which makes thin bent lines."""
    cover, field = (plasma(rng, size, decay) for decay in (1.6, 1.4))
    crystals = np.clip(1.0 - 6.0 * np.abs(field - field.mean()), 0.0, 1.0) ** 2
    return np.clip(0.2 + 0.5 * cover + 0.6 * crystals * cover, 0.0, 1.0)


def spatter(rng: np.random.Generator, image: np.ndarray, severity: int) -> np.ndarray:
    """Drops of water on the lens (severity 1 to 3), or of mud."""
    loc, scale, sigma, least, strength, mud = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )[severity - 1]
    liquid = blurred(rng.normal(loc, scale, image.shape[:2]), sigma)
    drops = liquid >= least
    if mud:
        cover = blurred(drops.astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0.0, cover)
        return image * (1 - cover[..., None]) + tinted(cover, MUD, image)
    shine = np.where(drops, truncate(liquid), 0) * _depth(drops)
    return image + strength * tinted(shine / max(shine.max(), 1e-9), WATER, image)


def _depth(drops: np.ndarray) -> np.ndarray:
    """How the drops shine, [H, W] levels from 0 to 255: by the distance from their outlines, all
    distances made equally frequent, lit from the upper left."""
    outline = drops & ~ndimage.binary_erosion(drops, border_value=1)
    distance = np.full(drops.shape, 20.0)
    if outline.any():
        distance = np.minimum(ndimage.distance_transform_edt(~outline), 20.0)
    levels = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = ndimage.correlate(_equalised(levels).astype(np.float64), light, mode="mirror")
    return ndimage.uniform_filter(np.clip(lit, 0, 255), 3, mode="mirror").clip(0)  # of rounding


def _equalised(levels: np.ndarray) -> np.ndarray:
    """uint8 levels, spread so that all are about equally frequent; one level alone stays."""
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = counts[levels.min()]
    if lowest == levels.size:
        return levels
    table = (counts.cumsum() - lowest) * 255 / (levels.size - lowest)
    return np.rint(table.clip(0, 255)).astype(np.uint8)[levels]


def plasma(rng: np.random.Generator, size: tuple[int, int], decay: float) -> np.ndarray:
    """Fractal noise [H, W] from 0 to 1, rough where decay is small, by diamonds and squares.

    On a torus whose side is a power of two, cut to size. From one scale to the next finer one the
    noise falls by decay squared.
    """
    side = 1 << int(max(*size, 2) - 1).bit_length()
    heights, amplitude, step = np.zeros((side, side)), 1.0, side
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]

        def wobble(mean, amplitude=amplitude):
            return mean / 4 + amplitude * rng.uniform(-1, 1, mean.shape)

        below = corners + np.roll(corners, -1, 0)
        centres = wobble(below + np.roll(below, -1, 1))
        heights[half::step, half::step] = centres
        heights[half::step, ::step] = wobble(below + centres + np.roll(centres, 1, 1))
        right = corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = wobble(right + centres + np.roll(centres, 1, 0))
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return (heights / heights.max())[: size[0], : size[1]]


def grey(image: np.ndarray) -> np.ndarray:
    """The luminance of an image [H, W, C], C 1 or 3: [H, W, 1]."""
    return image if image.shape[-1] == 1 else (image @ LUMINANCE)[..., None]


def tinted(amount: np.ndarray, colour: np.ndarray, image: np.ndarray) -> np.ndarray:
    """[H, W] times the colour, [H, W, 3], or times its luminance where the image is greyscale."""
    return amount[..., None] * (colour if image.shape[-1] == 3 else colour @ LUMINANCE)
