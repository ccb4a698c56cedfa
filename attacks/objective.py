"""The expected loss of a randomised classifier, and the choice among candidates by it."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attacks.gradients import AVERAGES, average_logits, draws
from attacks.losses import LOSSES, TARGETED
from attacks.norms import NORMS, farthest
from attacks.types import Array, Attacked, LogitsFn, Nearest, PassesFn, PenaltyFn

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
    chunk: how many draws are computed at once, all by default: of every candidate, and of every
        restart, since these are.
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
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps={self.eps} must be positive and finite")

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

    @property
    def passing_queries(self) -> int:
        """Calls of passes_fn, per image, where there is one; 0 of an attack that takes none."""
        return 0

    @property
    def takes_penalty(self) -> bool:
        """Whether there can be a penalty_fn."""
        return False

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
        passes_fn: PassesFn | None = None,
    ) -> Attacked:
        """The best of the candidates [n, H, W, C] (and the clean image) on selection draws: that of
        the highest loss or, with a passes_fn, that which most often is answered wrongly and passes;
        the loss then decides between those that do so equally often."""
        measure = self.measured(
            logits_fn, label, num_runs=self.selection_draws, penalty_fn=penalty_fn
        )
        scored = jnp.concatenate([image[None], candidates])
        losses, _ = jax.vmap(measure, in_axes=(None, 0))(key, scored)
        worth = losses
        if passes_fn is not None:

            def evades(key, x):
                return (logits_fn(key, x).argmax() != label) & passes_fn(key, x)

            drawn = draws(evades, self.selection_draws, self.chunk)
            evasions = jax.vmap(lambda x: drawn(key, x).sum())(scored)
            worth = evasions + 0.5 * jax.nn.sigmoid(losses)
        # argmax takes a NaN for the largest: one that arose is seen, not passed over.
        chosen = jnp.argmax(worth if or_clean else worth.at[0].set(-jnp.inf))
        return Attacked(scored[chosen], losses[chosen], losses[0], interim)

    def choice_queries(self, num_candidates: int) -> int:
        """Runs of logits_fn that `choose` takes."""
        return (num_candidates + 1) * self.whole_groups(self.selection_draws)

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

    def measured(
        self,
        logits_fn: LogitsFn,
        label: Array,
        *,
        num_runs: int,
        target: Array | None = None,
        penalty_fn: PenaltyFn | None = None,
    ) -> Callable:
        """(key, image) -> (what is maximised, by its mean over `whole_groups(num_runs)` runs;
        whether any of them was wrong)."""
        runs_fn = self.runs(logits_fn, penalty_fn, num_samples=self._group)

        def one(key, x):
            runs = runs_fn(key, x)
            return self.value(runs, label, target), runs.any_wrong(label)

        groups = self.whole_groups(num_runs) // self._group
        drawn = draws(one, groups, self.chunk and max(self.chunk // self._group, 1))

        def measure(key, x):
            values, wrong = drawn(key, x)
            return values.mean(), wrong.any()

        return measure

    def whole_groups(self, num_runs: int) -> int:
        """num_runs, or a few more: the loss of a mean is one of whole groups of eot_samples."""
        return -(-num_runs // self._group) * self._group

    @property
    def _group(self) -> int:
        """Runs that one value of the objective takes."""
        return self.eot_samples if self.eot == "loss_of_mean" else 1


@dataclasses.dataclass(frozen=True)
class NearestWrong(Expected):
    """An attack that looks for the nearest wrong image, whatever its distance, by `nearest`.

    Called as an attack, it offers that image's nearest point of the ball, and the points in which
    the rays through it and through the last image leave the ball: where answers are random, an
    image at the boundary is wrong half of the time or, if one answer too many was luck, less;
    beyond it more often.
    """

    def search(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong images found, in any ball, one of each of `num_searches`, stacked."""
        raise NotImplementedError

    @property
    def num_searches(self) -> int:
        return 1

    @property
    def num_candidates(self) -> int:
        """Images that are chosen among, besides the clean one."""
        return 3 * self.num_searches

    def nearest(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Nearest:
        """The nearest wrong image found, in any ball: the clean one, if its averaged answer is."""
        search_key, clean_key = jax.random.split(key)
        found = self.search(search_key, logits_fn, image, label)
        chosen = jax.tree.map(lambda field: field[jnp.argmin(found.distance)], found)
        runs = self.runs(logits_fn)(clean_key, image)
        wrong = average_logits(runs.logits, self.average).argmax() != label
        return Nearest(
            jnp.where(wrong, image, chosen.image),
            jnp.where(wrong, 0.0, chosen.distance),
            found.interim.any() | runs.any_wrong(label),
            chosen.last,
        )

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        search_key, selection_key = jax.random.split(key)
        found = self.search(search_key, logits_fn, image, label)

        def in_ball(point, last):
            inner = NORMS[self.norm].project(point, image, self.eps)
            outer = (farthest(self.norm, x, image, self.eps) for x in (point, last))
            return jnp.stack([inner, *outer])

        candidates = jax.vmap(in_ball)(found.image, found.last).reshape(-1, *image.shape)
        interim = found.interim.any()
        return self.choose(selection_key, logits_fn, image, label, candidates, interim=interim)


def one_search(found: Nearest) -> Nearest:
    """What NearestWrong.search returns where there is one."""
    return Nearest(*(jnp.expand_dims(field, 0) for field in found))


def single_run(logits_fn: LogitsFn, penalty_fn: PenaltyFn | None) -> Callable:
    """(key, image) -> Runs without the axis n. The logits and the penalty have the same key, so
    that a detector may see the very purification that is classified."""

    def run(key, x):
        no_penalty = jnp.zeros((), x.dtype)
        return Runs(logits_fn(key, x), no_penalty if penalty_fn is None else penalty_fn(key, x))

    return run
