"""What an evaluation is going to do, checked before any of it starts: rows and their cost."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import attacks
from attacks.directions import Direction, build_direction
from attacks.gradients import AVERAGES, OTHER_FUNCTIONS, attacked_purifier, binding_nfe
from attacks.types import Attack
from purify import purifiers
from purify.defense import Defense
from purify.networks import Classifier, Score
from purify.tables import choose

# The fields of config.attacks.<name> that say against what it runs; all others build the attack.
RUNNING = ("attack", "gradient", "surrogate", "direction", "fixed_key", "defenses", "num_images")
# Fresh draws on which an attacked image is chosen among candidates, at the least.
MIN_SELECTION_DRAWS = 32


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on one defence.

    attacked: the defence as the attacker differentiates it; None without an attack.
    options: config.attacks.<name>, empty without an attack.
    num_draws: fresh draws of the defence that score each image; 1 where it draws nothing, or
        where the attacker knows its keys (fixed_key).
    direction: what the attack's steps follow beside the gradient, None for nothing.
    """

    defense_name: str
    attack_name: str
    defense: Defense
    attack: Attack | None
    attacked: Defense | None
    options: Mapping
    num_images: int
    num_draws: int
    direction: Direction | None = None

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.attack_name}"

    @property
    def crafted(self) -> str:
        """The name of its attacked images: a blind attack is the same on every defence."""
        return self.attack_name if self.options["gradient"] == "blind" else self.name

    @property
    def fixed_key(self) -> bool:
        """Whether the attacker knows the keys of the one draw that is scored."""
        return bool(self.options) and self.options["fixed_key"]

    @property
    def asks_defense(self) -> bool:
        """Whether the answers that the attack sees are the defence's, not another function's."""
        undefended = isinstance(self.defense.purifier, purifiers.Identity)
        other = self.options.get("gradient") in OTHER_FUNCTIONS
        return self.attack is not None and (undefended or not other)

    @property
    def attack_nfe(self) -> int:
        """Score-network forwards that the attack takes per image."""
        if not self.attack:
            return 0
        nfe = self.attack_queries * self.attacked.purifier.nfe + binding_nfe(self.attacked.purifier)
        if self.direction is not None:
            nfe += self.attack.direction_queries * self.direction.nfe
        return nfe

    @property
    def attack_nge(self) -> int:
        """Score-network gradients that the attack takes per image."""
        if not self.attack:
            return 0
        return self.attack.gradient_queries * self._runs_per_query * self.attacked.purifier.nge

    @property
    def attack_queries(self) -> int:
        """Purify-and-classify runs that the attack takes per image."""
        if not self.attack:
            return 0
        return (self.attack.gradient_queries + self.attack.selection_queries) * self._runs_per_query

    @property
    def score_nfe(self) -> int:
        """Score-network forwards that scoring one image takes at most."""
        return self.num_draws * self.defense.num_runs * self.defense.purifier.nfe

    @property
    def attack_work(self) -> int:
        """Rough relative cost of attacking one image: a forward 1, a gradient 3, for the ETA."""
        return self.attack_queries + self.attack_nfe + 3 * self.attack_nge

    @property
    def score_work(self) -> int:
        """The same for scoring."""
        return self.num_draws * self.defense.num_runs + self.score_nfe

    @property
    def _runs_per_query(self) -> int:
        return self.defense.num_runs if self.fixed_key else 1


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
    """All rows: each defence clean, then under each attack that is meant for it.

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
    for attack_name in () if given else config.eval.attacks:
        rows += _attack_rows(config, attack_name, defenses, build)
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("config.eval.attacks: two attacks have the same name")
    _check_exact_beside_bpda(rows, config.eval.bpda_alone)
    return rows


def _attack_rows(config, attack_name: str, defenses: Mapping, build: Callable) -> list[Row]:
    """The rows of config.attacks.<attack_name>, on those of the defences that it is meant for."""
    options = choose("config.eval.attacks entry", config.attacks.to_dict(), attack_name)
    if attack_name in ("clean", "given") or not re.fullmatch(r"\w+", attack_name):
        raise ValueError(
            f"attack name {attack_name!r} must be of letters, digits and _, and not 'clean' or "
            "'given', which are other rows"
        )
    if options["num_images"] < 0:
        raise ValueError(
            f"config.attacks.{attack_name}.num_images={options['num_images']} must be at least 1, "
            "or 0 for all"
        )
    num_images, num_draws = config.eval.num_images, config.eval.num_draws
    count = min(options["num_images"] or num_images, num_images)
    rows = []
    for name in options["defenses"] or defenses:
        purifier_options(config, name, field=f"config.attacks.{attack_name}.defenses entry")
        if name not in defenses:
            continue
        defense = defenses[name]
        surrogate = build(options["surrogate"]).purifier if options["surrogate"] else None
        purifier = attacked_purifier(options["gradient"], defense.purifier, surrogate)
        attacked = dataclasses.replace(defense, purifier=purifier)
        fixed = options["fixed_key"] or not defense.purifier.stochastic
        draws = 1 if fixed else num_draws
        for own_name, attack in build_attacks(attack_name, options, attacked).items():
            known = surrogate if options["gradient"] == "surrogate" else defense.purifier
            direction = attack_direction(attack_name, options, attack, known)
            rows.append(
                Row(name, own_name, defense, attack, attacked, options, count, draws, direction)
            )
    return rows


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


def limited(rows: list[Row], max_images: int, batch_size: int) -> list[Row]:
    """The same rows, on their first max_images images at most: the others can follow later.

    Raises ValueError where that would cut a batch whose images are decided together.
    """
    if max_images % batch_size and any(row.defense.couples_batch for row in rows):
        raise ValueError(
            f"--max_images={max_images} must be a multiple of config.eval.batch_size={batch_size}: "
            "a defence of this evaluation decides a batch together"
        )
    return [dataclasses.replace(row, num_images=min(row.num_images, max_images)) for row in rows]


def without_exact(rows: list[Row]) -> list[Row]:
    """The rows of BPDA on a purifier without a row of the exact gradient in the same ball: the gap
    between the two is what BPDA numbers have hidden."""

    def ball(row: Row) -> tuple:
        return row.defense_name, row.attack.norm, row.attack.eps

    attacked = [row for row in rows if row.attack]
    exact = {ball(row) for row in attacked if row.options["gradient"].startswith("exact")}
    return [
        row
        for row in attacked
        if row.options["gradient"] == "bpda"
        and not isinstance(row.defense.purifier, purifiers.Identity)  # the two are the same there
        and ball(row) not in exact
    ]


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


def crafting(rows: list[Row]) -> list[Row]:
    """One row for each set of attacked images: the one with most images."""
    by_name: dict[str, Row] = {}
    for row in rows:
        if row.attack and row.num_images > getattr(by_name.get(row.crafted), "num_images", 0):
            by_name[row.crafted] = row
    return list(by_name.values())
