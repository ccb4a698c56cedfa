"""Attacks on randomised classifiers: `attack(key, logits_fn, image, label)`, for one image."""

import dataclasses
from collections.abc import Callable

from attacks.pgd import PGD

ATTACKS = {"pgd": PGD}


def build(name: str, **options) -> Callable:
    """The attack `name`; ValueError for an unknown name or option, listing what exists."""
    if name not in ATTACKS:
        raise ValueError(f"attack {name!r} is unknown; known: {', '.join(ATTACKS)}")
    known = {field.name for field in dataclasses.fields(ATTACKS[name])}
    if unknown := set(options) - known:
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    return ATTACKS[name](**options)
