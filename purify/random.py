"""Random keys are folded, never carried: key = fold_in(fold_in(root, stream), index).

A draw therefore depends on the root seed, what it is for (its stream) and which image or step it
belongs to, and on nothing else: not on the batch, the order of work, or an interruption.
"""

import operator
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from purify.types import Array, Key

# Attack and defence draw from different streams, so the attacker never knows the defence's noise.
# 'selection' is the attacker's too: on its draws it chooses among images that attacks have found.
# On those of 'perturbation' the size of what a score model learns to undo is measured; 'detection'
# is the statistics' of a detector, and 'calibration' where they set its threshold.
STREAMS = {"init": 0, "train": 1, "attack": 2, "defense": 3, "purify": 4, "selection": 5}
STREAMS |= {"perturbation": 6, "corruption": 7, "detection": 8, "sample": 9}
STREAMS |= {"calibration": 10}
MAX_SEED = 2**32 - 1  # of higher numbers keys have the lowest 32 bits only, and draw the same


def check_seed(seed: int, field: str = "seed") -> int:
    """The seed as an int; ValueError that names the field unless it is an integer from 0 to
    MAX_SEED, each of which draws differently."""
    try:
        number = -1 if isinstance(seed, bool | np.bool_) else operator.index(seed)
    except TypeError:  # no integer, or one that is known to a compiled program only
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise ValueError(f"{field}={seed!r} must be an integer from 0 to 2**32 - 1 = {MAX_SEED}")
    return number


def root_key(seed: int) -> Key:
    """The key of a seed, see check_seed."""
    return jax.random.key(check_seed(seed))


def generator(seed: int) -> np.random.Generator:
    """NumPy's generator of a seed, see check_seed."""
    return np.random.default_rng(check_seed(seed))


def stream_key(seed: int, stream: str) -> Key:
    """The root key of a named stream; KeyError names are those of STREAMS."""
    return jax.random.fold_in(root_key(seed), STREAMS[stream])


def index_keys(key: Key, indices: Array) -> Key:
    """One key per dataset index: int [n] -> keys [n]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def image_keys(seed: int, indices: Array, *, stream: str = "defense") -> Key:
    """The keys [n] of images by their dataset indices [n], integers from 0 to MAX_SEED; ValueError
    for others, but in a program that is being traced, where their values are not known."""
    return index_keys(stream_key(seed, stream), _checked(indices))


def keys_apart(keys: Key, name: str) -> Key:
    """The keys [n] of something that shall not draw what others draw with `keys`, by its name."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, zlib.crc32(name.encode()))


def _checked(indices: Array) -> Array:
    traced = isinstance(indices, jax.core.Tracer)
    known = np.empty(indices.shape, indices.dtype) if traced else np.asarray(indices)
    if known.ndim == 1 and not known.size:
        return jnp.zeros(0, jnp.uint32)
    integers = known.ndim == 1 and known.dtype.kind in "iu"
    if integers and traced:
        return indices
    if integers and known.min() >= 0 and known.max() <= MAX_SEED:
        return jnp.asarray(known.astype(np.uint32))
    what = f", from {known.min()} to {known.max()}" if integers else ""
    raise ValueError(
        f"indices must be n integers from 0 to 2**32 - 1 = {MAX_SEED}; they are of shape "
        f"{known.shape} and type {known.dtype}{what}"
    )
