"""The table of purifiers. A purifier is a frozen pytree, `purifier(key, image) -> image`."""

from purify.models.networks import Score
from purify.options import check_options, choose
from purify.purifiers.adp import ADP
from purify.purifiers.detect_then_purify import DetectThenPurify
from purify.purifiers.identity import Identity
from purify.purifiers.noise_only import NoiseOnly
from purify.purifiers.one_step import OneStep
from purify.purifiers.reference import ReferenceADP
from purify.purifiers.schedule import Schedule
from purify.types import Purifier

__all__ = [
    *("ADP", "DetectThenPurify", "Identity", "NoiseOnly", "OneStep", "ReferenceADP", "Schedule"),
    *("PURIFIERS", "build", "needs_score", "parts_of"),
]

PURIFIERS = {
    "identity": Identity,
    "noise_only": NoiseOnly,
    "one_step": OneStep,
    "schedule": Schedule,
    "adp": ADP,
    "adp_reference": ReferenceADP,
    "detect_then_purify": DetectThenPurify,
}


def parts_of(name: str) -> tuple[str, ...]:
    """The options of the purifier of that name that are purifiers themselves."""
    return getattr(choose("purifier", PURIFIERS, name), "parts", ())


def needs_score(name: str) -> bool:
    """Whether the purifier of that name has a score model."""
    return "score" in choose("purifier", PURIFIERS, name).__dataclass_fields__


def build(name: str, score: Score | None, **options) -> Purifier:
    """The purifier `name`; `score` may be None where none is needed. Options that are purifiers
    (parts_of) are given as {"purifier": its name, and its options}.

    Raises ValueError for an unknown name or option, listing what exists.
    """
    make = choose("purifier", PURIFIERS, name)
    check_options(name, make, options, reserved=frozenset({"score"}))
    for part in parts_of(name):
        if part not in options:
            raise ValueError(f"{name} needs {part}=dict(purifier=..., its options)")
        own = dict(options[part])
        options[part] = build(own.pop("purifier"), score, **own)
    if not needs_score(name):
        return make(**options)
    if score is None:
        raise ValueError(f"purifier {name!r} needs a score model")
    return make(score, **options)
