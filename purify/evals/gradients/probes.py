"""What an attacker's gradient says, and what the defence then does: at single points, for keys that
both know."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from attacks.gradients import average_logits
from attacks.losses import LOSSES
from attacks.norms import NORMS
from purify.defense import Defense
from purify.random import root_key
from purify.runtime.compilation import jit
from purify.types import Array, Image, Key, PyTree, static

NUM_DIRECTIONS = 100
STEP = 0.1  # in units of eps
NUM_KEYS = 4  # whose gradients are compared with each other
# Of the largest logit: what float32 can tell of a margin, behind a chain of adaptive steps.
RESOLUTION = 1e-5
# Of the small copy: its images, how many, and the reach of a central difference.
SMALL_SHAPE, NUM_SMALL, DIFFERENCE = (4, 4, 1), 16, 1e-6


class Local(NamedTuple):
    """Of one image, at the clean point and for the keys of one draw (S runs).

    gain: of the defence's margin (wrong minus right), by a step of length STEP eps that is steepest
        along the attacker's gradient of its loss.
    predicted: the same, by the attacker's gradient of the margin.
    random_gain: the largest gain of as long a step in any of NUM_DIRECTIONS random directions.
    resolution: of the margin; a smaller difference is rounding.
    gap: the largest between the logits of the defence's runs and the attacked function's, over the
        largest logit.
    cosine: between the gradients of the loss of single runs with NUM_KEYS keys, mean over pairs.
    """

    gain: Array
    predicted: Array
    random_gain: Array
    resolution: Array
    gap: Array
    cosine: Array


@flax.struct.dataclass
class Probe:
    """`probe(defense_key, attack_key, image, label) -> Local`.

    Gains are of the margin, whatever the loss: it cannot saturate, and is nearly linear where
    cross-entropy grows by powers of e.

    defense, attacked: what is defended, and that as the attacker differentiates it. norm, eps,
    loss: the attack's.
    """

    defense: Defense
    attacked: Defense
    norm: str = static("linf")
    eps: float = static(8 / 255)
    loss: str = static("cross_entropy")

    def __call__(self, defense_key: Key, attack_key: Key, image: Image, label: Array) -> Local:
        key = jax.random.fold_in(defense_key, 0)  # of the first draw that is scored
        steepest, average = NORMS[self.norm].steepest, self.defense.average
        average = "logits" if average == "vote" else average  # a vote has no gradient

        def drawn(defense, loss, x):
            return LOSSES[loss](average_logits(defense.runs(key, x), average), label)

        def gradient(loss):
            return jax.grad(lambda x: drawn(self.attacked, loss, x))(image)

        def towards(direction):
            return jnp.clip(image + STEP * self.eps * steepest(direction), 0.0, 1.0)

        def gain(x):
            return drawn(self.defense, "margin", x) - before

        before = drawn(self.defense, "margin", image)
        ahead = towards(gradient(self.loss))
        random = jax.random.normal(attack_key, (NUM_DIRECTIONS, *image.shape), image.dtype)
        ours, theirs = (defense.runs(key, image) for defense in (self.defense, self.attacked))
        largest = jnp.maximum(jnp.max(jnp.abs(ours)), 1e-30)
        return Local(
            gain=gain(ahead),
            predicted=jnp.sum(gradient("margin") * (ahead - image)),
            random_gain=jnp.max(jax.lax.map(lambda direction: gain(towards(direction)), random)),
            resolution=RESOLUTION * largest,
            gap=jnp.max(jnp.abs(ours - theirs)) / largest,
            cosine=self._cosine(key, image, label),
        )

    def _cosine(self, key: Key, image: Image, label: Array) -> Array:
        def direction(index):
            def loss(x):
                logits = self.attacked.run(jax.random.fold_in(key, index), x)
                return LOSSES[self.loss](logits, label)

            return NORMS["l2"].steepest(jax.grad(loss)(image))

        units = jax.lax.map(direction, jnp.arange(NUM_KEYS)).reshape(NUM_KEYS, -1)
        return (jnp.sum(units.sum(0) ** 2) - jnp.sum(units**2)) / (NUM_KEYS * (NUM_KEYS - 1))


@jit
def probe_batch(
    probe: Probe, defense_keys: Key, attack_keys: Key, images: Array, labels: Array
) -> Local:
    """The probe of a batch: keys [B] twice, images [B, H, W, C], labels [B] -> Local of [B]."""
    return jax.vmap(probe, axis_name="batch")(defense_keys, attack_keys, images, labels)


@flax.struct.dataclass
class SmallScore:
    """A score model small enough for double precision: h(x) = tanh(W x) / 2 - 2 (x - 1/2).

    Its curvature along itself is near 2, where adaptive steps are between their bounds and have a
    derivative: a trained network's, or a random one's, may keep them at a bound all the time.
    """

    weights: Array  # [n, n], n the number of pixels
    nfe = 1

    @classmethod
    def random(cls, shape: tuple[int, ...]) -> "SmallScore":
        pixels = int(np.prod(shape))
        weights = np.random.default_rng(0).standard_normal((pixels, pixels)) / pixels**0.5
        return cls(jnp.asarray(weights))

    def __call__(self, image: Image) -> Array:
        x = image - 0.5
        return jnp.tanh(self.weights @ x.ravel()).reshape(x.shape) / 2 - 2 * x

    def predict_noise(self, image: Image, sigma: Array | float) -> Array:
        return -self(image)


def derivative_errors(
    defense: Defense, attacked_fn: Callable[[Defense], Defense], *, seed: int
) -> np.ndarray:
    """[NUM_SMALL], of random images: how far the attacker's derivative of a purification is from
    the purifier's central difference, relative to the larger of the two.

    In double precision, along a random direction and a random cotangent, for a copy of the defence
    with the purifier's own options and SmallScore for its score model, wherever that is.
    attacked_fn: see gradients.check; applied to the copy.
    """
    with jax.enable_x64(True):
        small = SmallScore.random(SMALL_SHAPE)

        def shrink(node: Any) -> PyTree:
            return small if _is_score(node) else node

        purifier = jax.tree.map(shrink, defense.purifier, is_leaf=_is_score)
        copy = dataclasses.replace(defense, purifier=purifier)
        keys = jax.random.split(root_key(seed), NUM_SMALL)
        return np.asarray(_errors(purifier, attacked_fn(copy).purifier, keys))


def _is_score(node: Any) -> bool:
    return hasattr(node, "predict_noise")


@jit
def _errors(purifier: PyTree, attacked: PyTree, keys: Key) -> Array:
    def error(key):
        purify_key, *rest = jax.random.split(key, 4)
        image = jax.random.uniform(rest[0], SMALL_SHAPE)
        direction, cotangent = (jax.random.normal(k, SMALL_SHAPE) for k in rest[1:])

        def value(purifier, x):
            return jnp.sum(cotangent * purifier(purify_key, x))

        by_gradient = jnp.sum(direction * jax.grad(lambda x: value(attacked, x))(image))
        up, down = (value(purifier, image + d * direction) for d in (DIFFERENCE, -DIFFERENCE))
        by_difference = (up - down) / (2 * DIFFERENCE)
        larger = jnp.maximum(jnp.abs(by_gradient), jnp.abs(by_difference))
        return jnp.abs(by_gradient - by_difference) / jnp.maximum(larger, 1e-12)

    return jax.vmap(error, axis_name="batch")(keys)
