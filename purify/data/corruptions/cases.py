"""Corruptions of many images, each with its own key."""

from typing import NamedTuple

import jax
import numpy as np

from purify.data.corruptions import CORRUPTIONS, corrupt
from purify.random import image_keys


class Case(NamedTuple):
    """One corruption at one severity."""

    corruption: str
    severity: int

    @property
    def name(self) -> str:
        return f"{self.corruption}_{self.severity}"


def corrupted(seed: int, images: np.ndarray, indices: np.ndarray, case: Case) -> np.ndarray:
    """Corrupted images, float32 [n, H, W, C], of float images [n, H, W, C] in [0, 1].

    The key of each is folded from the seed, its dataset index (indices: [n]), the corruption and
    the severity: its neighbours, and what else is computed, do not matter.
    """
    place = list(CORRUPTIONS).index(case.corruption)
    keys = image_keys(seed, indices, stream="corruption")
    for number in (place, case.severity):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
    return np.stack(
        [
            corrupt(key, image, name=case.corruption, severity=case.severity)
            for key, image in zip(keys, images, strict=True)
        ]
    )
