"""How to train: the options of a run, its learning rate and its optimiser."""

import dataclasses
import math

import optax

from purify.models.networks import PRECISIONS
from purify.types import Array

ALGORITHMS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How to train: linear warm-up, gradient clipping, an average of the weights.

    algorithm: 'adam' (beta1; weight decay decoupled, as in AdamW) or 'sgd' (Nesterov's momentum
        beta1; weight decay added to the gradient, as CIFAR's residual networks are trained).
    schedule: of the learning rate after warm-up, 'constant' or 'cosine' (to zero).
    clip_norm: the largest norm of a gradient; 0 leaves gradients as they are.
    ema_decay: of the exponential moving average of the weights, which is what gets used.
    augment: a name of purify.training.augment.AUGMENTATIONS.
    accumulate: parts of a batch whose gradients are computed one after the other and averaged: less
        memory, faster where CPU caches are too small for a batch; the same step but for rounding
        (batch normalisation sees the parts).
    precision: of the network's arithmetic, see purify.models.networks.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    algorithm: str = "adam"
    schedule: str = "constant"
    beta1: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    augment: str = "none"
    accumulate: int = 1
    precision: str = "float32"
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self):
        for field in ("num_steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} must divide batch_size={self.batch_size}"
            )
        for field, known in (
            ("schedule", SCHEDULES),
            ("algorithm", ALGORITHMS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} is unknown; known: {', '.join(known)}"
                )
        for field in ("beta1", "ema_decay"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0 and below 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive and finite")
        for field in ("warmup_steps", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0 and finite")

    def learning_rate_at(self, step: int) -> Array:
        """The learning rate of update number `step` (from 0)."""
        after = max(self.num_steps - self.warmup_steps, 1)
        rate = self.learning_rate
        main = (
            optax.cosine_decay_schedule(rate, after)
            if self.schedule == "cosine"
            else optax.constant_schedule(rate)
        )
        # Starts at rate / warmup_steps rather than at 0, so that no step is wasted.
        first = rate / max(self.warmup_steps, 1)
        warmup = optax.linear_schedule(first, rate, max(self.warmup_steps - 1, 1))
        return optax.join_schedules([warmup, main], [self.warmup_steps])(step)

    def optimizer(self) -> optax.GradientTransformation:
        rate, decay = self.learning_rate_at, self.weight_decay
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        if self.algorithm == "sgd":
            momentum = optax.sgd(rate, momentum=self.beta1, nesterov=True)
            return optax.chain(clip, optax.add_decayed_weights(decay), momentum)
        return optax.chain(clip, optax.adamw(rate, b1=self.beta1, weight_decay=decay))
