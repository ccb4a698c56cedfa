"""Data parallelism: a batch is split over all devices, everything else is copied to each."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from purify.types import PyTree


def _sharding(*axes: str) -> NamedSharding:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def check_batch_size(field: str, batch_size: int) -> None:
    """ValueError unless batches of that size can be split over the devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise ValueError(
            f"{field}={batch_size} must be a positive multiple of the {jax.device_count()} devices"
        )


def shard(batch: PyTree) -> PyTree:
    """Arrays [B, ...] -> the same, B split over the devices."""
    return jax.device_put(batch, _sharding("data"))


def replicate(tree: PyTree) -> PyTree:
    """The same arrays on every device."""
    return jax.device_put(tree, _sharding())
