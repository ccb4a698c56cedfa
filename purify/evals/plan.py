"""What an evaluation is going to do, checked before any of it starts: rows and their cost."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import attacks
from attacks.gradients import AVERAGES, attacked_purifier
from attacks.types import Attack
from purify import purifiers
from purify.defense import Defense
from purify.networks import Classifier, Score
from purify.tables import choose
from purify.types import Purifier

# The fields of config.attacks.<name> that say against what it runs; all others build the attack.
RUNNING = ("attack", "gradient", "surrogate", "fixed_key", "defenses", "num_images")
# Fresh draws on which an attacked image is chosen among candidates, at the least.
MIN_SELECTION_DRAWS = 32


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on one defence.

    attacked: the defence as the attacker differentiates it; None without an attack.
    options: config.attacks.<name>, empty without an attack.
    num_draws: fresh draws of the defence that score each image; 1 where it draws nothing, or
        where the attacker knows its keys (fixed_key).
    classifier_name: '' for the evaluation's own classifier; for another one, the first defence that
        has it.
    """

    defense_name: str
    attack_name: str
    defense: Defense
    attack: Attack | None
    attacked: Defense | None
    options: Mapping
    num_images: int
    num_draws: int
    classifier_name: str

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.attack_name}"

    @property
    def crafted(self) -> str:
        """The name of its attacked images: a blind attack is the same on every defence that has the
        same classifier."""
        if self.options["gradient"] != "blind":
            return self.name
        return "-".join(filter(None, (self.classifier_name, self.attack_name)))

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
    own = {field: changes[field] for field in changes if field not in ("purifier", "classifier")}
    return kind, config[kind].to_dict() | own


def classifier_run(config, name: str) -> str:
    """The run whose classifier the defence of that name has: 'classifier', the evaluation's own, or
    '<workdir>/classifier' of the workdir in config.variants.<name>.classifier."""
    workdir = config.variants.to_dict().get(name, {}).get("classifier", "")
    if not isinstance(workdir, str):
        raise ValueError(f"config.variants.{name}.classifier={workdir!r} must be a workdir's path")
    return f"{workdir}/classifier" if workdir else "classifier"


def build_purifier(config, name: str, score: Score | None) -> Purifier:
    """The purifier of the defence of that name, with its options in the config."""
    kind, options = purifier_options(config, name)
    return purifiers.build(kind, score, **options)


def build_defense(
    config, name: str, *, classifiers: Mapping[str, Classifier], score: Score | None
) -> Defense:
    """The defence of that name: its purifier, and its classifier by `classifier_run`.

    A purifier that draws nothing gives the same output every time: one run of it is enough.
    """
    purifier = build_purifier(config, name, score)
    cfg = config.defense
    return Defense(
        purifier,
        classifiers[classifier_run(config, name)],
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
    config,
    classifiers: Mapping[str, Classifier],
    score: Score | None,
    available: int,
    *,
    given: bool = False,
) -> list[Row]:
    """All rows: each defence clean, then under each attack that is meant for it.

    classifiers: by the `classifier_run` of the defences.
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
        defense = build_defense(config, name, classifiers=classifiers, score=score)
        draws = num_draws if defense.purifier.stochastic else 1
        classifier_name = first_with.setdefault(classifier_run(config, name), name)
        kind = "given" if given else "clean"
        clean[name] = Row(name, kind, defense, None, None, {}, num_images, draws, classifier_name)
    purifier_options(config, config.defense.purifier, field="config.defense.purifier")
    if not clean:
        raise ValueError("config.eval.defenses is empty; name at least one purifier")
    if config.seed < 0:
        raise ValueError(f"config.seed={config.seed} must not be negative")
    rows = list(clean.values())
    for attack_name in () if given else config.eval.attacks:
        options = _attack_options(config, attack_name)
        surrogate = options["surrogate"] and build_purifier(config, options["surrogate"], score)
        for name in options["defenses"] or clean:
            purifier_options(config, name, field=f"config.attacks.{attack_name}.defenses entry")
            if name in clean:
                rows += _attack_rows(clean[name], attack_name, options, surrogate or None)
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("config.eval.attacks: two attacks have the same name")
    _check_exact_beside_bpda(rows, config.eval.bpda_alone)
    return rows


def _attack_options(config, name: str) -> dict:
    """config.attacks.<name>; ValueError where there is none, or its name or number does not fit."""
    options = choose("config.eval.attacks entry", config.attacks.to_dict(), name)
    if name in ("clean", "given") or not re.fullmatch(r"\w+", name):
        raise ValueError(
            f"attack name {name!r} must be of letters, digits and _, and not 'clean' or 'given', "
            "which are other rows"
        )
    if options["num_images"] < 0:
        raise ValueError(
            f"config.attacks.{name}.num_images={options['num_images']} must be at least 1, or 0 "
            "for all"
        )
    return options


def _attack_rows(
    clean: Row, attack_name: str, options: Mapping, surrogate: Purifier | None
) -> list[Row]:
    """One attack on the defence of a row without one: a row, or one for each average attacked."""
    purifier = attacked_purifier(options["gradient"], clean.defense.purifier, surrogate)
    row = dataclasses.replace(
        clean,
        attacked=dataclasses.replace(clean.defense, purifier=purifier),
        options=options,
        num_images=min(options["num_images"] or clean.num_images, clean.num_images),
        num_draws=1 if options["fixed_key"] else clean.num_draws,
    )
    built = build_attacks(attack_name, options, row.attacked)
    return [dataclasses.replace(row, attack_name=n, attack=attack) for n, attack in built.items()]


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
