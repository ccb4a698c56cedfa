"""What an evaluation is going to do, checked before any of it starts: rows and their cost."""

import dataclasses
import functools
import re
from collections.abc import Mapping

import attacks
from attacks.gradients import attacked_purifier
from attacks.types import Attack
from purify import purifiers
from purify.defense import Defense
from purify.networks import Classifier, Score
from purify.tables import choose

# The fields of config.attacks.<name> that say against what it runs; all others build the attack.
RUNNING = ("attack", "gradient", "surrogate", "fixed_key", "defenses", "num_images")


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on one defence.

    attacked: the defence as the attacker differentiates it; None without an attack.
    options: config.attacks.<name>, empty without an attack.
    num_draws: fresh draws of the defence that score each image; 1 where it draws nothing, or
        where the attacker knows its keys (fixed_key).
    """

    defense_name: str
    attack_name: str
    defense: Defense
    attack: Attack | None
    attacked: Defense | None
    options: Mapping
    num_images: int
    num_draws: int

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
    def attack_nfe(self) -> int:
        """Score-network forwards that the attack takes per image."""
        return self.attack_queries * self.attacked.purifier.nfe if self.attack else 0

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


def build_defense(config, name: str, *, classifier: Classifier, score: Score | None) -> Defense:
    """The defence with purifier `name` and its options in the config.

    A purifier that draws nothing gives the same output every time: one run of it is enough.
    """
    choose("defence", purifiers.PURIFIERS, name)
    purifier = purifiers.build(name, score, **config[name].to_dict())
    runs = config.defense.num_runs if purifier.stochastic else 1
    return Defense(purifier, classifier, num_runs=runs, average=config.defense.average)


def build_attack(options: Mapping, attacked: Defense) -> Attack:
    """The attack that config.attacks.<name> describes, on a defence as the attacker sees it.

    eot_samples = 0 means S. A softmax-mean defence is attacked through its own average unless the
    options say otherwise; votes have no gradient, so those are attacked through the logit mean.
    """
    own = {k: v for k, v in options.items() if k not in RUNNING}
    own.setdefault("average", "softmax" if attacked.average == "softmax" else "logits")
    own["eot_samples"] = own["eot_samples"] or attacked.num_runs
    if not attacked.purifier.stochastic or options["fixed_key"]:
        own |= {"eot_samples": 1, "selection_draws": 1}  # every draw would be the same
    return attacks.build(options["attack"], **own)


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
    choose("config.defense.purifier", purifiers.PURIFIERS, config.defense.purifier)
    rows = []
    for name, defense in defenses.items():
        draws = num_draws if defense.purifier.stochastic else 1
        attack_name = "given" if given else "clean"
        rows.append(Row(name, attack_name, defense, None, None, {}, num_images, draws))
    for attack_name in () if given else config.eval.attacks:
        options = choose("config.eval.attacks entry", config.attacks.to_dict(), attack_name)
        if attack_name in ("clean", "given") or not re.fullmatch(r"\w+", attack_name):
            raise ValueError(
                f"attack name {attack_name!r} must be of letters, digits and _, and not 'clean' or "
                "'given', which are other rows"
            )
        for name in options["defenses"] or defenses:
            defense = choose(f"config.attacks.{attack_name}.defenses entry", defenses, name)
            surrogate = options["surrogate"] and build(options["surrogate"]).purifier
            purifier = attacked_purifier(options["gradient"], defense.purifier, surrogate or None)
            attacked = dataclasses.replace(defense, purifier=purifier)
            attack = build_attack(options, attacked)
            fixed = options["fixed_key"] or not defense.purifier.stochastic
            count = min(options["num_images"] or num_images, num_images)
            draws = 1 if fixed else num_draws
            rows.append(Row(name, attack_name, defense, attack, attacked, options, count, draws))
    return rows


def crafting(rows: list[Row]) -> list[Row]:
    """One row for each set of attacked images: the one with most images."""
    by_name: dict[str, Row] = {}
    for row in rows:
        if row.attack and row.num_images > getattr(by_name.get(row.crafted), "num_images", 0):
            by_name[row.crafted] = row
    return list(by_name.values())
