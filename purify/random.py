"""Random keys are folded, never carried: key = fold_in(fold_in(root, stream), index).

A draw therefore depends on the root seed, what it is for (its stream) and which image or step it
belongs to, and on nothing else: not on the batch, the order of work, or an interruption.
"""

import zlib

import jax
import jax.numpy as jnp

from purify.types import Array, Key

# Attack and defence draw from different streams, so the attacker never knows the defence's noise.
# 'selection' is the attacker's too: on its draws it chooses among images that attacks have found.
# On those of 'perturbation' the size of what a score model learns to undo is measured; 'detection'
# is the statistics' of a detector, and 'calibration' where they set its threshold.
STREAMS = {"init": 0, "train": 1, "attack": 2, "defense": 3, "purify": 4, "selection": 5}
STREAMS |= {"perturbation": 6, "corruption": 7, "detection": 8, "sample": 9}
STREAMS |= {"calibration": 10}


def stream_key(seed: int, stream: str) -> Key:
    """The root key of a named stream; KeyError names are those of STREAMS."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS[stream])


def index_keys(key: Key, indices: Array) -> Key:
    """One key per dataset index: int [n] -> keys [n]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def image_keys(seed: int, indices: Array, *, stream: str = "defense") -> Key:
    """The keys [n] of images by their dataset indices [n]."""
    return index_keys(stream_key(seed, stream), jnp.asarray(indices))


def keys_apart(keys: Key, name: str) -> Key:
    """The keys [n] of something that shall not draw what others draw with `keys`, by its name."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, zlib.crc32(name.encode()))
