"""Whether a results.json is one of its mode, and whole."""

import collections
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from purify.saving.schema.atoms import check
from purify.saving.schema.modes import MODES

VERSION = 1  # of what is written; a file of an earlier one has none


class LaterVersion(ValueError):
    """A file is of a version that this code does not know."""


def results(value: Any, mode: str) -> dict:
    """What a results.json of that mode holds, of this version or an earlier one; ValueError that
    says what is wrong with it."""
    version = check(value, dict[str, Any]).get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise ValueError("`$.version` is no number of a version")
    if version > VERSION:
        raise LaterVersion(
            f"is of version {version:,}, but {VERSION} is the latest that this code knows: read it "
            "with the code that wrote it"
        )
    check(value, MODES[mode])
    for name, section in value["config"].items():
        if name != "seed" and not isinstance(section, dict):
            raise ValueError(f"Expected `object` - at `$.config.{name}`")
    _check_intervals(value, "$")
    _WHOLE.get(mode, lambda _: None)(value)
    return value


# How the names of an interval's ends begin -> what it is of: the first of these fields beside them.
_ESTIMATED = {
    "": ("average_certified_radius", "mean_difference", "accuracy", "value"),
    "difference_": ("difference",),
}
_ROUNDING = 1e-9


def _check_intervals(value: Any, where: str) -> None:
    """All intervals are around what they are of: a figure can draw no other, and a table should
    show none."""
    if isinstance(value, list):
        for place, each in enumerate(value):
            _check_intervals(each, f"{where}[{place}]")
    if not isinstance(value, dict):
        return
    for prefix, fields in _ESTIMATED.items():
        inner = next((value[name] for name in fields if name in value), None)
        ordered = value.get(f"{prefix}low"), inner, value.get(f"{prefix}high")
        ends = [each for each in ordered if isinstance(each, int | float)]
        if any(a > b + _ROUNDING for a, b in itertools.pairwise(ends)):
            raise ValueError(f"`{where}` has an interval that is not around its value")
    for name, each in value.items():
        _check_intervals(each, f"{where}.{name}")


def _robust_is_whole(value: Mapping) -> None:
    """Each attack on each defence has a main row."""
    named: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for row in value["rows"]:
        name, protocol = row["defense"]["name"], row["protocol"]
        single = protocol == "mean" and row["single_run"] and row["defense"]["S"] == 1
        named[name, row["attack"]].add("S=1" if single else protocol)
    for (defense, attack), protocols in named.items():
        if not protocols & {"mean", "fixed_key"}:
            raise ValueError(f"`$.rows` lack the mean of draws of {defense} under {attack}")
        if defense not in value["config"]["eval"]["defenses"]:
            raise ValueError(f"`$.config.eval.defenses` lack {defense}, of which there are rows")
    for defense, attack in value["headline"].items():
        if any(name == defense for name, _ in named) and (defense, attack) not in named:
            raise ValueError(f"`$.rows` lack the headline of {defense}, {attack}")


def _certified_is_whole(value: Mapping) -> None:
    """All rows are of the same radii."""
    entries = [*value["rows"], *value["differences"]]
    _same("radii", ([at["radius"] for at in entry["certified"]] for entry in entries))


def _corruptions_are_whole(value: Mapping) -> None:
    """All corruptions are of the same defences."""
    lines: dict[str, list[str]] = collections.defaultdict(list)
    for entry in value["means"]:
        lines[entry["corruption"]].append(entry["defense"]["name"])
    _same("defences", lines.values())


def _same(what: str, found: Iterable[Iterable[Hashable]]) -> None:
    if len({tuple(each) for each in found}) > 1:
        raise ValueError(f"its entries are not all of the same {what}: some are missing")


_WHOLE: dict[str, Callable[[Mapping], None]] = {
    "eval_robust": _robust_is_whole,
    "certify": _certified_is_whole,
    "eval_corruptions": _corruptions_are_whole,
}
