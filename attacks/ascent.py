"""Ascent of the expected loss within a ball: what all attacks by gradients share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks import objective
from attacks.gradients import draws, estimated_gradient, expectation
from attacks.norms import NORMS
from attacks.objective import Expected
from attacks.types import Array, Attacked, LogitsFn

EOTS = (*objective.EOTS, "sign_vote")
KEEPS = ("best", "last")
ESTIMATES = ("", "spsa", "nes")


@dataclasses.dataclass(frozen=True)
class Ascent(Expected):
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    logits_fn(key, image) -> logits [K] is one run of a randomised classifier, a pytree callable.
    A subclass says in `ascend` how it climbs; where from, and what is returned, is the same for
    all. See Expected for the ball, the loss and its expectation.

    num_steps: iterations, each with one gradient, over eot_samples fresh runs.
    eot: also 'sign_vote', which adds up the signs of the single gradients, as the code of Yoon et
        al. does: a weaker attack, to reproduce it.
    targets: 0, or how many of the likeliest wrong classes are aimed at, one after the other, by
        the targeted form of the loss; each has its own restarts.
    restarts, random_start: independent runs; a random start in the ball, or the clean image. Every
        restart ranks its iterates on eot_samples draws, one fixed set of keys for all that serves
        no gradient, and offers the best and the last of them for selection.
    keep: 'best', or 'last' for the last iterates only, as published attacks have it.
    estimate, directions, delta: '' differentiates; 'spsa' and 'nes' see values of the loss only,
        at distance delta along random directions; see estimated_gradient.
    """

    num_steps: int = 40
    targets: int = 0
    restarts: int = 1
    random_start: bool = True
    keep: str = "best"
    estimate: str = ""
    directions: int = 64
    delta: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.targets < 0:
            raise ValueError(f"targets={self.targets} must not be negative")
        if not self.delta > 0:
            raise ValueError(f"delta={self.delta} must be positive")
        if self.estimate and self.eot == "sign_vote":
            raise ValueError(
                f"eot='sign_vote' needs gradients, and estimate={self.estimate!r} has none"
            )

    @classmethod
    def choices(cls) -> dict:
        return super().choices() | {"eot": EOTS, "keep": KEEPS, "estimate": ESTIMATES}

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        return (*super().counts(), "num_steps", "restarts", "directions")

    def ascend(self, evaluate: Callable, start: Array, image: Array) -> tuple[Array, Array]:
        """(the iterate of highest loss, the last one), of num_steps steps from `start`.

        evaluate(t, x) -> (loss on the ranking draws, gradient on the draws of step t).
        """
        raise NotImplementedError

    @property
    def budget(self) -> str:
        """For people: the objective, and how much is spent on it."""
        targets = f"{self.targets} targets x " if self.targets else ""
        runs = f"{targets}{self.restarts} x {self.num_steps} steps"
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
        return classes + estimates + self._step_queries + self.choice_queries(self._candidates)

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        start_key, gradient_key, selection_key, ranking_key, class_key = (
            jax.random.fold_in(key, i) for i in range(5)
        )
        if self.targets:
            runs = draws(logits_fn, self.eot_samples, self.chunk)(class_key, image)
            classes = likeliest_wrong(runs.mean(0), label, self.targets)

        def run(index):
            target = classes[index % self.targets] if self.targets else None
            objective = self.objective(logits_fn, label, target)
            gradient_fn = self._gradient(logits_fn, label, target)
            start = image
            if self.random_start:
                own = jax.random.fold_in(start_key, index)
                start = NORMS[self.norm].random(own, image, self.eps)
            keys = jax.random.fold_in(gradient_key, index)

            def evaluate(t, x):
                return objective(ranking_key, x), gradient_fn(jax.random.fold_in(keys, t), x)

            best, last = self.ascend(evaluate, start, image)
            return last[None] if self.keep == "last" else jnp.stack([best, last])

        candidates = jax.vmap(run)(jnp.arange(self._runs)).reshape(-1, *image.shape)
        or_clean = self.keep != "last"
        return self.choose(selection_key, logits_fn, image, label, candidates, or_clean=or_clean)

    @property
    def _runs(self) -> int:
        return self.restarts * max(self.targets, 1)

    @property
    def _candidates(self) -> int:
        return self._runs * (1 if self.keep == "last" else 2)

    @property
    def _step_queries(self) -> int:
        return self._runs * self.num_steps * self.eot_samples

    def _gradient(self, logits_fn: LogitsFn, label: Array, target: Array | None) -> Callable:
        """(key, image) -> what the step goes along, over eot_samples runs."""
        objective = self.objective(logits_fn, label, target)
        if self.estimate:
            at_once = self.chunk and max(self.chunk // (2 * self.eot_samples), 1)
            return estimated_gradient(
                objective, self.estimate, self.directions, self.delta, at_once
            )
        if self.eot != "sign_vote":
            return jax.grad(objective, argnums=1)
        loss_fn = self.loss_fn(label, target)
        single = jax.grad(lambda key, x: loss_fn(logits_fn(key, x)), argnums=1)
        return expectation(lambda key, x: jnp.sign(single(key, x)), self.eot_samples, self.chunk)


def likeliest_wrong(logits: Array, label: Array, count: int) -> Array:
    """The `count` classes of largest logit but for the label; ValueError where there are fewer."""
    if count >= logits.size:
        raise ValueError(f"targets={count} must be less than the {logits.size} classes there are")
    wrong = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
    return jax.lax.top_k(wrong, count)[1]
