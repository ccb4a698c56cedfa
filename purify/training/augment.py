"""Random changes of a training image that keep its class, for one image."""

import jax
import jax.numpy as jnp

from purify.types import Image, Key


def flip(key: Key, image: Image) -> Image:
    """Mirror left and right, with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def crop(key: Key, image: Image) -> Image:
    """Shift by up to an eighth of the height in each direction, zeros coming in."""
    pad = max(image.shape[0] // 8, 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corner = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)


def flip_crop(key: Key, image: Image) -> Image:
    """Both."""
    flip_key, crop_key = jax.random.split(key)
    return crop(crop_key, flip(flip_key, image))


AUGMENTATIONS = {
    "none": lambda key, image: image,
    "flip": flip,
    "crop": crop,
    "flip_crop": flip_crop,
}
