"""The points of an ablation: one factor at a time at other values than the config's."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from purify.evals import robust
from purify.evals.attacked.rows import Row
from purify.evals.core.inputs import Inputs, load_inputs, network_runs
from purify.evals.robust import Attacked
from purify.options import choose

# The networks and images are the same at all points: these fields of the config decide them.
FIXED = ("data", "classifier", "score")


class Factor(NamedTuple):
    """One of config.ablate.factors: the fields that it changes together, and the values that they
    take, in the order of a report; `default` is the one that the config has."""

    name: str
    fields: tuple[str, ...]
    values: tuple
    default: Any


def plan_points(config, workdir: Path) -> tuple[list[Factor], dict]:
    """The factors, and (name of the factor, value) -> its evaluation, of the default under None
    and, in every factor, under its value.

    ValueError for what does not fit anywhere, MissingCheckpoint: nothing is computed then.
    """
    loaded: dict[tuple, Inputs] = {}

    def prepared(key: tuple[str, Any] | None, changes: Mapping[str, Any]) -> Attacked:
        point = _evaluated(changed(config, changes))
        names = robust.purifiers_of(point)
        runs = tuple(network_runs(point, workdir, names).items())
        if runs not in loaded:
            loaded[runs] = load_inputs(point, workdir, names)
        number, available = config.ablate.num_images, len(loaded[runs].labels)
        if not 1 <= number <= available:
            raise ValueError(f"config.ablate.num_images={number} must be from 1 to {available}")
        try:
            return robust.prepare(point, loaded[runs])
        except ValueError as error:
            raise ValueError(f"{title_of(key)}: {error}") from None

    factors = factors_of(config)
    default = prepared(None, {})
    points: dict = {None: default}
    for factor in factors:
        for value in factor.values:
            key, changes = (factor.name, value), dict.fromkeys(factor.fields, value)
            points[key] = default if value == factor.default else prepared(key, changes)
        if all(_work(points[factor.name, value]) == _work(default) for value in factor.values):
            raise ValueError(
                f"config.ablate.factors.{factor.name} changes nothing of what is evaluated "
                f"({config.defense.purifier} under {', '.join(config.ablate.attacks)}); name "
                "others in config.ablate.names"
            )
    return factors, points


def changed(config, changes: Mapping[str, Any]):
    """A copy of the config in which these fields (dotted paths) have these values, as a flag would
    set them: fields that refer to each other change together.

    ValueError where there is no such field, or the value does not fit in it.
    """
    other = copy.deepcopy(config)
    for field, value in changes.items():
        field_of(other, field)
        try:
            other.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f"config.{field}={value!r} does not fit: {error}") from None
    return other


def field_of(config, field: str) -> Any:
    """The value of a field, by its dotted path; ValueError that lists the known ones."""
    value, path = config, "config"
    for key in field.split("."):
        known = list(value) if hasattr(value, "keys") else []
        if key not in known:
            raise ValueError(
                f"{path} has no field {key!r}; known: {', '.join(known) or 'nothing below it'}"
            )
        value, path = value[key], f"{path}.{key}"
    return value


def factors_of(config) -> list[Factor]:
    """Those of config.ablate.factors that config.ablate.names names."""
    if not config.ablate.names:
        raise ValueError("config.ablate.names is empty; name at least one of config.ablate.factors")
    known = config.ablate.factors.to_dict()
    return [_factor(config, name, known) for name in dict.fromkeys(config.ablate.names)]


def _factor(config, name: str, known: Mapping) -> Factor:
    options = choose("config.ablate.names entry", known, name)
    where = f"config.ablate.factors.{name}"
    tried = "times" if options.get("times") and not options.get("at") else "at"
    for option in ("fields", tried):
        if not isinstance(options.get(option), tuple | list) or not options[option]:
            raise ValueError(f"{where}.{option} must be a tuple that names at least one")
    kinds = int | float if tried == "times" else int | float | str
    if not all(isinstance(value, kinds) for value in options[tried]):
        raise ValueError(f"{where}.{tried} must be numbers{' or names' if tried == 'at' else ''}")
    fields, values = tuple(options["fields"]), []
    for field in fields:
        if field.partition(".")[0] in FIXED:
            raise ValueError(
                f"{where}: {field} cannot be a factor: networks and images are the same throughout"
            )
    try:
        defaults = [field_of(config, field) for field in fields]
        for value in _tried(options, defaults[0]):
            # Read back: a 1 for a field with floats is the default 1.0.
            point = changed(config, dict.fromkeys(fields, value))
            values += [field_of(point, field) for field in fields[:1]]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if any(value != defaults[0] for value in defaults):
        raise ValueError(
            f"{where}: its fields have different values in the config: "
            f"{', '.join(f'{f} {v!r}' for f, v in zip(fields, defaults, strict=True))}"
        )
    return Factor(name, fields, _ordered(values, defaults[0]), defaults[0])


def _tried(options: Mapping, default: Any) -> list:
    """The values that a factor names, or the multiples of the default.

    ValueError where the default has no multiples.
    """
    if options.get("at"):
        return list(options["at"])
    if not isinstance(default, int | float):
        raise ValueError(f"the default {default!r} is no number, so it has no multiples (times)")
    return [multiple * default for multiple in options["times"]]


def _ordered(values: list, default: Any) -> tuple:
    """The values and the default, each once: numbers rise, of others the default is the first."""
    each = dict.fromkeys([default, *values])
    numbers = all(isinstance(value, int | float) for value in each)
    return tuple(sorted(each) if numbers else each)


def _evaluated(config):
    """The config of an evaluation of its headline defence, under the attacks of the ablation."""
    cfg, name = config.ablate, config.defense.purifier
    if not cfg.attacks:
        raise ValueError("config.ablate.attacks is empty; name at least one")
    for attack in cfg.attacks:
        options = choose("config.ablate.attacks entry", config.attacks, attack)
        if options.defenses and name not in options.defenses:  # meant for others, taken for it too
            options.defenses = (*options.defenses, name)
    config.eval.update(
        defenses=(name,), attacks=tuple(cfg.attacks), attack_list="", num_images=cfg.num_images
    )
    return config


def _work(planned: Attacked) -> tuple:
    """What is computed: of equal ones the results are equal."""

    def described(row: Row) -> tuple:
        parts = (row.defense, row.attacked, row.direction, row.penalty)
        return (
            *(row.name, row.attack, row.num_images, row.num_draws, row.starts),
            *(jax.tree.structure(part) for part in parts),
            *(described(stage) for stage in row.stages),
        )

    networks = tuple(planned.inputs.runs.items())
    return planned.config.seed, networks, *(described(row) for row in planned.rows)


def title_of(key: tuple[str, Any] | None) -> str:
    """What people call a point."""
    return "the default" if key is None else f"{key[0]} {key[1]}"
