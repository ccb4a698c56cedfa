"""Data parallelism: a batch is split over all devices, everything else is copied to each.

The devices may belong to several processes, on one machine or many. All of them run the same
program on the same data; each computes its devices' part, and the first one writes.
"""

import secrets

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from purify.runtime.messages import counted
from purify.types import PyTree


def _sharding(*axes: str) -> NamedSharding:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def replicated() -> NamedSharding:
    """The sharding of what every device has a copy of."""
    return _sharding()


def check_batch_size(field: str, batch_size: int) -> None:
    """ValueError unless batches of that size can be split over the devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise ValueError(
            f"{field}={batch_size} must be a positive multiple of the "
            f"{counted(jax.device_count(), 'device')}"
        )


def balanced(batch_size: int, num_images: int, *, blocks: bool = False) -> int:
    """The size of batches, of batch_size at most, in which so many images are computed: as few
    batches as possible, all of one size, so that one program serves, which the devices share.

    Less than one image a batch and device is padding; none where batch_size divides num_images, and
    is the size then. A function of what is asked for, never of what is left of it: an interruption
    changes no rounding.

    blocks: each batch is of batch_size images, or of all where there are fewer: where neighbours
    count, who they are must not change with num_images.
    """
    if blocks:
        num_images = min(num_images, batch_size)
    share = max(1, -(-num_images // batch_size)) * jax.device_count()
    return max(1, -(-num_images // share)) * jax.device_count()


def shard(batch: PyTree) -> PyTree:
    """Arrays [B, ...] -> the same, B split over the devices."""
    return _put(batch, _sharding("data"))


def replicate(tree: PyTree) -> PyTree:
    """The same arrays on every device."""
    return _put(tree, replicated())


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):  # every process has the whole of it, and gives its devices their part
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.jit(jax.random.wrap_key_data)(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(put, tree)


def fetch(tree: PyTree) -> PyTree:
    """NumPy arrays of all processes' parts, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def is_first_process() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def shared_token() -> str:
    """16 random hex digits, the same in all processes."""
    token = np.frombuffer(secrets.token_bytes(8), np.uint32)
    if jax.process_count() > 1:
        token = np.asarray(multihost_utils.broadcast_one_to_all(token))
    return token.tobytes().hex()


def wait_for_all(reason: str) -> None:
    """Return when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)
