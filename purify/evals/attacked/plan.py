"""What an evaluation is going to do, from its config, checked before any of it starts."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import attacks
from attacks.directions import Direction, build_direction
from attacks.gradients import AVERAGES, attacked_purifier
from attacks.losses import DLR_CLASSES, TARGETED_DLR_CLASSES
from attacks.types import Attack
from purify.defense import Defense
from purify.detectors import Penalty
from purify.evals.attacked.rows import Row, strongest_of, strongest_rows, without_exact
from purify.evals.attacked.strongest import MIN_SELECTION_DRAWS
from purify.evals.core.defenses import (
    Networks,
    build_defense,
    build_purifier,
    network_run,
    purifier_options,
)
from purify.options import choose

# Rows that are no attacks of the config; names that begin with 'strongest' are theirs as well.
RESERVED = ("clean", "given", "strongest")
# The fields of config.attacks.<name> that say against what it runs; all others build the attack.
RUNNING = (
    *("attack", "gradient", "surrogate", "direction", "penalty", "starts", "fixed_key"),
    *("defenses", "num_images"),
)


def build_attacks(name: str, options: Mapping, attacked: Defense) -> dict[str, Attack]:
    """name -> attack, as config.attacks.<name> describes it, on a defence as the attacker sees it.

    eot_samples = 0 means S; of targets there are no more than wrong classes. Where the attack
    averages runs it does so as the defence does, unless the options say otherwise; a vote has no
    gradient, so it is attacked twice, through the mean of the logits and of the probabilities,
    under two names.

    Raises ValueError where an attacked image would be chosen on fewer than MIN_SELECTION_DRAWS,
    where the loss needs more classes, or where the gradient does not fit the attack.
    """
    own = {k: v for k, v in options.items() if k not in RUNNING}
    own["eot_samples"] = own["eot_samples"] or attacked.num_runs
    own["chunk"] = own["chunk"] or None
    num_classes = attacked.classifier.num_classes
    if own.get("targets"):
        own["targets"] = min(own["targets"], num_classes - 1)
    needed = 2
    if own["loss"] == "dlr":
        needed = TARGETED_DLR_CLASSES if own.get("targets") else DLR_CLASSES
    if num_classes < needed:
        raise ValueError(
            f"config.attacks.{name}.loss={own['loss']!r} needs {needed} classes, the classifier "
            f"has {num_classes}"
        )
    if options.get("starts"):
        own["given_starts"] = len(options["starts"])
    if not attacked.purifier.stochastic or options["fixed_key"]:
        own |= {"eot_samples": 1, "selection_draws": 1}  # every draw would be the same
        measures_twice = hasattr(attacks.ATTACKS.get(options["attack"]), "remeasure")
        own |= {"remeasure": False} if measures_twice else {}
    elif own["selection_draws"] < MIN_SELECTION_DRAWS:
        raise ValueError(
            f"config.attacks.{name}.selection_draws={own['selection_draws']} must be at least "
            f"{MIN_SELECTION_DRAWS}: a choice on fewer draws is luck"
        )
    averages = [own["average"] or attacked.average]
    if attacked.average == "vote" and not own["average"]:
        averaging = options["eot"] == "loss_of_mean" or options["fixed_key"]
        averages = list(AVERAGES) if averaging and attacked.num_runs > 1 else ["logits"]
    try:
        built = {
            name if average == averages[0] else f"{name}_{average}": attacks.build(
                options["attack"], **own | {"average": average}
            )
            for average in averages
        }
    except ValueError as error:
        raise ValueError(f"config.attacks.{name}: {error}") from None
    takes_gradients = built[name].gradient_queries > 0
    if takes_gradients == (options["gradient"] == "none") and options["gradient"] != "blind":
        raise ValueError(
            f"config.attacks.{name}.gradient={options['gradient']!r} does not fit: the attack "
            + ("takes gradients" if takes_gradients else "sees values only, so say 'none'")
        )
    return built


def plan(config, networks: Networks, available: int, *, given: bool = False) -> list[Row]:
    """All rows: each defence clean, then under each attack that is meant for it, then under the
    strongest of them on each image.

    available: number of images there are. given: they were attacked elsewhere: score all of them,
    attack none. Raises ValueError for names and numbers that do not fit.
    """
    num_images = available if given else config.eval.num_images
    num_draws = config.eval.num_draws
    if not 1 <= num_images <= available:
        raise ValueError(f"config.eval.num_images={num_images} must be from 1 to {available}")
    if num_draws < 1:
        raise ValueError(f"config.eval.num_draws={num_draws} must be at least 1")
    clean, first_with = {}, {"classifier": ""}
    for name in config.eval.defenses:
        defense = build_defense(config, name, networks)
        draws = num_draws if defense.purifier.stochastic else 1
        classifier_name = first_with.setdefault(network_run(config, name, "classifier"), name)
        kind = "given" if given else "clean"
        clean[name] = Row(name, kind, defense, None, None, {}, num_images, draws, classifier_name)
    purifier_options(config, config.defense.purifier, field="config.defense.purifier")
    if not clean:
        raise ValueError("config.eval.defenses is empty; name at least one purifier")
    rows = list(clean.values())
    if given:
        return rows
    for attack_name in attack_names(config):
        options = _attack_options(config, attack_name, field="config.eval.attacks entry")
        for name in options["defenses"] or clean:
            purifier_options(config, name, field=f"config.attacks.{attack_name}.defenses entry")
            if name in clean:
                rows += _rows(config, attack_name, clean[name], networks, rows)
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("config.eval.attacks: two attacks have the same name")
    _check_exact_beside_bpda(rows, config.eval.bpda_alone)
    return rows + strongest_rows(rows)


def attack_names(config) -> tuple[str, ...]:
    """config.eval.attacks, or those of the list of config.attack_lists that config.eval.attack_list
    names."""
    if not config.eval.attack_list:
        return tuple(config.eval.attacks)
    lists = config.attack_lists.to_dict()
    return tuple(choose("config.eval.attack_list", lists, config.eval.attack_list))


def _attack_options(config, attack_name: str, *, field: str) -> dict:
    options = choose(field, config.attacks.to_dict(), attack_name)
    if attack_name in RESERVED or not re.fullmatch(r"\w+", attack_name):
        raise ValueError(
            f"attack name {attack_name!r} must be of letters, digits and _, and not one of "
            f"{', '.join(RESERVED)}, which are other rows"
        )
    if options["num_images"] < 0:
        raise ValueError(
            f"config.attacks.{attack_name}.num_images={options['num_images']} must be at least 1, "
            "or 0 for all"
        )
    return options


def _rows(
    config, attack_name: str, clean: Row, networks: Networks, before: Sequence[Row]
) -> list[Row]:
    """An attack on the defence of a row without one: a row, or one for each average attacked.

    before: the rows that come before, whose images it can start from or take over.
    """
    field = f"config.attacks.{attack_name}"
    options = _attack_options(config, attack_name, field=field)
    count = min(options["num_images"] or clean.num_images, clean.num_images)
    row = dataclasses.replace(clean, attack_name=attack_name, options=options, num_images=count)
    if options["attack"] == "suite":
        return [_suite(config, field, row, networks, before)]
    if options["attack"] == "transfer":
        return [_transferred(field, row, before)]
    return _attacking(config, field, row, networks, before)


def _suite(config, field: str, row: Row, networks: Networks, before: Sequence[Row]) -> Row:
    """The row with the strongest of its stages' images."""
    stages: list[Row] = []
    for stage in row.options["stages"]:
        name = f"{field}.stages entry"
        if _attack_options(config, stage, field=name)["attack"] == "suite":
            raise ValueError(f"{name} {stage!r} is a suite itself; name its stages")
        stages += _rows(config, stage, row, networks, before)
    if not stages:
        raise ValueError(f"{field}.stages is empty; name some attacks")
    return strongest_of(row.attack_name, stages, row.options, survivors=row.options["survivors"])


def _transferred(field: str, row: Row, before: Sequence[Row]) -> Row:
    """The row with the images of another one, and what is known of how these were made."""
    source = _earlier(f"{field}.source", row.options["source"], before)
    return dataclasses.replace(
        row,
        attack=source.attack,
        attacked=source.attacked,
        direction=source.direction,
        penalty=source.penalty,
        starts=source.starts,
        options={**row.options, "source": source.crafted},
        num_images=min(row.num_images, source.num_images),
    )


def _attacking(
    config, field: str, row: Row, networks: Networks, before: Sequence[Row]
) -> list[Row]:
    """The row with its attack, or a row for each average attacked."""
    options, defense = row.options, row.defense
    starts = [
        _earlier(f"{field}.starts entry", start, before) for start in options.get("starts", ())
    ]
    surrogate = (
        build_purifier(config, options["surrogate"], networks) if options["surrogate"] else None
    )
    gradient = options["gradient"]
    purifier = attacked_purifier(gradient, defense.purifier, surrogate)
    penalty = _penalty(field, options, defense)
    row = dataclasses.replace(
        row,
        attacked=dataclasses.replace(defense, purifier=purifier),
        num_images=min([row.num_images, *(start.num_images for start in starts)]),
        num_draws=1 if options["fixed_key"] else row.num_draws,
        starts=tuple(start.crafted for start in starts),
        penalty=penalty,
    )
    known = surrogate if gradient == "surrogate" else defense.purifier
    built = build_attacks(row.attack_name, options, row.attacked)
    if penalty and not all(attack.takes_penalty for attack in built.values()):
        raise ValueError(
            f"{field}.penalty={options['penalty']} does not fit: {options['attack']} takes none"
        )
    return [
        dataclasses.replace(
            row,
            attack_name=own_name,
            attack=attack,
            direction=attack_direction(row.attack_name, options, attack, known),
        )
        for own_name, attack in built.items()
    ]


def _earlier(field: str, name: str, before: Sequence[Row]) -> Row:
    """The row of that name, or of those attacked images, among the rows before."""
    attacked = [row for row in before if row.attack]
    named = {row.crafted: row for row in attacked} | {row.name: row for row in attacked}
    if name not in named:
        raise ValueError(
            f"{field} {name!r} is no row that comes before it; those are "
            f"{', '.join(named) or 'none'}"
        )
    return named[name]


def attack_direction(name: str, options: Mapping, attack: Attack, purifier) -> Direction | None:
    """What the steps of an attack follow beside the gradient, of the purifier that it knows; None
    for nothing. Raises ValueError where options do not fit each other or the purifier."""
    direction, gradient = options.get("direction", ""), options["gradient"]
    field = f"config.attacks.{name}"
    if options["fixed_key"] and (direction or gradient == "approximate_input"):
        what = f"direction={direction!r}" if direction else f"gradient={gradient!r}"
        raise ValueError(f"{field}.fixed_key=True does not fit {what}: it draws keys of its own")
    if not direction:
        return None
    if not attack.direction_queries:
        raise ValueError(f"{field}.direction={direction!r} does not fit: only pgd takes one")
    if gradient == "blind":
        raise ValueError(
            f"{field}.direction={direction!r} does not fit: a blind attacker knows no purifier"
        )
    return build_direction(direction, purifier, num_samples=attack.eot_samples, chunk=attack.chunk)


def _penalty(field: str, options: Mapping, defense: Defense) -> Penalty | None:
    """What an attack subtracts from its loss to look natural to the defence; None for nothing."""
    weight = options.get("penalty", 0.0)
    if not 0 <= weight < math.inf:
        raise ValueError(f"{field}.penalty={weight} must be at least 0 and finite")
    if weight and options["fixed_key"]:
        raise ValueError(f"{field}.fixed_key=True does not fit penalty={weight}")
    try:
        return Penalty.of(defense.purifier, weight) if weight else None
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _check_exact_beside_bpda(rows: list[Row], alone_allowed: Sequence[str]) -> None:
    for row in sorted(without_exact(rows), key=lambda row: row.name):
        name, attack = row.defense_name, row.attack
        if row.name not in alone_allowed:
            raise ValueError(
                f"config.eval.attacks has BPDA on {name!r} ({attack.norm} {attack.eps:.3g}) but no "
                "attack with the exact gradient in the same ball, without which it says nothing; "
                f"add one, or take {name!r} out of the defenses of the BPDA attack, or, to have it "
                f"marked as no evidence of robustness, add {row.name!r} to config.eval.bpda_alone"
            )
