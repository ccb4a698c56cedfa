"""Rows that differ in one number of the attack only, such as its radius: points of one curve."""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from purify.evals.inputs import without
from purify.evals.results import ATTACK_FIELDS, protocol_name
from purify.purifiers import PURIFIERS

# What else makes an attack, and what must agree between the points of a curve beside that.
_ATTACK = (
    *("method", "gradient", "surrogate", "direction", "penalty", "source", "starts"),
    *("attack_steps", *ATTACK_FIELDS),
)
_SAME = ("defense", "num_images", "num_draws", "seed")
# Fields that follow another: of PGD the step is a share of the radius.
_FOLLOWS = {"step_size": "eps"}


class Curve(NamedTuple):
    """points: rows of results.json, one for each value of the field, which rises."""

    label: str
    norm: str
    points: list[Mapping]


def sweeps(results: Iterable[Mapping], field: str) -> list[Curve]:
    """The curves of accuracy over a field of the attack ('eps', 'eot_samples') that these
    results.json hold together: rows, by the mean of draws, that agree in all else, networks,
    purifier and data set included. Of rows with the same value the last one counts. Clean images,
    where they are as many, are those of eps 0."""
    groups: dict[str, dict[float, Mapping]] = {}
    clean: dict[str, Mapping] = {}
    for result in results:
        for row in (row for row in result["rows"] if protocol_name(row) == "mean"):
            same = [_origin(result), {name: row[name] for name in _SAME}]
            if row["method"] is None:
                clean[json.dumps(same, sort_keys=True)] = {**row, "eps": 0.0}
            elif row[field] is not None and "chosen" not in row:
                same.append({name: _fixed(row, name) for name in _ATTACK if name != field})
                points = groups.setdefault(json.dumps(same, sort_keys=True), {})
                points[row[field]] = row
    found = {key: points for key, points in groups.items() if len(points) > 1}
    if field == "eps":
        for key, points in found.items():
            unattacked = clean.get(json.dumps(json.loads(key)[:2], sort_keys=True))
            points |= {0.0: unattacked} if unattacked else {}
    curves = [[points[value] for value in sorted(points)] for points in found.values()]
    labels = _labels([points[-1] for points in curves], field)
    return [
        Curve(label, points[-1]["norm"], points)
        for label, points in zip(labels, curves, strict=True)
    ]


def _origin(result: Mapping) -> dict:
    """Networks, images and purifiers of an evaluation."""
    config = result["config"]
    purifiers = {name: config.get(name) for name in (*PURIFIERS, "variants")}
    data, defense = without(config["data"], "dir"), without(config["defense"], "chunk")
    return {"weights": result["weights"], "data": data, "defense": defense, **purifiers}


def _fixed(row: Mapping, name: str):
    """What must agree of a field."""
    value, follows = row.get(name), _FOLLOWS.get(name)
    return value / row[follows] if value and follows else value


def _labels(rows: list[Mapping], field: str) -> list[str]:
    """'defence, gradient' and whatever else tells the curves apart."""
    telling = [name for name in _ATTACK if name not in (field, *_FOLLOWS, "gradient")]
    telling = [name for name in telling if len({str(row.get(name)) for row in rows}) > 1]
    defenses = [name for name in ("sigma", "T", "S") if _differ(rows, name)]
    labels = []
    for row in rows:
        told = [f"{name} {row['defense'][name]:g}" for name in defenses]
        told += [row["gradient"] or "clean", *(f"{n} {row[n]}" for n in telling if row.get(n))]
        labels.append(", ".join([row["defense"]["name"], *told]))
    return labels


def _differ(rows: list[Mapping], name: str) -> bool:
    """Whether a defence of one name stands there with several values of that field."""
    names = {row["defense"]["name"] for row in rows}
    return len({(row["defense"]["name"], row["defense"][name]) for row in rows}) > len(names)
