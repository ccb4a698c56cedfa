"""Rows that differ in one number of the attack only, such as its radius: points of one curve."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from purify.evals.attacked.results import ATTACK_FIELDS, protocol_name
from purify.evals.core.inputs import without
from purify.purifiers import PURIFIERS

# What else makes an attack, and what must agree between the points of a curve beside that.
_ATTACK = (
    *("method", "gradient", "surrogate", "direction", "penalty", "source", "starts"),
    *("attack_steps", *ATTACK_FIELDS),
)
_SAME = ("defense", "num_images", "num_draws", "seed")
# Fields that follow another: of PGD the step is a share of the radius.
_FOLLOWS = {"step_size": "eps"}
# Shares that differ by less are the same: of numbers typed to three digits or so.
_ROUNDING = 1e-2


class Curve(NamedTuple):
    """label: of no other curve. points: rows of results.json, one for each value of the field,
    which rises."""

    label: str
    norm: str
    points: list[Mapping]


class _Group(NamedTuple):
    """workdir: of its first point. same, attack: what its points agree in. points: by value."""

    workdir: str
    same: dict
    attack: dict
    points: dict[float, Mapping]


def sweeps(results: Iterable[tuple[str, Mapping]], field: str) -> list[Curve]:
    """The curves of accuracy over a field of the attack ('eps', 'eot_samples') that these
    results.json, each with the name of its workdir, hold together: rows, by the mean of draws, that
    agree in all else, networks, purifier and data set included. Of rows with the same value the
    last one counts. Clean images, where they are as many, are those of eps 0."""
    groups: dict[str, _Group] = {}
    clean: dict[str, Mapping] = {}
    shares: list[float] = []
    for workdir, result in results:
        for row in (row for row in result["rows"] if protocol_name(row) == "mean"):
            same = _origin(result) | {"row": {name: row[name] for name in _SAME}}
            if row["attack"] == "clean":  # given images have no method either, but are attacked
                clean[_key(same)] = {**row, "eps": 0.0}
            elif row[field] is not None and "chosen" not in row:
                attack = {name: _fixed(row, name, shares) for name in _ATTACK if name != field}
                group = _Group(workdir, same, attack, {})
                groups.setdefault(_key([same, attack]), group).points[row[field]] = row
    found = [group for group in groups.values() if len(group.points) > 1]
    if field == "eps":
        for group in found:
            if unattacked := clean.get(_key(group.same)):
                group.points[0.0] = unattacked
    curves = [[group.points[value] for value in sorted(group.points)] for group in found]
    return [
        Curve(label, points[-1]["norm"], points)
        for label, points in zip(_labels(found), curves, strict=True)
    ]


def _key(value) -> str:
    return json.dumps(value, sort_keys=True)


def _origin(result: Mapping) -> dict:
    """Networks, images and purifiers of an evaluation."""
    config = result["config"]
    purifiers = {name: config.get(name) for name in (*PURIFIERS, "variants")}
    data, defense = without(config["data"], "dir"), without(config["defense"], "chunk")
    return {"data": data, "defense": defense, **purifiers, "weights": result["weights"]}


def _fixed(row: Mapping, name: str, shares: list[float]):
    """What must agree of a field. shares: all so far; this one, or one like it, is added."""
    value, follows = row.get(name), _FOLLOWS.get(name)
    if not (value and follows and row[follows]):
        return value
    share = value / row[follows]
    shares.append(next((s for s in shares if math.isclose(s, share, rel_tol=_ROUNDING)), share))
    return f"{shares[-1]:.4g} {follows}"


def _labels(groups: Sequence[_Group]) -> list[str]:
    """'defence, gradient' and whatever else tells the curves apart, each another one."""
    rows = [group.points[max(group.points)] for group in groups]
    labels = names = [row["defense"]["name"] for row in rows]
    for field in ("sigma", "T", "S", "average"):
        labels = _told(labels, field, [row["defense"].get(field) for row in rows], names)
    labels = [f"{label}, {row['gradient']}" for label, row in zip(labels, rows, strict=True)]
    for field in (field for field in _ATTACK if field not in (*_FOLLOWS, "gradient")):
        values = [group.attack.get(field) or None for group in groups]
        labels = _told(labels, field, values, [""] * len(rows))
    for short, field in (("n", "num_images"), ("N", "num_draws"), ("seed", "seed")):
        labels = _told(labels, short, [row[field] for row in rows], names)
    labels = _told(labels, "workdir", [group.workdir for group in groups], names)
    # Where that is not enough: all that differs in attack and defence, then one other setting.
    alike = labels
    for field, values in _columns([_own(group) for group in groups]):
        labels = _told(labels, field, values, alike)
    for field, values in _columns([{**group.attack, **group.same} for group in groups]):
        labels = _told(labels, field, values, labels)
    return labels


def _told(labels: list[str], field: str, values: Sequence, among: Sequence[str]) -> list[str]:
    """The labels, longer by the value (None: by nothing) where others of the same `among` have
    another one."""
    texts = [f"{value:g}" if isinstance(value, float) else value for value in values]
    found: dict[str, set[str]] = {}
    for same, text in zip(among, texts, strict=True):
        found.setdefault(same, set()).add(str(text))
    return [
        f"{label}, {field} {text}" if len(found[same]) > 1 and text is not None else label
        for label, text, same in zip(labels, texts, among, strict=True)
    ]


def _own(group: _Group) -> dict:
    """The settings of its attack and of its defence, which may be a variant."""
    name, variants = group.same["row"]["defense"]["name"], group.same["variants"] or {}
    changes = variants.get(name, {})
    return {**group.attack, **(group.same.get(changes.get("purifier", name)) or {}), **changes}


def _columns(settings: Sequence[Mapping]) -> Iterator[tuple[str, list[str | None]]]:
    """(dotted name, its values) of everything in any of the settings."""
    flat = [dict(_flat(each)) for each in settings]
    for name in dict.fromkeys(name for each in flat for name in each):
        yield name, [each.get(name) for each in flat]


def _flat(value, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of all that is in it, of a hash the first digits."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    else:
        yield path, str(value)[:8] if path.startswith("weights.") else str(value)
