"""Weights of this project's own networks as one file: .safetensors, with the settings inside.

Arrays are float32 under their Flax paths joined by '/', such as params/Conv_0/kernel; the metadata
field 'settings' is JSON: network, image shape, head, and how the weights were made.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as save_bytes

from purify import models
from purify.models.options import num_blocks
from purify.runtime.errors import FileError
from purify.runtime.messages import printable, shown
from purify.saving import schema
from purify.saving.files import make_folders, writing
from purify.saving.jsonl import parse
from purify.saving.tensors import read_metadata, read_tensors
from purify.types import PyTree

MAX_DEPTH = 20  # of values in values in settings


def save(path: Path, settings: Mapping, variables: PyTree) -> None:
    """Write the file whole or not at all; ValueError if it exists, or reads otherwise than it was
    written."""
    if path.exists():
        raise ValueError(
            f"'{shown(path)}' exists already; choose another --output, or move it away"
        )
    make_folders(path.parent)
    # safetensors' own save_file would let nobody but the user read it.
    content = save_bytes(_named(variables), {"settings": json.dumps(settings)})
    with writing(path, new=True) as file:
        file.write(content)
        file.seek(0)
        if file.read() != content:
            raise ValueError(
                f"'{shown(path)}' reads otherwise than it was written; choose another --output"
            )


def is_own(path: Path) -> bool:
    """Whether the file is one of `save`; FileError for a damaged file of that form."""
    try:
        return "settings" in read_metadata(path, f"'{shown(path)}'")
    except FileError:
        if path.suffix.lower() == ".safetensors":
            raise
        return False


def load(path: Path) -> tuple[dict, PyTree]:
    """(settings, variables) of a file that `is_own`; FileError where they do not fit together."""
    name = f"'{shown(path)}'"
    text, arrays = read_metadata(path, name).get("settings", ""), read_tensors(path, name)
    try:
        settings, expected = _read_settings(text, len(arrays))
    except (ValueError, TypeError) as error:  # TypeError: of layers, about shapes
        reason = printable(error)
        raise FileError(f"{name} has settings of another program ({reason})") from error
    needed, given = (
        {key: (array.shape, str(array.dtype)) for key, array in named.items()}
        for named in (_named(expected), arrays)
    )
    if given != needed:
        wrong = sorted(given.items() ^ needed.items())
        first = printable(wrong[0])
        raise FileError(f"{name}: {len(wrong)} arrays do not fit its network, as {first}")
    return settings, jax.tree.unflatten(jax.tree.structure(expected), [arrays[n] for n in needed])


def _read_settings(text: str, num_arrays: int) -> tuple[dict, PyTree]:
    """Settings and the shapes of their network's variables, which take no memory, if there may be
    so many arrays; ValueError or TypeError where there is no such network, or its loading would
    fail for them."""
    settings = parse(text)
    _check_depth(settings)
    known, network = models.described(schema.settings(settings))
    if 2 * num_blocks(vars(network)) > num_arrays:  # before time is spent on them
        raise ValueError(f"{num_arrays} arrays are too few for its network")
    image = jax.ShapeDtypeStruct((1, *known["image_shape"]), np.float32)
    return settings, jax.eval_shape(network.init, jax.random.key(0), image)


def _check_depth(value: Any, left: int = MAX_DEPTH) -> None:
    if not left:
        raise ValueError("nested too deeply")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _check_depth(part, left - 1)


def _named(tree: PyTree) -> dict:
    """path joined by '/' -> leaf, in the order of the tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
