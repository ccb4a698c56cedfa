"""Projected gradient descent on the expected loss (Madry et al. 2018; EOT: Athalye et al. 2018)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks.gradients import AVERAGES, average_logits, draws, expectation
from attacks.losses import LOSSES
from attacks.norms import NORMS
from attacks.types import Array, Attacked, LogitsFn

EOTS = ("mean_of_loss", "loss_of_mean", "sign_vote")
KEEPS = ("best", "last")


@dataclasses.dataclass(frozen=True)
class PGD:
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    logits_fn(key, image) -> logits [K] is one run of a randomised classifier, a pytree callable.

    norm, eps: a name of NORMS and the radius, in pixel units of [0, 1].
    num_steps, step_size: iterations and length of each, in the norm.
    loss: a name of LOSSES.
    eot, eot_samples, average: each gradient averages over eot_samples fresh runs: the mean of
        their losses ('mean_of_loss'), or the loss of their averaged logits ('loss_of_mean',
        averaged as the defence does, see average_logits). 'sign_vote' adds up the signs of the
        single gradients, as the code of Yoon et al. does: a weaker attack, to reproduce it.
    restarts, random_start: independent runs; a random start in the ball, or the clean image.
    selection_draws: of the image returned. Every restart ranks its iterates on eot_samples draws,
        one fixed set of keys for all, and offers the best and the last of them; the image returned
        has the highest loss of those, and of the clean image, on selection_draws fresh draws, again
        one fixed set. Neither
        set serves any gradient. A deterministic logits_fn needs only one.
    keep: 'best', or 'last' for the last iterates only, as published attacks have it.
    chunk: how many draws are computed at once, all by default.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    num_steps: int = 40
    step_size: float = 2 / 255
    loss: str = "cross_entropy"
    eot: str = "mean_of_loss"
    eot_samples: int = 1
    average: str = "logits"
    restarts: int = 1
    random_start: bool = True
    selection_draws: int = 32
    keep: str = "best"
    chunk: int | None = None

    def __post_init__(self):
        for field, known in (
            ("norm", NORMS),
            ("loss", LOSSES),
            ("eot", EOTS),
            ("average", AVERAGES),
            ("keep", KEEPS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field}={value!r} is unknown; known: {', '.join(known)}")
        for field in ("num_steps", "eot_samples", "restarts", "selection_draws"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be None or at least 1")
        if not (self.eps > 0 and self.step_size > 0):
            raise ValueError(f"eps={self.eps} and step_size={self.step_size} must be positive")

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return self.restarts * self.num_steps * self.eot_samples

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that rank the iterates, then the candidates and the clean image."""
        ranking = self.restarts * self.num_steps * self.eot_samples
        return ranking + (2 * self.restarts + 1) * self._selection_groups * self._group

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        norm = NORMS[self.norm]
        objective = self._objective(logits_fn, label, self.eot_samples)
        gradient_fn = self._gradient(logits_fn, label)
        selection = expectation(
            self._objective(logits_fn, label, self._group),
            self._selection_groups,
            self.chunk and max(self.chunk // self._group, 1),
        )
        start_key, gradient_key, selection_key, ranking_key = (
            jax.random.fold_in(key, i) for i in range(4)
        )

        def restart(index):
            """The iterate of highest loss on the ranking draws, and the last iterate."""
            start = norm.random(jax.random.fold_in(start_key, index), image, self.eps)
            keys = jax.random.fold_in(gradient_key, index)

            def step(carry, t):
                x, best, best_loss = carry
                loss = objective(ranking_key, x)
                best = jnp.where(loss > best_loss, x, best)
                gradient = gradient_fn(jax.random.fold_in(keys, t), x)
                ahead = x + self.step_size * norm.steepest(gradient)
                carry = (norm.project(ahead, image, self.eps), best, jnp.maximum(loss, best_loss))
                return carry, None

            x = start if self.random_start else image
            carry = (x, x, jnp.full((), -jnp.inf, image.dtype))
            (last, best, _), _ = jax.lax.scan(step, carry, jnp.arange(self.num_steps))
            return jnp.stack([best, last])

        candidates = jax.vmap(restart)(jnp.arange(self.restarts)).reshape(-1, *image.shape)
        scored = jnp.concatenate([image[None], candidates])
        losses = jax.vmap(selection, in_axes=(None, 0))(selection_key, scored)
        allowed = losses
        if self.keep == "last":
            allowed = losses.at[jnp.append(0, jnp.arange(1, len(losses), 2))].set(-jnp.inf)
        # argmax takes a NaN for the largest: one that arose is seen, not passed over.
        chosen = jnp.argmax(allowed)
        return Attacked(scored[chosen], losses[chosen], losses[0])

    @property
    def _group(self) -> int:
        """Runs that one value of the objective takes during selection."""
        return self.eot_samples if self.eot == "loss_of_mean" else 1

    @property
    def _selection_groups(self) -> int:
        return -(-self.selection_draws // self._group)

    def _gradient(self, logits_fn: LogitsFn, label: Array) -> Callable:
        """(key, image) -> what the step goes along, over eot_samples runs."""
        if self.eot != "sign_vote":
            return jax.grad(self._objective(logits_fn, label, self.eot_samples), argnums=1)
        single = jax.grad(lambda key, x: LOSSES[self.loss](logits_fn(key, x), label), argnums=1)
        return expectation(lambda key, x: jnp.sign(single(key, x)), self.eot_samples, self.chunk)

    def _objective(self, logits_fn: LogitsFn, label: Array, num_samples: int) -> Callable:
        """(key, image) -> the loss that is maximised, over num_samples runs."""
        loss_fn = LOSSES[self.loss]
        if self.eot == "loss_of_mean":
            runs = draws(logits_fn, num_samples, self.chunk)
            return lambda key, x: loss_fn(average_logits(runs(key, x), self.average), label)
        return expectation(
            lambda key, x: loss_fn(logits_fn(key, x), label), num_samples, self.chunk
        )
