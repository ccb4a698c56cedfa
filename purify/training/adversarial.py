"""Adversarial training: losses of one image that is attacked while the classifier learns.

As `losses.cross_entropy`: (loss, metrics, running statistics). The attack sees the classifier as it
is used, not as it trains: with the running statistics of batch normalisation, so that no image's
attack depends on the others of its batch. No gradient flows through it.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import optax

from attacks.norms import NORMS
from purify.models.networks import Classifier
from purify.training.losses import Metrics, cross_entropy, hit, smoothed_cross_entropy
from purify.types import Array, Image, Key, PyTree

BALLS = ("linf", "l2")  # steps along one pixel, the steepest under L1, get stuck
TRADES_START = 0.001  # standard deviation of its start; at the clean image itself KL has no slope


@dataclasses.dataclass(frozen=True)
class AdversarialOptions:
    """How training images are attacked, and what is learnt from them.

    method: a name of METHODS, or '' to learn from clean images.
    norm, eps: the ball, one of BALLS, and its radius in pixel units of [0, 1].
    step_size, num_steps: of the attack, whose last iterate counts.
    beta: of TRADES, the weight of its second term; the larger, the more robust and the less
        accurate.
    """

    method: str
    norm: str
    eps: float
    step_size: float
    num_steps: int
    beta: float

    def __post_init__(self):
        for field, known in (("method", ("", *METHODS)), ("norm", BALLS)):
            value = getattr(self, field)
            if value not in known:
                names = ", ".join(name or "''" for name in known)
                raise ValueError(f"{field}={value!r} is unknown; known: {names}")
        for field in ("eps", "step_size"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)} must be positive and finite")
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta={self.beta} must be at least 0 and finite")

    def ascend(self, objective: Callable[[Image], Array], start: Image, image: Image) -> Image:
        """The last of num_steps steps from `start` along the steepest ascent of the objective, each
        brought back into the ball around `image` and into [0, 1]."""
        norm = NORMS[self.norm]

        def step(x, _):
            ahead = x + self.step_size * norm.steepest(jax.grad(objective)(x))
            return norm.project(ahead, image, self.eps), None

        return jax.lax.scan(step, start, length=self.num_steps)[0]


def pgd_at(
    classifier: Classifier,
    key: Key,
    image: Image,
    label: Array,
    options: AdversarialOptions,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Array, Metrics, PyTree]:
    """Cross-entropy of the image that PGD made of it, from a random start in the ball (Madry et al.
    2018, eq. 2.1)."""
    frozen = jax.lax.stop_gradient(classifier)
    start = NORMS[options.norm].random(key, image, options.eps)

    def attack_loss(x):
        return optax.softmax_cross_entropy_with_integer_labels(frozen(x), label)

    attacked = options.ascend(attack_loss, start, image)
    loss, metrics, stats = cross_entropy(
        classifier, attacked, label, label_smoothing=label_smoothing
    )
    clean = hit(frozen(image), label)
    return loss, {"accuracy": clean, "robust_accuracy": metrics["accuracy"]}, stats


def trades(
    classifier: Classifier,
    key: Key,
    image: Image,
    label: Array,
    options: AdversarialOptions,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Array, Metrics, PyTree]:
    """Cross-entropy of the clean image plus beta KL(p(clean) || p(attacked)), where the attack
    maximises that divergence (Zhang et al. 2019, with the start of their code)."""
    frozen = jax.lax.stop_gradient(classifier)
    clean_logits = frozen(image)
    start = image + TRADES_START * jax.random.normal(key, image.shape, image.dtype)
    attacked = options.ascend(lambda x: divergence(clean_logits, frozen(x)), start, image)
    # In turn, as two batches: each is normalised by itself, and both move the running statistics.
    logits, stats = classifier.train(image)
    moved = dataclasses.replace(classifier, variables=classifier.variables | stats)
    attacked_logits, stats = moved.train(attacked)
    loss = smoothed_cross_entropy(logits, label, label_smoothing)
    loss += options.beta * divergence(logits, attacked_logits)
    metrics = {"accuracy": hit(logits, label), "robust_accuracy": hit(attacked_logits, label)}
    return loss, metrics, stats


def divergence(logits: Array, other: Array) -> Array:
    """KL(softmax(logits) || softmax(other)), a scalar."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


METHODS = {"pgd_at": pgd_at, "trades": trades}
