"""The expected loss of a randomised classifier, and the choice among candidates by it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attacks.gradients import AVERAGES, average_logits, draws, expectation
from attacks.losses import LOSSES, TARGETED
from attacks.norms import NORMS
from attacks.types import Array, Attacked, LogitsFn, Nearest, PenaltyFn

EOTS = ("mean_of_loss", "loss_of_mean")


class Runs(NamedTuple):
    """Of n runs: the logits [n, K], and the penalties [n] that lower what is maximised."""

    logits: Array
    penalties: Array

    def any_wrong(self, label: Array) -> Array:
        """Whether the answer of at least one run is wrong."""
        return jnp.any(self.logits.argmax(-1) != label)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What every attack has: a ball, a loss, how runs of logits_fn are averaged, and how the image
    that it returns is chosen.

    norm, eps: a name of NORMS and the radius, in pixel units of [0, 1].
    loss: a name of LOSSES.
    eot, eot_samples, average: the loss is estimated on eot_samples fresh runs: the mean of their
        losses ('mean_of_loss'), or the loss of their averaged logits ('loss_of_mean', averaged as
        the defence does, see average_logits).
    selection_draws: the image returned has, of all candidates and the clean image, the highest
        (untargeted) loss on selection_draws draws, one fixed set of keys that nothing else uses. A
        deterministic logits_fn needs only one.
    chunk: how many draws are computed at once, all by default.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    loss: str = "cross_entropy"
    eot: str = "mean_of_loss"
    eot_samples: int = 1
    average: str = "logits"
    selection_draws: int = 32
    chunk: int | None = None

    def __post_init__(self):
        for field, known in self.choices().items():
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field}={value!r} is unknown; known: {', '.join(known)}")
        for field in self.counts():
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be None or at least 1")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive")

    @classmethod
    def choices(cls) -> dict:
        """Field -> the names that it can have."""
        return {"norm": NORMS, "loss": LOSSES, "eot": EOTS, "average": AVERAGES}

    @classmethod
    def counts(cls) -> tuple[str, ...]:
        """Fields that must be at least 1."""
        return ("eot_samples", "selection_draws")

    @property
    def direction_queries(self) -> int:
        """Calls of direction_fn, per image, where there is one; 0 of an attack that takes none."""
        return 0

    def choose(
        self,
        key: Array,
        logits_fn: LogitsFn,
        image: Array,
        label: Array,
        candidates: Array,
        *,
        interim: Array,
        or_clean: bool = True,
        penalty_fn: PenaltyFn | None = None,
    ) -> Attacked:
        """The best of the candidates [n, H, W, C] (and the clean image) on selection draws."""
        runs_fn = self.runs(logits_fn, penalty_fn, num_samples=self._group)
        selection = expectation(
            lambda key, x: self.value(runs_fn(key, x), label),
            self._selection_groups,
            self.chunk and max(self.chunk // self._group, 1),
        )
        scored = jnp.concatenate([image[None], candidates])
        losses = jax.vmap(selection, in_axes=(None, 0))(key, scored)
        # argmax takes a NaN for the largest: one that arose is seen, not passed over.
        chosen = jnp.argmax(losses if or_clean else losses.at[0].set(-jnp.inf))
        return Attacked(scored[chosen], losses[chosen], losses[0], interim)

    def choice_queries(self, num_candidates: int) -> int:
        """Runs of logits_fn that `choose` takes."""
        return (num_candidates + 1) * self._selection_groups * self._group

    def loss_fn(self, label: Array, target: Array | None = None) -> Callable:
        """logits [K] -> what is maximised; by the targeted form where there is a target."""
        if target is None:
            return lambda logits: LOSSES[self.loss](logits, label)
        return lambda logits: TARGETED[self.loss](logits, label, target)

    def runs(
        self,
        logits_fn: LogitsFn,
        penalty_fn: PenaltyFn | None = None,
        *,
        num_samples: int | None = None,
    ) -> Callable:
        """(key, image) -> Runs, num_samples (eot_samples) of them."""
        run = single_run(logits_fn, penalty_fn)
        return draws(run, num_samples or self.eot_samples, self.chunk)

    def value(self, runs: Runs, label: Array, target: Array | None = None) -> Array:
        """The scalar that is maximised, by its expectation over the runs."""
        loss_fn = self.loss_fn(label, target)
        if self.eot == "loss_of_mean":
            loss = loss_fn(average_logits(runs.logits, self.average))
        else:
            loss = jax.vmap(loss_fn)(runs.logits).mean()
        return loss - runs.penalties.mean()

    @property
    def _group(self) -> int:
        """Runs that one value of the objective takes during selection."""
        return self.eot_samples if self.eot == "loss_of_mean" else 1

    @property
    def _selection_groups(self) -> int:
        return -(-self.selection_draws // self._group)


@dataclasses.dataclass(frozen=True)
class NearestWrong(Expected):
    """An attack that looks for the nearest wrong image, whatever its distance, by `nearest`; called
    as an attack, it offers that image's nearest point of the ball."""

    def nearest(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image found, in any ball."""
        raise NotImplementedError

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        search_key, selection_key = jax.random.split(key)
        found = self.nearest(search_key, logits_fn, image, label)
        candidate = NORMS[self.norm].project(found.image, image, self.eps)
        return self.choose(
            selection_key, logits_fn, image, label, candidate[None], interim=found.interim
        )


def single_run(logits_fn: LogitsFn, penalty_fn: PenaltyFn | None) -> Callable:
    """(key, image) -> Runs without the axis n. The logits and the penalty have the same key, so
    that a detector may see the very purification that is classified."""

    def run(key, x):
        no_penalty = jnp.zeros((), x.dtype)
        return Runs(logits_fn(key, x), no_penalty if penalty_fn is None else penalty_fn(key, x))

    return run
