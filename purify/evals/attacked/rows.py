"""The rows of an evaluation: one attack on one defence each, and what that costs."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from attacks.directions import Direction
from attacks.gradients import OTHER_FUNCTIONS, binding_nfe
from attacks.types import Attack
from purify import purifiers
from purify.defense import Defense
from purify.detectors import Passes, Penalty
from purify.evals.attacked.strongest import Strongest, selection_runs
from purify.evals.core.engine import Cost, Job

CLEAN = "clean"  # the candidate of every choice that is no attack's


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on one defence.

    attacked: the defence as the attacker differentiates it; None without an attack.
    options: config.attacks.<name>, empty without an attack.
    num_draws: fresh draws of the defence that score each image; 1 where it draws nothing, or
        where the attacker knows its keys (fixed_key).
    classifier_name: '' for the evaluation's own classifier; for another one, the first defence that
        has it.
    direction: what the attack's steps follow beside the gradient, None for nothing.
    penalty: what the attack subtracts from its loss to look natural, None for nothing.
    passes: the detector that its image shall pass, None for none.
    starts: names of attacked images (see crafted) that the attack climbs from as well.
    stages: of a row that chooses each image among those of other attacks (Strongest), the rows of
        these attacks, in the order in which they are tried.
    """

    defense_name: str
    attack_name: str
    defense: Defense
    attack: Attack | Strongest | None
    attacked: Defense | None
    options: Mapping
    num_images: int
    num_draws: int
    classifier_name: str = ""
    direction: Direction | None = None
    penalty: Penalty | None = None
    passes: Passes | None = None
    starts: tuple[str, ...] = ()
    stages: tuple["Row", ...] = ()

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.attack_name}"

    @property
    def crafted(self) -> str:
        """The name of its attacked images: a blind attack is the same on every defence that has the
        same classifier, and images that transfer were crafted for another row."""
        if self.options["gradient"] == "transfer":
            return self.options["source"]
        if self.options["gradient"] != "blind":
            return self.name
        return "-".join(filter(None, (self.classifier_name, self.attack_name)))

    @property
    def ball(self) -> tuple[str, float]:
        """(norm, eps) that the attack may move in."""
        return self.attack.norm, self.attack.eps

    @property
    def gradients(self) -> set[str]:
        """Its own gradient, if it has an attack, and those of its stages."""
        return {row.options["gradient"] for row in with_stages([self]) if row.options}

    @property
    def fixed_key(self) -> bool:
        """Whether the attacker knows the keys of the one draw that is scored."""
        return bool(self.options) and self.options["fixed_key"]

    @property
    def asks_defense(self) -> bool:
        """Whether the answers that the attack sees are the defence's, not another function's."""
        gradient = self.options.get("gradient")
        if self.attack is None or gradient in ("transfer", "surrogate"):
            return False
        # Where nothing is purified, attacks that leave the purifier out see all there is.
        undefended = isinstance(self.defense.purifier, purifiers.Identity)
        return undefended or gradient not in OTHER_FUNCTIONS

    @property
    def beside(self) -> dict:
        """The callables that the attack takes besides logits_fn, by keyword."""
        callables: dict = {"direction_fn": self.direction, "penalty_fn": self.penalty}
        callables["passes_fn"] = self.passes
        return {name: fn for name, fn in callables.items() if fn is not None}

    @property
    def couples(self) -> bool:
        """Whether an image's result depends on the others of its batch: behind the defence, or
        behind what is attacked in its place."""
        attacked = self.attacked is not None and self.attacked.couples_batch
        return self.defense.couples_batch or attacked

    @property
    def attack_records(self) -> str:
        """The name of the records of its attacked images."""
        return f"attack:{self.crafted}"

    @property
    def score_job(self) -> Job:
        cost = Cost(self.num_draws * self.defense.num_runs, self.score_nfe)
        return Job(self.name, self.num_images, cost, couples=self.couples)

    @property
    def attack_job(self) -> Job:
        """Of the attack; a choice among others' images takes nothing beside its candidates."""
        cost = Cost() if self.stages else self.attack_cost
        return Job(self.attack_records, self.num_images, cost, self.name, self.couples)

    def choice_job(self, candidate: str) -> Job:
        """Of one candidate of the choice among its stages' images."""
        queries = cast(Strongest, self.attack).queries_per_candidate
        return Job(
            f"choice:{self.name}:{candidate}",
            self.num_images,
            Cost(queries, queries * self.attacked.purifier.nfe),
            self.name,
            self.couples,
            unless=self.attack_records,
        )

    @property
    def attack_cost(self) -> Cost:
        """Of attacking one image."""
        return Cost(self.attack_queries, self.attack_nfe, self.attack_nge)

    @property
    def attack_nfe(self) -> int:
        """Score-network forwards that the attack takes per image."""
        if not self.attack:
            return 0
        nfe = self.attack_queries * self.attacked.purifier.nfe + binding_nfe(self.attacked.purifier)
        if self.direction is not None:
            nfe += self.attack.direction_queries * self.direction.nfe
        if self.penalty is not None:
            nfe += self.attack_queries * self.penalty.nfe
        if self.passes is not None:
            nfe += self.attack.passing_queries * self.passes.nfe
        return nfe

    @property
    def attack_nge(self) -> int:
        """Score-network gradients that the attack takes per image."""
        if not self.attack:
            return 0
        nge = self.attacked.purifier.nge + (self.penalty.nfe if self.penalty else 0)
        return self.attack.gradient_queries * self._runs_per_query * nge

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
    def _runs_per_query(self) -> int:
        return self.defense.num_runs if self.fixed_key else 1


def strongest_of(
    attack_name: str, stages: Sequence[Row], options: Mapping, *, survivors: bool
) -> Row:
    """The row that takes for each image the strongest of what these rows of one defence found.

    Raises ValueError where they are not comparable: of several balls, or of fixed keys.
    """
    first = stages[0]
    name, defense = f"{first.defense_name}-{attack_name}", first.defense
    if len({row.ball for row in stages}) > 1:
        raise ValueError(f"{name}: its attacks are of several balls")
    if any(row.fixed_key for row in stages):
        raise ValueError(f"{name}: an attacker who knows the keys is no part of a choice")
    attack = Strongest(
        norm=first.attack.norm,
        eps=first.attack.eps,
        eot_samples=defense.num_runs,
        average="softmax" if defense.average == "softmax" else "logits",
        selection_draws=selection_runs(defense.num_runs) if defense.purifier.stochastic else 1,
        # What fits in memory there, fits here.
        chunk=min(
            filter(None, (defense.chunk, *(row.attack.chunk for row in stages))), default=None
        ),
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
        classifier_name=first.classifier_name,
        stages=tuple(stages),
    )


def main_ball(rows: Iterable[Row]) -> tuple[str, float] | None:
    """(norm, eps) of most rows under attack, the first of several: what headlines are about. None
    without attacks."""
    balls = Counter(row.ball for row in rows if row.attack)
    return max(balls, key=lambda ball: balls[ball], default=None)


def strongest_rows(rows: list[Row]) -> list[Row]:
    """For each defence and ball with several attacks, the row of the strongest one on each image,
    on the images that all of them have."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.attack and not row.fixed_key:
            groups.setdefault((row.defense_name, row.ball), []).append(row)
    main = main_ball(rows)
    return [
        strongest_of(
            "strongest" if ball == main else f"strongest_{ball[0]}_{ball[1]:.3g}",
            stages,
            {"attack": "strongest", "gradient": "chosen", "fixed_key": False},
            survivors=False,
        )
        for (_, ball), stages in groups.items()
        if len(stages) > 1
    ]


def limited(rows: list[Row], max_images: int, batch_size: int) -> list[Row]:
    """The same rows, on their first max_images images at most: the others can follow later.

    Raises ValueError where that would cut a batch whose images are decided together.
    """
    cut = [row for row in rows if row.num_images > max_images]
    if max_images % batch_size and any(row.defense.couples_batch for row in cut):
        raise ValueError(
            f"--max_images={max_images} must be a multiple of config.eval.batch_size={batch_size}: "
            "a defence of this evaluation decides a batch together"
        )
    return [
        dataclasses.replace(
            row,
            num_images=min(row.num_images, max_images),
            stages=tuple(limited(list(row.stages), max_images, batch_size)),
        )
        for row in rows
    ]


def without_exact(rows: list[Row]) -> list[Row]:
    """The rows of BPDA, or with a stage of it, on a purifier without one of the exact gradient in
    the same ball: the gap between the two is what BPDA numbers have hidden. One that knows the
    keys, or holds the step sizes constant, is another attack."""

    attacked = [row for row in rows if row.attack]
    exact = {
        (row.defense_name, row.ball)
        for row in attacked
        if "exact" in row.gradients and not row.fixed_key
    }
    return [
        row
        for row in attacked
        if "bpda" in row.gradients
        and not isinstance(row.defense.purifier, purifiers.Identity)  # the two are the same there
        and (row.defense_name, row.ball) not in exact
    ]


def crafting(rows: list[Row]) -> list[Row]:
    """One row for each set of attacked images: the one with most images."""
    by_name: dict[str, Row] = {}
    for row in rows:
        if row.attack and row.num_images > getattr(by_name.get(row.crafted), "num_images", 0):
            by_name[row.crafted] = row
    return list(by_name.values())


def jobs_of(rows: list[Row]) -> list[Job]:
    """All that the rows take: attacks, choices among attacks, and draws."""
    jobs = {row.attack_records: row.attack_job for row in crafting(rows)}
    for row in with_stages(rows):
        if not row.stages:
            continue
        for candidate in (CLEAN, *(stage.crafted for stage in row.stages)):
            job = row.choice_job(candidate)
            jobs[job.name] = job
        for stage in row.stages:
            own = dataclasses.replace(stage.attack_job, num_images=row.num_images)
            jobs.setdefault(own.name, dataclasses.replace(own, unless=row.attack_records))
    return [*jobs.values(), *(row.score_job for row in rows)]


def with_stages(rows: list[Row]) -> list[Row]:
    """The rows, and before each that chooses those of its stages."""
    return [each for row in rows for each in (*row.stages, row)]
