"""Adversarial purification with score-based generative models.

from purify import classify, image_keys, load_defense

defense = load_defense("runs/digits", "adp", num_runs=10)
logits = classify(defense, image_keys(0, range(len(images))), images)
"""

import importlib
from typing import Any

# Name -> the module that has it, imported when the name is first asked for: what needs no JAX, as
# the command line before its flags are read, does not wait for it.
_HOMES = {
    "ADP": "purifiers.adp",
    "PURIFIERS": "purifiers",
    "Classifier": "models.networks",
    "Defense": "defense",
    "Identity": "purifiers",
    "NoiseOnly": "purifiers",
    "OneStep": "purifiers",
    "Schedule": "purifiers",
    "Score": "models.networks",
    "classify": "defense",
    "image_keys": "random",
    "jit": "runtime.compilation",
    "load_classifier": "saving.checkpoint",
    "load_defense": "saving.checkpoint",
    "load_score": "saving.checkpoint",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
