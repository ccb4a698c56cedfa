"""Attacks on randomised classifiers: `attack(key, logits_fn, image, label)`, for one image."""

import dataclasses

from attacks.apgd import APGD
from attacks.carlini_wagner import CarliniWagner
from attacks.fab import FAB
from attacks.fmn import FMN
from attacks.pgd import PGD
from attacks.rays import RayS
from attacks.square import Square
from attacks.types import Attack

ATTACKS = {
    "pgd": PGD,
    "apgd": APGD,
    "fab": FAB,
    "fmn": FMN,
    "carlini_wagner": CarliniWagner,
    "square": Square,
    "rays": RayS,
}


def build(name: str, **options) -> Attack:
    """The attack `name`; ValueError for an unknown name or option, listing what exists."""
    if name not in ATTACKS:
        raise ValueError(f"attack {name!r} is unknown; known: {', '.join(ATTACKS)}")
    known = {field.name for field in dataclasses.fields(ATTACKS[name])}
    if unknown := set(options) - known:
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    return ATTACKS[name](**options)
