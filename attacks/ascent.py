"""Ascent of the expected loss within a ball: what all attacks by gradients share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks.gradients import AVERAGES, average_logits, draws, expectation
from attacks.losses import LOSSES, TARGETED
from attacks.norms import NORMS
from attacks.types import Array, Attacked, LogitsFn

EOTS = ("mean_of_loss", "loss_of_mean", "sign_vote")
KEEPS = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Ascent:
    """`attack(key, logits_fn, image, label) -> Attacked`, for one image in [0, 1].

    logits_fn(key, image) -> logits [K] is one run of a randomised classifier, a pytree callable.
    A subclass says in `ascend` how it climbs; where from, and what is returned, is the same for
    all.

    norm, eps: a name of NORMS and the radius, in pixel units of [0, 1].
    num_steps: iterations, each with one gradient.
    loss: a name of LOSSES.
    targets: 0, or how many of the likeliest wrong classes are aimed at, one after the other, by
        the targeted form of the loss; each has its own restarts.
    eot, eot_samples, average: each gradient averages over eot_samples fresh runs: the mean of
        their losses ('mean_of_loss'), or the loss of their averaged logits ('loss_of_mean',
        averaged as the defence does, see average_logits). 'sign_vote' adds up the signs of the
        single gradients, as the code of Yoon et al. does: a weaker attack, to reproduce it.
    restarts, random_start: independent runs; a random start in the ball, or the clean image.
    selection_draws: of the image returned. Every restart ranks its iterates on eot_samples draws,
        one fixed set of keys for all, and offers the best and the last of them; the image returned
        has the highest (untargeted) loss of those, and of the clean image, on selection_draws fresh
        draws, again one fixed set. Neither set serves any gradient. A deterministic logits_fn needs
        only one.
    keep: 'best', or 'last' for the last iterates only, as published attacks have it.
    chunk: how many draws are computed at once, all by default.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    num_steps: int = 40
    loss: str = "cross_entropy"
    targets: int = 0
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
        if self.targets < 0:
            raise ValueError(f"targets={self.targets} must not be negative")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be None or at least 1")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive")

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
        return f"{self.loss}, {runs}, EOT {self.eot_samples} {self.eot}"

    @property
    def gradient_queries(self) -> int:
        """Runs of logits_fn that are differentiated, per image."""
        return self._runs * self.num_steps * self.eot_samples

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that are not: they rank the classes to aim at, the iterates, and then
        the candidates and the clean image."""
        classes = self.eot_samples if self.targets else 0
        ranking = self._runs * self.num_steps * self.eot_samples
        return classes + ranking + (2 * self._runs + 1) * self._selection_groups * self._group

    def __call__(self, key: Array, logits_fn: LogitsFn, image: Array, label: Array) -> Attacked:
        start_key, gradient_key, selection_key, ranking_key, class_key = (
            jax.random.fold_in(key, i) for i in range(5)
        )
        classes = self._likeliest_wrong(class_key, logits_fn, image, label)

        def run(index):
            target = classes[index % self.targets] if self.targets else None
            objective = self._objective(logits_fn, label, target, self.eot_samples)
            gradient_fn = self._gradient(logits_fn, label, target)
            start = image
            if self.random_start:
                own = jax.random.fold_in(start_key, index)
                start = NORMS[self.norm].random(own, image, self.eps)
            keys = jax.random.fold_in(gradient_key, index)

            def evaluate(t, x):
                return objective(ranking_key, x), gradient_fn(jax.random.fold_in(keys, t), x)

            return jnp.stack(self.ascend(evaluate, start, image))

        candidates = jax.vmap(run)(jnp.arange(self._runs)).reshape(-1, *image.shape)
        return self._choose(selection_key, logits_fn, image, label, candidates)

    def _choose(self, key, logits_fn, image, label, candidates) -> Attacked:
        """The best of candidates and clean image on fresh draws."""
        selection = expectation(
            self._objective(logits_fn, label, None, self._group),
            self._selection_groups,
            self.chunk and max(self.chunk // self._group, 1),
        )
        scored = jnp.concatenate([image[None], candidates])
        losses = jax.vmap(selection, in_axes=(None, 0))(key, scored)
        allowed = losses
        if self.keep == "last":
            allowed = losses.at[jnp.append(0, jnp.arange(1, len(losses), 2))].set(-jnp.inf)
        # argmax takes a NaN for the largest: one that arose is seen, not passed over.
        chosen = jnp.argmax(allowed)
        return Attacked(scored[chosen], losses[chosen], losses[0])

    @property
    def _runs(self) -> int:
        return self.restarts * max(self.targets, 1)

    @property
    def _group(self) -> int:
        """Runs that one value of the objective takes during selection."""
        return self.eot_samples if self.eot == "loss_of_mean" else 1

    @property
    def _selection_groups(self) -> int:
        return -(-self.selection_draws // self._group)

    def _likeliest_wrong(self, key, logits_fn, image, label) -> Array | None:
        """The classes to aim at [targets], by the mean logits of the clean image."""
        if not self.targets:
            return None
        logits = average_logits(
            draws(logits_fn, self.eot_samples, self.chunk)(key, image), "logits"
        )
        if self.targets >= logits.size:
            raise ValueError(
                f"targets={self.targets} must be less than the {logits.size} classes there are"
            )
        wrong = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
        return jax.lax.top_k(wrong, self.targets)[1]

    def _loss(self, label: Array, target: Array | None) -> Callable:
        """logits [K] -> what is maximised."""
        if target is None:
            return lambda logits: LOSSES[self.loss](logits, label)
        return lambda logits: TARGETED[self.loss](logits, label, target)

    def _gradient(self, logits_fn: LogitsFn, label: Array, target: Array | None) -> Callable:
        """(key, image) -> what the step goes along, over eot_samples runs."""
        if self.eot != "sign_vote":
            return jax.grad(self._objective(logits_fn, label, target, self.eot_samples), argnums=1)
        loss_fn = self._loss(label, target)
        single = jax.grad(lambda key, x: loss_fn(logits_fn(key, x)), argnums=1)
        return expectation(lambda key, x: jnp.sign(single(key, x)), self.eot_samples, self.chunk)

    def _objective(
        self, logits_fn: LogitsFn, label: Array, target: Array | None, num_samples: int
    ) -> Callable:
        """(key, image) -> the loss that is maximised, over num_samples runs."""
        loss_fn = self._loss(label, target)
        if self.eot == "loss_of_mean":
            runs = draws(logits_fn, num_samples, self.chunk)
            return lambda key, x: loss_fn(average_logits(runs(key, x), self.average))
        return expectation(lambda key, x: loss_fn(logits_fn(key, x)), num_samples, self.chunk)
