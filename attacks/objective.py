"""The expected loss of a randomised classifier, and the choice among candidates by it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks.gradients import AVERAGES, average_logits, draws, expectation
from attacks.losses import LOSSES, TARGETED
from attacks.norms import NORMS
from attacks.types import Array, Attacked, LogitsFn

EOTS = ("mean_of_loss", "loss_of_mean")


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

    def choose(
        self,
        key: Array,
        logits_fn: LogitsFn,
        image: Array,
        label: Array,
        candidates: Array,
        *,
        or_clean: bool = True,
    ) -> Attacked:
        """The best of the candidates [n, H, W, C] (and the clean image) on selection draws."""
        selection = expectation(
            self.objective(logits_fn, label, num_samples=self._group),
            self._selection_groups,
            self.chunk and max(self.chunk // self._group, 1),
        )
        scored = jnp.concatenate([image[None], candidates])
        losses = jax.vmap(selection, in_axes=(None, 0))(key, scored)
        # argmax takes a NaN for the largest: one that arose is seen, not passed over.
        chosen = jnp.argmax(losses if or_clean else losses.at[0].set(-jnp.inf))
        return Attacked(scored[chosen], losses[chosen], losses[0])

    def choice_queries(self, num_candidates: int) -> int:
        """Runs of logits_fn that `choose` takes."""
        return (num_candidates + 1) * self._selection_groups * self._group

    def loss_fn(self, label: Array, target: Array | None = None) -> Callable:
        """logits [K] -> what is maximised; by the targeted form where there is a target."""
        if target is None:
            return lambda logits: LOSSES[self.loss](logits, label)
        return lambda logits: TARGETED[self.loss](logits, label, target)

    def objective(
        self,
        logits_fn: LogitsFn,
        label: Array,
        target: Array | None = None,
        num_samples: int | None = None,
    ) -> Callable:
        """(key, image) -> the loss that is maximised, over num_samples (eot_samples) runs."""
        num_samples, loss_fn = num_samples or self.eot_samples, self.loss_fn(label, target)
        if self.eot == "loss_of_mean":
            runs = draws(logits_fn, num_samples, self.chunk)
            return lambda key, x: loss_fn(average_logits(runs(key, x), self.average))
        return expectation(lambda key, x: loss_fn(logits_fn(key, x)), num_samples, self.chunk)

    @property
    def _group(self) -> int:
        """Runs that one value of the objective takes during selection."""
        return self.eot_samples if self.eot == "loss_of_mean" else 1

    @property
    def _selection_groups(self) -> int:
        return -(-self.selection_draws // self._group)
