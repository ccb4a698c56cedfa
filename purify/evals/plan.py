"""What an evaluation is going to do, from its config, checked before any of it starts."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import attacks
from attacks.directions import Direction, build_direction
from attacks.gradients import AVERAGES, attacked_purifier
from attacks.types import Attack
from purify import purifiers
from purify.defense import Defense
from purify.evals.rows import Row, without_exact
from purify.evals.strongest import Strongest
from purify.networks import Classifier, Score
from purify.tables import choose

# Rows that are no attacks of the config; names that begin with 'strongest' are theirs as well.
RESERVED = ("clean", "given", "strongest")
# The fields of config.attacks.<name> that say against what it runs; all others build the attack.
RUNNING = (
    *("attack", "gradient", "surrogate", "direction", "starts", "fixed_key", "defenses"),
    "num_images",
)
# Fresh draws on which an attacked image is chosen among candidates, at the least.
MIN_SELECTION_DRAWS = 32


def purifier_options(config, name: str, *, field: str = "defence") -> tuple[str, dict]:
    """(entry of PURIFIERS, its options) of a defence: config.<name>, or of config.variants.<name>
    the purifier that it names, with what it changes."""
    variants = config.variants.to_dict()
    choose(field, dict.fromkeys([*purifiers.PURIFIERS, *variants]), name)
    changes = variants.get(name, {"purifier": name})
    if name in variants and (name in purifiers.PURIFIERS or not re.fullmatch(r"\w+", name)):
        raise ValueError(
            f"config.variants.{name}: the name must be of letters, digits and _, and no purifier's"
        )
    kind = changes.get("purifier")
    choose(f"config.variants.{name}.purifier", purifiers.PURIFIERS, kind)
    own = {field: value for field, value in changes.items() if field != "purifier"}
    return kind, config[kind].to_dict() | own


def build_defense(config, name: str, *, classifier: Classifier, score: Score | None) -> Defense:
    """The defence of that name, with its purifier's options in the config.

    A purifier that draws nothing gives the same output every time: one run of it is enough.
    """
    kind, options = purifier_options(config, name)
    purifier = purifiers.build(kind, score, **options)
    cfg = config.defense
    return Defense(
        purifier,
        classifier,
        num_runs=cfg.num_runs if purifier.stochastic else 1,
        average=cfg.average,
        chunk=cfg.chunk or None,
    )


def build_attacks(name: str, options: Mapping, attacked: Defense) -> dict[str, Attack]:
    """name -> attack, as config.attacks.<name> describes it, on a defence as the attacker sees it.

    eot_samples = 0 means S. Where the attack averages runs it does so as the defence does, unless
    the options say otherwise; a vote has no gradient, so it is attacked twice, through the mean of
    the logits and of the probabilities, under two names.

    Raises ValueError where an attacked image would be chosen on fewer than MIN_SELECTION_DRAWS, or
    where the gradient does not fit the attack.
    """
    own = {k: v for k, v in options.items() if k not in RUNNING}
    own["eot_samples"] = own["eot_samples"] or attacked.num_runs
    own["chunk"] = own["chunk"] or None
    if options.get("starts"):
        own["given_starts"] = len(options["starts"])
    if not attacked.purifier.stochastic or options["fixed_key"]:
        own |= {"eot_samples": 1, "selection_draws": 1}  # every draw would be the same
        own |= {"remeasure": False} if "remeasure" in own else {}
    elif own["selection_draws"] < MIN_SELECTION_DRAWS:
        raise ValueError(
            f"config.attacks.{name}.selection_draws={own['selection_draws']} must be at least "
            f"{MIN_SELECTION_DRAWS}: a choice on fewer draws is luck"
        )
    averages = [own["average"] or attacked.average]
    if attacked.average == "vote" and not own["average"]:
        averaging = options["eot"] == "loss_of_mean" or options["fixed_key"]
        averages = list(AVERAGES) if averaging and attacked.num_runs > 1 else ["logits"]
    built = {
        name if average == averages[0] else f"{name}_{average}": attacks.build(
            options["attack"], **own | {"average": average}
        )
        for average in averages
    }
    takes_gradients = built[name].gradient_queries > 0
    if takes_gradients == (options["gradient"] == "none") and options["gradient"] != "blind":
        raise ValueError(
            f"config.attacks.{name}.gradient={options['gradient']!r} does not fit: the attack "
            + ("takes gradients" if takes_gradients else "sees values only, so say 'none'")
        )
    return built


def plan(
    config, classifier: Classifier, score: Score | None, available: int, *, given: bool = False
) -> list[Row]:
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
    build = functools.partial(build_defense, config, classifier=classifier, score=score)
    defenses = {name: build(name) for name in config.eval.defenses}
    purifier_options(config, config.defense.purifier, field="config.defense.purifier")
    if not defenses:
        raise ValueError("config.eval.defenses is empty; name at least one purifier")
    if config.seed < 0:
        raise ValueError(f"config.seed={config.seed} must not be negative")
    rows = []
    for name, defense in defenses.items():
        draws = num_draws if defense.purifier.stochastic else 1
        attack_name = "given" if given else "clean"
        rows.append(Row(name, attack_name, defense, None, None, {}, num_images, draws))
    if given:
        return rows
    for attack_name in attack_names(config):
        options = _attack_options(config, attack_name, field="config.eval.attacks entry")
        for name in options["defenses"] or defenses:
            purifier_options(config, name, field=f"config.attacks.{attack_name}.defenses entry")
            if name in defenses:
                rows += _rows(config, attack_name, name, defenses[name], build, rows)
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("config.eval.attacks: two attacks have the same name")
    _check_exact_beside_bpda(rows, config.eval.bpda_alone)
    return rows + _strongest_rows(rows)


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
    config,
    attack_name: str,
    name: str,
    defense: Defense,
    build: Callable[[str], Defense],
    before: Sequence[Row],
) -> list[Row]:
    """The rows of one attack on one defence: one, but where a vote is attacked in two ways.

    before: the rows that come before, whose images it can start from or take over.
    """
    options = _attack_options(config, attack_name, field=f"config.attacks.{attack_name}")
    total = config.eval.num_images
    count = min(options["num_images"] or total, total)
    if options["attack"] == "suite":
        stages = []
        for stage in options["stages"]:
            field = f"config.attacks.{attack_name}.stages entry"
            if _attack_options(config, stage, field=field)["attack"] == "suite":
                raise ValueError(f"{field} {stage!r} is a suite itself; name its stages")
            rows = _rows(config, stage, name, defense, build, before)
            stages += [dataclasses.replace(row, num_images=count) for row in rows]
        if not stages:
            raise ValueError(f"config.attacks.{attack_name}.stages is empty; name some attacks")
        return [_choosing(attack_name, stages, options, survivors=options["survivors"])]
    draws = config.eval.num_draws if defense.purifier.stochastic else 1
    if options["attack"] == "transfer":
        source = _earlier(f"config.attacks.{attack_name}.source", options["source"], before)
        transferred = dataclasses.replace(
            source,
            defense_name=name,
            attack_name=attack_name,
            defense=defense,
            options=options | {"source": source.crafted},
            num_images=min(count, source.num_images),
            num_draws=draws,
        )
        return [transferred]
    starts = [
        _earlier(f"config.attacks.{attack_name}.starts entry", start, before)
        for start in options.get("starts", ())
    ]
    count = min([count, *(start.num_images for start in starts)])
    surrogate = build(options["surrogate"]).purifier if options["surrogate"] else None
    purifier = attacked_purifier(options["gradient"], defense.purifier, surrogate)
    attacked = dataclasses.replace(defense, purifier=purifier)
    draws = 1 if options["fixed_key"] else draws
    known = surrogate if options["gradient"] == "surrogate" else defense.purifier
    rows = []
    for own_name, attack in build_attacks(attack_name, options, attacked).items():
        direction = attack_direction(attack_name, options, attack, known)
        row = Row(name, own_name, defense, attack, attacked, options, count, draws, direction)
        rows.append(dataclasses.replace(row, starts=tuple(start.crafted for start in starts)))
    return rows


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


def _choosing(attack_name: str, stages: Sequence[Row], options: Mapping, *, survivors: bool) -> Row:
    """A row that takes for each image the strongest of what the stages found."""
    first = stages[0]
    name, defense = f"{first.defense_name}-{attack_name}", first.defense
    if len({(row.attack.norm, row.attack.eps) for row in stages}) > 1:
        raise ValueError(f"{name}: its attacks are of several balls")
    if any(row.fixed_key for row in stages):
        raise ValueError(f"{name}: an attacker who knows the keys is no part of a choice")
    attack = Strongest(
        norm=first.attack.norm,
        eps=first.attack.eps,
        eot_samples=defense.num_runs,
        average="softmax" if defense.average == "softmax" else "logits",
        selection_draws=MIN_SELECTION_DRAWS if defense.purifier.stochastic else 1,
        chunk=first.attack.chunk,
        num_candidates=len(stages),
        # Images that decide together are also attacked together.
        survivors=survivors and not defense.couples_batch,
    )
    return Row(
        first.defense_name,
        attack_name,
        defense,
        attack,
        attacked=defense,
        options=options,
        num_images=min(row.num_images for row in stages),
        num_draws=first.num_draws,
        stages=tuple(stages),
    )


def _strongest_rows(rows: list[Row]) -> list[Row]:
    """For each defence and ball with several attacks, the row of the strongest one on each image,
    on the images that all of them have."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.attack and not row.fixed_key:
            groups.setdefault((row.defense_name, row.attack.norm, row.attack.eps), []).append(row)
    first_ball = next((ball for _, *ball in groups), None)
    return [
        _choosing(
            "strongest" if ball == first_ball else f"strongest_{ball[0]}_{ball[1]:.3g}",
            stages,
            {"attack": "strongest", "gradient": "chosen", "fixed_key": False},
            survivors=False,
        )
        for (_, *ball), stages in groups.items()
        if len(stages) > 1
    ]


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
