"""Ascent of the expected loss within a ball: what all attacks by gradients share."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attacks import objective
from attacks.gradients import draws, estimated_gradient
from attacks.losses import others
from attacks.norms import NORMS
from attacks.objective import Expected, single_run
from attacks.selective import selected
from attacks.types import Array, Attacked, DirectionFn, LogitsFn, PenaltyFn

EOTS = (*objective.EOTS, "sign_vote", "selective")
KEEPS = ("best", "last")
ESTIMATES = ("", "spsa", "nes")
# Losses that are positive exactly where a run's answer is wrong.
SIGNED_LOSSES = ("margin", "dlr")


class View(NamedTuple):
    """What an ascent sees at an iterate.

    loss, interim: of the ranking draws, what is maximised, and whether an answer was wrong.
    gradient: on the draws of the step.
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
    """The iterate of highest loss, the last one, and whether an answer was wrong at any but it."""

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

    num_steps: iterations, each with one gradient, over eot_samples fresh runs.
    eot: also 'sign_vote', which adds up the signs of the single gradients, as the code of Yoon et
        al. does: a weaker attack, to reproduce it. Or 'selective', which goes along the gradients
        of the runs that can be fooled together, see attacks.selective; it needs a loss of
        SIGNED_LOSSES. Both rank and choose by the mean of the losses.
    selectivity, selection_steps: of 'selective', lam and the rounds of its weights.
    targets: 0, or how many of the likeliest wrong classes are aimed at, one after the other, by
        the targeted form of the loss; each has its own restarts.
    restarts, random_start: independent runs; a random start in the ball, or the clean image.
        Every run, also of the given_starts from points that are given, ranks its iterates on
        eot_samples draws, one fixed set of keys for all that serves no gradient, and offers the
        best and the last of them for selection.
    remeasure: whether iterates are ranked on draws of their own, which no gradient serves. Only a
        deterministic logits_fn does without: its gradient's forward pass has the loss already.
    keep: 'best', or 'last' for the last iterates only, as published attacks have it.
    estimate, directions, delta: '' differentiates; 'spsa' and 'nes' see values of the loss only,
        at distance delta along random directions; see estimated_gradient.
    """

    num_steps: int = 40
    targets: int = 0
    restarts: int = 1
    given_starts: int = 0
    random_start: bool = True
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
        if not self.delta > 0:
            raise ValueError(f"delta={self.delta} must be positive")
        if not self.selectivity > 0:
            raise ValueError(f"selectivity={self.selectivity} must be positive")
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
        return super().choices() | {"eot": EOTS, "keep": KEEPS, "estimate": ESTIMATES}

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps", "restarts", "directions", "selection_steps")

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
        ranking = 0 if self._ranks_by_gradient else self._step_queries
        return classes + estimates + ranking + self.choice_queries(self._candidates)

    def __call__(
        self,
        key: Array,
        logits_fn: LogitsFn,
        image: Array,
        label: Array,
        *,
        direction_fn: DirectionFn | None = None,
        penalty_fn: PenaltyFn | None = None,
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
        runs_fn = self.runs(logits_fn, penalty_fn)
        if self.targets:
            logits = runs_fn(class_key, image).logits
            classes = likeliest_wrong(logits.mean(0), label, self.targets)

        def run(index):
            target = classes[index % self.targets] if self.targets else None
            gradient_fn = self._gradient(logits_fn, penalty_fn, image, label, target)
            start = self._start(jax.random.fold_in(start_key, index), image, starts, index)
            keys = jax.random.fold_in(gradient_key, index)

            def rank(x):
                ranked = runs_fn(ranking_key, x)
                return self.value(ranked, label, target), ranked.any_wrong(label)

            def evaluate(t, x):
                step_key = jax.random.fold_in(keys, t)
                if self._ranks_by_gradient:
                    (loss, wrong), gradient = jax.value_and_grad(rank, has_aux=True)(x)
                else:
                    (loss, wrong), gradient = rank(x), gradient_fn(step_key, x)
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
    def _runs(self) -> int:
        return (self.restarts + self.given_starts) * max(self.targets, 1)

    @property
    def _candidates(self) -> int:
        return self._runs * (1 if self.keep == "last" else 2)

    @property
    def _ranks_by_gradient(self) -> bool:
        """Whether one pass gives an iterate's gradient and the loss that it is ranked by."""
        return not self.remeasure and not self.estimate and self.eot in objective.EOTS

    @property
    def _step_queries(self) -> int:
        return self._runs * self.num_steps * self.eot_samples

    def _gradient(
        self,
        logits_fn: LogitsFn,
        penalty_fn: PenaltyFn | None,
        image: Array,
        label: Array,
        target: Array | None,
    ) -> Callable:
        """(key, x) -> what the step goes along, over eot_samples runs."""
        runs_fn = self.runs(logits_fn, penalty_fn)

        def value(key, x):
            return self.value(runs_fn(key, x), label, target)

        if self.estimate:
            at_once = self.chunk and max(self.chunk // (2 * self.eot_samples), 1)
            return estimated_gradient(value, self.estimate, self.directions, self.delta, at_once)
        if self.eot in objective.EOTS:
            return jax.grad(value, argnums=1)
        run = single_run(logits_fn, penalty_fn)

        def value_of_one(key, x):
            return self.value(jax.tree.map(lambda a: a[None], run(key, x)), label, target)

        singles = draws(jax.value_and_grad(value_of_one, argnums=1), self.eot_samples, self.chunk)

        def combined(key, x):
            values, gradients = singles(key, x)
            if self.eot == "sign_vote":
                return jnp.sign(gradients).mean(0)
            options = dict(lam=self.selectivity, num_steps=self.selection_steps)
            return selected(values, gradients, x, image, norm=self.norm, eps=self.eps, **options)

        return combined


def likeliest_wrong(logits: Array, label: Array, count: int) -> Array:
    """The `count` classes of largest logit but for the label; ValueError where there are fewer."""
    if count >= logits.size:
        raise ValueError(f"targets={count} must be less than the {logits.size} classes there are")
    return jax.lax.top_k(others(logits, label), count)[1]
