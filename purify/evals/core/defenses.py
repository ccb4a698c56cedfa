"""The defences of a config, by name: a purifier, variants of it, and the networks of both."""

import os
import re
from collections.abc import Mapping
from typing import Any

from purify import purifiers
from purify.defense import Defense
from purify.options import choose
from purify.saving.checkpoint import ROLES
from purify.types import Purifier

Networks = Mapping[str, Any]  # by `network_run`: a Score or a Classifier, as the role says


def purifier_options(config, name: str, *, field: str = "defence") -> tuple[str, dict]:
    """(entry of PURIFIERS, its options) of a defence: config.<name>, or of config.variants.<name>
    the purifier that it names, with what it changes."""
    variants = config.variants.to_dict()
    choose(field, dict.fromkeys([*purifiers.PURIFIERS, *variants]), name)
    if name in purifiers.PURIFIERS and name not in variants:
        return _with_parts(config, f"config.{name}", {"purifier": name})
    if name in purifiers.PURIFIERS or not re.fullmatch(r"\w+", name):
        raise ValueError(
            f"config.variants.{name}: the name must be of letters, digits and _, and no purifier's"
        )
    return _with_parts(config, f"config.variants.{name}", variants[name])


def purifier_settings(config, name: str) -> dict:
    """The same as what decides a result: {'purifier': the entry, 'options': its options}."""
    kind, options = purifier_options(config, name)
    return {"purifier": kind, "options": options}


def defense_settings(config, name: str) -> dict:
    """The same of a defence: with the runs of its networks."""
    runs = {role: network_run(config, name, role) for role in ROLES}
    return purifier_settings(config, name) | runs


def _with_parts(config, field: str, changes: Mapping) -> tuple[str, dict]:
    """The same, of {"purifier": entry, and what is different}; a purifier's parts are described and
    completed likewise."""
    kind = changes.get("purifier")
    choose(f"{field}.purifier", purifiers.PURIFIERS, kind)
    options = config[kind].to_dict() | {
        option: changes[option] for option in changes if option not in ("purifier", *ROLES)
    }
    for part in purifiers.parts_of(kind):
        where, name = f"{field}.{part}", options[part].get("purifier")
        if name in purifiers.PURIFIERS and purifiers.parts_of(name):
            raise ValueError(f"{where}.purifier={name!r} has parts itself, so it cannot be one")
        name, own = _with_parts(config, where, options[part])
        options[part] = {"purifier": name, **own}
    return kind, options


def network_run(config, name: str, role: str) -> str:
    """The run whose network the defence of that name has in a role, 'score' or 'classifier': the
    role itself for the evaluation's own, or '<workdir>/<role>' of the workdir that
    config.variants.<name>.<role> names."""
    workdir = config.variants.to_dict().get(name, {}).get(role, "")
    if not isinstance(workdir, str):
        raise ValueError(f"config.variants.{name}.{role}={workdir!r} must be a workdir's path")
    return f"{os.path.normpath(workdir)}/{role}" if workdir else role


def variant_settings(config, name: str) -> dict:
    """config.variants.<name> as settings have it: its workdirs in one spelling."""
    variant = config.variants.to_dict()[name]
    return variant | {r: os.path.normpath(variant[r]) for r in ROLES if variant.get(r)}


def has_score(config, name: str) -> bool:
    """Whether the defence of that name has a score model; False where there is no such defence."""
    kind = config.variants.to_dict().get(name, {}).get("purifier", name)
    return kind in purifiers.PURIFIERS and purifiers.needs_score(kind)


def build_purifier(config, name: str, networks: Networks) -> Purifier:
    """The purifier of the defence of that name, with its options in the config; networks without
    its score model are enough where it needs none."""
    kind, options = purifier_options(config, name)
    return purifiers.build(kind, networks.get(network_run(config, name, "score")), **options)


def build_defense(config, name: str, networks: Networks) -> Defense:
    """The defence of that name.

    A purifier that draws nothing gives the same output every time: one run of it is enough.
    """
    purifier = build_purifier(config, name, networks)
    cfg = config.defense
    return Defense(
        purifier,
        networks[network_run(config, name, "classifier")],
        num_runs=cfg.num_runs if purifier.stochastic else 1,
        average=cfg.average,
        chunk=cfg.chunk or None,
    )
