"""States of training in files, as Orbax writes and reads them."""

import math
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from purify.runtime.paths import as_given, is_of_system, plain_spelling
from purify.saving.files import memory_for
from purify.types import PyTree

NAME = "state"  # what a checkpoint calls it
FACTOR = 64  # bytes of a state for one of its files, which are compressed


def save(path: Path, state: PyTree) -> None:
    ocp.save_checkpointables(_plain(path), {NAME: state})


def load(path: Path, abstract_state: PyTree) -> PyTree:
    """The state in a checkpoint, placed as abstract_state says."""
    return ocp.load_checkpointables(_plain(path), {NAME: abstract_state})[NAME]


def declared(path: Path, size: int) -> PyTree:
    """What makes `load` give the state as NumPy arrays, whatever devices saved it; ValueError where
    a checkpoint of `size` bytes declares larger ones than it can hold."""
    state = ocp.checkpointables_metadata(_plain(path)).metadata[NAME]
    if state is None:  # Orbax cannot read it, and would load whatever is there
        raise ValueError("what it declares is no state of training")
    shapes = ((leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(state))
    needed = sum(abs(math.prod(shape)) * dtype.itemsize for shape, dtype in shapes)
    if needed > (most := memory_for(size, FACTOR)):
        raise ValueError(
            f"it declares arrays of {needed:,} bytes, of which its {size:,} hold at most {most:,}"
        )
    return on_host(state)


def on_host(state: PyTree) -> PyTree:
    """What makes `load` give such a state as NumPy arrays; nothing is filled in."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Leaf by leaf, so that one leaf at a time is copied from its device."""
    return all(
        np.array_equal(*(np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in pair))
        for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def reason_of(error: Exception) -> str:
    """Why a checkpoint cannot be read, in one line: Orbax raises many kinds for that. What memory
    and system lack is no fault of the files, and is raised as it is."""
    cause: BaseException = error
    while cause.__cause__:  # the first in a chain is the one that says what is wrong
        cause = cause.__cause__
    if is_of_system(cause):
        raise cause
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)
    return as_given(reason)[:200]


def _plain(path: Path) -> Path:
    """The path as Orbax takes it; the folder that it lies in must be there."""
    return Path(plain_spelling(str(path.parent))) / path.name
