"""Weights of this project's own networks as one file: .safetensors, with the settings inside.

Arrays are float32 under their Flax paths joined by '/', such as params/Conv_0/kernel; the metadata
field 'settings' is JSON: network, image shape, head, and how the weights were made.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_bytes

from purify import models
from purify.types import PyTree


def save(path: Path, settings: Mapping, variables: PyTree) -> None:
    """Write the file whole or not at all; ValueError if it exists, or reads otherwise than it was
    written."""
    if path.exists():
        raise ValueError(f"'{path}' exists already; choose another --output, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # safetensors' own save_file would let nobody but the user read it.
    content = save_bytes(_named(variables), {"settings": json.dumps(settings)})
    partial.write_bytes(content)
    if partial.read_bytes() != content:
        raise ValueError(
            f"'{partial}' reads otherwise than it was written; choose another --output"
        )
    partial.rename(path)


def is_own(path: Path) -> bool:
    """Whether the file is one of `save`."""
    try:
        with safe_open(path, "numpy") as file:
            return "settings" in (file.metadata() or {})
    except SafetensorError:
        return False


def load(path: Path) -> tuple[dict, PyTree]:
    """(settings, variables) of a file that `is_own`; ValueError where they do not fit together."""
    with safe_open(path, "numpy") as file:
        try:
            settings = json.loads(file.metadata()["settings"])
            network = models.build(**settings["network"])
            image = np.zeros((1, *settings["image_shape"]), np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' has settings of another program ({error!r})") from error
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    expected = jax.eval_shape(network.init, jax.random.key(0), image)
    needed, given = (
        {name: (array.shape, str(array.dtype)) for name, array in named.items()}
        for named in (_named(expected), arrays)
    )
    if given != needed:
        wrong = sorted(given.items() ^ needed.items())
        raise ValueError(f"'{path}': {len(wrong)} arrays do not fit its network, as {wrong[0]}")
    return settings, jax.tree.unflatten(jax.tree.structure(expected), [arrays[n] for n in needed])


def _named(tree: PyTree) -> dict:
    """path joined by '/' -> leaf, in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
