"""What must hold where gradients can be trusted: the attacks that show it, and a check for each.

An attack that knows less must not beat the exact gradient, less of an attack must not beat more of
it, a ball that holds mid-grey must leave nothing, and a gradient must say what a step does.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

import attacks
from attacks.gradients import attacked_purifier
from attacks.types import Attack
from purify.defense import Defense
from purify.evals.attacked.rows import Row
from purify.evals.attacked.strongest import MIN_SELECTION_DRAWS
from purify.evals.core.stats import bootstrap_mean, flip_test, holm
from purify.evals.gradients.probes import NUM_DIRECTIONS, STEP, Local
from purify.purifiers import Identity

PASS, FAIL, NOT_INFORMATIVE, REPORTED = "PASS", "FAIL", "NOT INFORMATIVE", ""
LEVEL = 0.01  # the chance of any false FAIL among the checks of a report
FAR = 0.5  # of Linf: such a ball holds mid-grey whatever its centre
FACTOR = 2.0  # a gain may be so many times its prediction, or its prediction the gain
SAME = 1e-3  # median gap of logits, over the largest, that rounding may leave
TOLERANCE = 1e-5  # relative error of a derivative in double precision
FLAT = 0.1  # of the images: so many may lie where the loss saturates
KINKED = 1  # images whose difference may straddle a kink, as by chance one in thousands does


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the attacks of a report have.

    norm, eps, loss, num_steps, restarts, eot_samples: of all attacks by gradients, in steps of
        eps / 4. num_draws: fresh draws that score each image.
    proposals: of each restart of Square, and directions: of each gradient that SPSA estimates.
        These two see values only and have a loss that cannot saturate, the margin; SPSA has one
        sample, for each of its directions has draws of its own.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    loss: str = "cross_entropy"
    num_steps: int = 10
    restarts: int = 1
    eot_samples: int = 4
    num_draws: int = 4
    proposals: int = 50
    directions: int = 8

    def __post_init__(self):
        for field in ("num_steps", "eot_samples"):
            if getattr(self, field) < 2:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 2, to be halved")
        for field in ("restarts", "num_draws", "proposals", "directions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps={self.eps} must be positive and finite")


def attack_rows(
    defense: Defense,
    attacked: Defense,
    surrogate: Defense | None,
    budget: Budget,
    *,
    num_images: int,
) -> dict[str, Row]:
    """Every attack of a report by name, as rows of an evaluation; those that would be the same as
    another, or that do not exist in the norm, are left out.

    attacked: the defence as 'exact' differentiates it. surrogate: another one to attack in its
    place, None for none.
    """
    stochastic = defense.purifier.stochastic
    ball: dict[str, Any] = dict(norm=budget.norm, eps=budget.eps, restarts=budget.restarts)
    climb = dict(loss=budget.loss, num_steps=budget.num_steps)
    # Of a purifier that draws nothing every sample is the same.
    eot = dict(eot_samples=budget.eot_samples, selection_draws=MIN_SELECTION_DRAWS)
    eot = eot if stochastic else dict(eot_samples=1, selection_draws=1)
    eot |= dict(chunk=defense.chunk, remeasure=stochastic)

    def pgd(**changes) -> Attack:
        options = ball | climb | eot | changes
        if options["norm"] == "l1":  # where PGD's steps of one pixel get stuck
            return attacks.build("apgd", **options)
        return attacks.build("pgd", **options, step_size=options["eps"] / 4)

    def seen_as(gradient: str) -> Defense:
        purifier = attacked_purifier(gradient, defense.purifier)
        return dataclasses.replace(defense, purifier=purifier)

    by_gradient = {
        "exact": (pgd(), attacked),
        "half_steps": (pgd(num_steps=budget.num_steps // 2), attacked),
        "more_restarts": (pgd(restarts=2 * budget.restarts), attacked),
        "far": (pgd(norm="linf", eps=FAR), attacked),
    }
    if stochastic:
        by_gradient["half_eot"] = (pgd(eot_samples=budget.eot_samples // 2), attacked)
    if budget.norm == "linf" and budget.eps < FAR:
        by_gradient["wide"] = (pgd(eps=math.sqrt(budget.eps * FAR)), attacked)
    if not isinstance(defense.purifier, Identity):  # else all of these are the exact gradient
        by_gradient["blind"] = (pgd(eot_samples=1, selection_draws=1), seen_as("blind"))
        by_gradient["bpda"] = (pgd(), seen_as("bpda"))
        if surrogate is not None:
            by_gradient["surrogate"] = (pgd(), surrogate)
    estimate = dict(estimate="spsa", directions=budget.directions)
    by_values = {"spsa": pgd(**estimate, loss="margin", eot_samples=1)}
    if budget.norm != "l1":
        square = ball | eot | dict(num_steps=budget.proposals)
        by_values["square"] = attacks.build("square", **square)

    num_draws = budget.num_draws if stochastic else 1
    tried = by_gradient | {name: (attack, defense) for name, attack in by_values.items()}
    return {
        name: Row(
            *("defense", name, defense, attack, attacked),
            options={"gradient": name, "fixed_key": False},
            num_images=num_images,
            num_draws=num_draws,
        )
        for name, (attack, attacked) in tried.items()
    }


def doubled(row: Row) -> Row:
    """The row with twice the iterations, and twice the EOT samples where draws differ."""
    attack: Any = row.attack
    changes = {"num_steps": 2 * attack.num_steps}
    if row.attacked.purifier.stochastic:
        changes["eot_samples"] = 2 * attack.eot_samples
    attack = dataclasses.replace(attack, **changes)
    return dataclasses.replace(row, attack_name=f"{row.attack_name}_doubled", attack=attack)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the checks see.

    correct: row -> bool [n, N], whether each draw is right on each attacked image; of equally many
        images and draws in every row. local: of the clean images, each field [n].
    derivative_errors: see probes. num_classes, stochastic: of the defence.
    """

    correct: Mapping[str, np.ndarray]
    local: Local
    derivative_errors: np.ndarray
    num_classes: int
    stochastic: bool


class Finding(NamedTuple):
    """numbers: those that decide. p: the chance of as much against the check if it holds, None
    where chance has no part. verdict: unless p is too small."""

    numbers: Mapping[str, float]
    p: float | None = None
    verdict: str = PASS


class Verdict(NamedTuple):
    """p: corrected for all the checks of a report (Holm), None where chance has no part."""

    check: str
    verdict: str
    p: float | None
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class NotAbove:
    """The first row leaves no more than the second, on the same images and draws of the defence."""

    first: str
    second: str

    @property
    def rows(self) -> tuple[str, ...]:
        return self.first, self.second

    def __call__(self, measured: Measured) -> Finding:
        first, second = (measured.correct[name] for name in self.rows)
        numbers = {name: float(measured.correct[name].mean()) for name in self.rows}
        if set(numbers.values()) in ({0.0}, {1.0}):
            return Finding(numbers, verdict=NOT_INFORMATIVE)
        return Finding(numbers, flip_test(first.sum(1), second.sum(1)))


@dataclasses.dataclass(frozen=True)
class LittleLeft:
    """The row leaves at most what a constant answer gets right, and nothing of a defence that draws
    nothing. What is left of few images by luck decides nothing: not informative."""

    row: str

    @property
    def rows(self) -> tuple[str, ...]:
        return (self.row,)

    def __call__(self, measured: Measured) -> Finding:
        correct, chance = measured.correct[self.row], 1 / measured.num_classes
        left = bootstrap_mean(correct.mean(1))
        numbers = {"left": left.value, "at most": left.high}
        right, n = correct[:, 0].sum(), len(correct)  # an image has one outcome: its first draw's
        if not measured.stochastic:
            return Finding(numbers, 0.0 if right else 1.0)
        verdict = PASS if left.high <= chance else NOT_INFORMATIVE
        return Finding(numbers, float(binom.sf(right - 1, n, chance)), verdict)


def beats_random(measured: Measured) -> Finding:
    """A step along the gradient gains more than the best random one, on most images."""
    local = measured.local
    lead = local.gain - local.random_gain
    ahead, behind = np.sum(lead > local.resolution), np.sum(lead < -local.resolution)
    numbers = {"ahead": int(ahead), "behind": int(behind), "of": len(lead)}
    if ahead + behind == 0:
        return Finding(numbers, verdict=NOT_INFORMATIVE)
    return Finding(numbers, float(binom.cdf(ahead, ahead + behind, 0.5)))


def has_gradient(measured: Measured) -> Finding:
    """The loss has a gradient at most images: where it is exactly zero, as that of a cross-entropy
    which saturates, the step along it stays where it is."""
    local = measured.local
    flat = int(np.sum((local.gain == 0) & (local.predicted == 0)))
    of = len(local.gain)
    return Finding({"without": flat, "of": of}, verdict=FAIL if flat > FLAT * of else PASS)


def as_predicted(measured: Measured) -> Finding:
    """That step gains what the gradient predicts within FACTOR, on most of the images where so
    small a gain can be told from rounding."""
    local = measured.local
    told = local.predicted > local.resolution
    numbers: dict[str, float] = {"of": int(told.sum())}
    if not told.any():
        return Finding(numbers, verdict=NOT_INFORMATIVE)
    ratio = local.gain[told] / local.predicted[told]
    agree = int(np.sum((ratio >= 1 / FACTOR) & (ratio <= FACTOR)))
    numbers = {"within": agree, **numbers, "median ratio": float(np.median(ratio))}
    return Finding(numbers, float(binom.cdf(agree, told.sum(), 0.5)))


def same_function(measured: Measured) -> Finding:
    """With the same keys the attacked function gives the logits of the defence."""
    gap = float(np.median(measured.local.gap))
    return Finding({"median gap": gap}, verdict=PASS if gap <= SAME else FAIL)


def equals_differences(measured: Measured) -> Finding:
    """The exact gradient of a small copy of the purifier is the limit of differences, at all images
    but KINKED."""
    errors = measured.derivative_errors
    apart = int(np.sum(errors > TOLERANCE))
    numbers = {"apart": apart, "of": len(errors), "median error": float(np.median(errors))}
    return Finding(numbers, verdict=PASS if apart <= KINKED else FAIL)


def cosine(measured: Measured) -> Finding:
    """How far gradients with other keys agree: what EOT has to average."""
    return Finding({"mean": float(np.mean(measured.local.cosine))}, verdict=REPORTED)


def in_ball(measured: Measured) -> Finding:
    """Every attacked image was found in its ball and in [0, 1]: an evaluation ends in an error at
    the first that is not (check_in_ball)."""
    count = sum(len(correct) for correct in measured.correct.values())
    return Finding({"attacked images": count})


CHECKS: dict[str, Callable[[Measured], Finding]] = {
    "blind does not beat exact": NotAbove("exact", "blind"),
    "BPDA does not beat exact": NotAbove("exact", "bpda"),
    "a surrogate does not beat exact": NotAbove("exact", "surrogate"),
    "Square does not beat exact": NotAbove("exact", "square"),
    "SPSA does not beat exact": NotAbove("exact", "spsa"),
    "half the iterations do not beat all": NotAbove("exact", "half_steps"),
    "half the restarts do not beat all": NotAbove("more_restarts", "exact"),
    "half the EOT samples do not beat all": NotAbove("exact", "half_eot"),
    "a wider Linf ball leaves no more": NotAbove("wide", "exact"),
    f"Linf {FAR} leaves no more than that": NotAbove("far", "wide"),
    f"Linf {FAR} leaves at most a constant's share": LittleLeft("far"),
    f"a step of {STEP} eps beats {NUM_DIRECTIONS} random ones": beats_random,
    f"its gain is as predicted, within {FACTOR:g} times": as_predicted,
    "the loss has a gradient": has_gradient,
    "the attacked function is the defence": same_function,
    "exact equals finite differences": equals_differences,
    "attacked images are in ball and box": in_ball,
    "cosine of gradients across keys": cosine,
}


def rows_of(check: str) -> tuple[str, ...]:
    """The rows that a check needs."""
    return getattr(CHECKS[check], "rows", ())


def find(measured: Measured) -> dict[str, Finding]:
    """What every check finds that has what it needs."""
    return {
        name: check(measured)
        for name, check in CHECKS.items()
        if set(rows_of(name)) <= measured.correct.keys()
        and (measured.stochastic or check is not cosine)
    }


def judge(findings: Mapping[str, Finding]) -> list[Verdict]:
    """A verdict each; by chance any of them is FAIL in LEVEL of all reports at most."""
    tested = {name: finding.p for name, finding in findings.items() if finding.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Verdict(
            name,
            FAIL if corrected.get(name, 1.0) <= LEVEL else finding.verdict,
            corrected.get(name),
            finding.numbers,
        )
        for name, finding in findings.items()
    ]
