"""Ascent of the expected loss within a ball: what all attacks by gradients share."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attacks import objective
from attacks.gradients import ESTIMATES
from attacks.losses import likeliest_wrong
from attacks.norms import NORMS
from attacks.objective import Expected
from attacks.step_gradient import both, step_gradient
from attacks.types import Array, Attacked, DirectionFn, LogitsFn, PassesFn, PenaltyFn

EOTS = (*objective.EOTS, "sign_vote", "selective")
KEEPS = ("best", "last")
# Losses that are positive exactly where a run's answer is wrong.
SIGNED_LOSSES = ("margin", "dlr")


class View(NamedTuple):
    """What an ascent sees at an iterate.

    loss: what is maximised, on the ranking draws.
    gradient: on the draws of the step.
    interim: whether an answer was wrong, on either.
    direction: what direction_fn says, with the key of those draws; None without one.
    """

    loss: Array
    gradient: Array
    interim: Array | bool = False
    direction: Array | None = None


class Best(NamedTuple):
    """The iterate of highest loss, with what was seen there."""

    x: Array
    loss: Array
    gradient: Array

    def or_higher(self, x: Array, view: View) -> "Best":
        higher = view.loss > self.loss
        return Best(
            jnp.where(higher, x, self.x),
            jnp.maximum(view.loss, self.loss),
            jnp.where(higher, view.gradient, self.gradient),
        )


class Climbed(NamedTuple):
    """The iterate of highest loss, the last one, and whether an answer was wrong before it."""

    best: Array
    last: Array
    interim: Array


@dataclasses.dataclass(frozen=True)
class Ascent(Expected):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    logits_fn(key, image) -> logits [K] is one run of a randomised classifier, a pytree callable.
    A subclass says in `begin` and `step` how it climbs; where from, and what is returned, is the
    same for all. See Expected for the ball, the loss and its expectation. More arguments, by
    keyword, the callables pytrees too:

    direction_fn(key, image) -> [H, W, C], on the draws of the step's gradient: what PGD goes along
        beside the gradient.
    starts: float [given_starts, H, W, C], points to climb from besides those of the restarts, such
        as what other attacks found.
    penalty_fn(key, image) -> scalar, of one run and with its key: its mean is subtracted from the
        loss wherever that is maximised, for attacks that a detector shall not see.
    passes_fn(key, image) -> bool, of one run: whether that detector lets the image pass. The image
        returned is then the one that fools and passes most often, see Expected.choose.

    num_steps: iterations, each with one gradient, over eot_samples fresh runs.
    eot: also 'sign_vote', which adds up the signs of the single gradients, as the code of Yoon et
        al. does: a weaker attack, to reproduce it. Or 'selective', which goes along the gradients
        of the runs that can be fooled together, see attacks.selective; it needs a loss of
        SIGNED_LOSSES. Both rank and choose by the mean of the losses.
    selectivity, selection_steps: of 'selective', lam and the rounds of its weights.
    targets: 0, or how many of the likeliest wrong classes are aimed at, one after the other, by
        the targeted form of the loss; each has its own restarts.
    restarts, random_start: independent runs; a random start in the ball, or the clean image.
        Every run, also of the given_starts from points that are given, ranks its iterates and
        offers the best and the last of them for selection.
    ranking_draws: on how many draws iterates are ranked, or eot_samples where that is more; on one
        alone luck would rank them. One fixed set of keys for all, that serves no gradient.
    remeasure: whether there are such draws. Only a deterministic logits_fn does without: its
        gradient's forward pass has the loss already.
    keep: 'best', or 'last' for the last iterates only, as published attacks have it.
    estimate, directions, delta: '' differentiates; 'spsa' and 'nes' see values of the loss only,
        at distance delta along random directions; see estimated_gradient.
    """

    num_steps: int = 40
    targets: int = 0
    restarts: int = 1
    given_starts: int = 0
    random_start: bool = True
    ranking_draws: int = 4
    remeasure: bool = True
    keep: str = "best"
    estimate: str = ""
    directions: int = 64
    delta: float = 0.01
    selectivity: float = 1.0
    selection_steps: int = 3

    def __post_init__(self):
        super().__post_init__()
        for field in ("targets", "given_starts"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must not be negative")
        for field in ("delta", "selectivity"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} must be positive and finite")
        if self.estimate and self.eot not in objective.EOTS:
            raise ValueError(
                f"eot={self.eot!r} needs gradients, and estimate={self.estimate!r} has none"
            )
        if self.eot == "selective" and self.loss not in SIGNED_LOSSES:
            raise ValueError(
                f"eot='selective' needs a loss that is positive exactly where an answer is wrong: "
                f"{' or '.join(SIGNED_LOSSES)}, not loss={self.loss!r}"
            )

    @classmethod
    def choices(cls) -> dict:
        return super().choices() | {"eot": EOTS, "keep": KEEPS, "estimate": ("", *ESTIMATES)}

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (
            *super().counts(),
            *("num_steps", "restarts", "ranking_draws", "directions", "selection_steps"),
        )

    def begin(self, start: Array):
        """The state before the first step: a NamedTuple with a field x, the iterate."""
        raise NotImplementedError

    def step(self, state, view: View, best: Best, t: Array, image: Array):
        """The state after step t, from what is seen at its iterate and the best one so far."""
        raise NotImplementedError

    def ascend(self, evaluate: Callable, start: Array, image: Array) -> Climbed:
        """num_steps steps from `start`; evaluate(t, x) -> View of the iterate of step t."""

        def body(carry, t):
            state, best, interim = carry
            view = evaluate(t, state.x)
            best = best.or_higher(state.x, view)
            return (self.step(state, view, best, t, image), best, interim | view.interim), None

        nowhere = Best(start, jnp.full((), -jnp.inf, start.dtype), jnp.zeros_like(start))
        carry = (self.begin(start), nowhere, jnp.array(False))
        (state, best, interim), _ = jax.lax.scan(body, carry, jnp.arange(self.num_steps))
        return Climbed(best.x, state.x, interim)

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        targets = f"{self.targets} targets x " if self.targets else ""
        given = f" and {self.given_starts} given starts" if self.given_starts else ""
        runs = f"{targets}{self.restarts}{given} x {self.num_steps} steps"
        by = f" by {self.estimate} along {self.directions}" if self.estimate else ""
        return f"{self.loss}, {runs}{by}, EOT {self.eot_samples} {self.eot}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return 0 if self.estimate else self._step_queries

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not: they rank the classes to aim at, the iterates, and then
        the candidates and the clean image; and what an estimated gradient takes."""
        classes = self.eot_samples if self.targets else 0
        estimates = 2 * self.directions * self._step_queries if self.estimate else 0
        ranking = 0 if self._ranks_by_gradient else self._runs * self.num_steps * self._ranking_runs
        return classes + estimates + ranking + self.choice_queries(self.num_candidates)

    def __call__(
        self,
        key: Array,
        logits_fn: LogitsFn,
        image: Array,
        label: Array,
        *,
        direction_fn: DirectionFn | None = None,
        penalty_fn: PenaltyFn | None = None,
        passes_fn: PassesFn | None = None,
        starts: Array | None = None,
    ) -> Attacked:
        given = 0 if starts is None else len(starts)
        if given != self.given_starts:
            raise ValueError(f"given_starts={self.given_starts}, but {given} starts were given")
        if direction_fn is not None and not self.direction_queries:
            raise ValueError(f"{type(self).__name__} takes no direction_fn; use pgd")
        start_key, gradient_key, selection_key, ranking_key, class_key = (
            jax.random.fold_in(key, i) for i in range(5)
        )
        if self.targets:
            logits = self.runs(logits_fn, penalty_fn)(class_key, image).logits
            classes = likeliest_wrong(logits.mean(0), label, self.targets)

        def run(index):
            target = classes[index % self.targets] if self.targets else None
            gradient_fn = step_gradient(self, logits_fn, penalty_fn, image, label, target)
            start = self._start(jax.random.fold_in(start_key, index), image, starts, index)
            keys = jax.random.fold_in(gradient_key, index)

            rank = self.measured(
                logits_fn,
                label,
                num_runs=self._ranking_runs,
                target=target,
                penalty_fn=penalty_fn,
            )

            def evaluate(t, x):
                step_key = jax.random.fold_in(keys, t)
                if self._ranks_by_gradient:
                    (loss, wrong), gradient = both(rank)(ranking_key, x)
                else:
                    (loss, wrong), (gradient, seen) = rank(ranking_key, x), gradient_fn(step_key, x)
                    wrong |= seen
                direction = direction_fn(step_key, x) if direction_fn is not None else None
                return View(loss, gradient, wrong, direction)

            best, last, interim = self.ascend(evaluate, start, image)
            return last[None] if self.keep == "last" else jnp.stack([best, last]), interim

        candidates, interim = jax.vmap(run)(jnp.arange(self._runs))
        return self.choose(
            selection_key,
            logits_fn,
            image,
            label,
            candidates.reshape(-1, *image.shape),
            interim=interim.any(),
            or_clean=self.keep != "last",
            penalty_fn=penalty_fn,
            passes_fn=passes_fn,
        )

    def _start(self, key: Array, image: Array, starts: Array | None, index: Array) -> Array:
        """Where run number `index` begins: those from given points come after the restarts."""
        norm = NORMS[self.norm]
        own = norm.random(key, image, self.eps) if self.random_start else image
        if starts is None:
            return own
        number = index // max(self.targets, 1) - self.restarts
        given = norm.project(starts[jnp.maximum(number, 0)], image, self.eps)
        return jnp.where(number < 0, own, given)

    @property
    def passing_queries(self) -> int:
        return (self.num_candidates + 1) * self.selection_draws

    @property
    def takes_penalty(self) -> bool:
        return True

    @property
    def _runs(self) -> int:
        return (self.restarts + self.given_starts) * max(self.targets, 1)

    @property
    def num_candidates(self) -> int:
        """Images that are chosen among, besides the clean one."""
        return self._runs * (1 if self.keep == "last" else 2)

    @property
    def _ranks_by_gradient(self) -> bool:
        """Whether one pass gives an iterate's gradient and the loss that it is ranked by."""
        return not self.remeasure and not self.estimate and self.eot in objective.EOTS

    @property
    def _step_queries(self) -> int:
        return self._runs * self.num_steps * self.eot_samples

    @property
    def _ranking_runs(self) -> int:
        return self.whole_groups(max(self.eot_samples, self.ranking_draws if self.remeasure else 1))
