"""Training losses of one image: (loss, metrics), metrics being (sum, count) pairs."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from purify.models.networks import Classifier, Score
from purify.training.perturbations import GAUSSIAN
from purify.types import Array, Image, Key, PyTree

Metrics = dict[str, tuple[Array, Array]]


def noise_levels(sigma_max: float, sigma_min: float, num_levels: int) -> np.ndarray:
    """Geometric noise levels, largest first: float32 [num_levels], in pixel units of [0, 1].

    Raises ValueError unless 0 < sigma_min <= sigma_max, both finite, and num_levels >= 1.
    """
    if not (0 < sigma_min <= sigma_max < math.inf and num_levels >= 1):
        raise ValueError(
            f"noise levels need 0 < sigma_min <= sigma_max < inf and num_levels >= 1, got "
            f"sigma_max={sigma_max}, sigma_min={sigma_min}, num_levels={num_levels}"
        )
    return np.geomspace(sigma_max, sigma_min, num_levels).astype(np.float32)


def dsm(
    score: Score,
    key: Key,
    image: Image,
    *,
    sigmas: Array,
    noise: Callable[[Key, Image], Array] = GAUSSIAN,
) -> tuple[Array, Metrics]:
    """Denoising score matching: 1/2 sigma^2 ||s(x + sigma z, sigma) + z / sigma||^2; the predicted
    noise is -sigma s.

    One level is drawn uniformly from sigmas [L], largest first. Summed over pixels, so an untrained
    network scores about H W C / 2. Song and Ermon (2020), eq. 5, in the noise-unconditional NCSNv2
    form. The denoiser head's losses weigh (sigma / sigmas[0])^2 as much: its own squared error, in
    units of the largest level, whose minimum is the mean of the clean images that x may come from.

    noise: (key, image) -> z of rms 1. Any perturbation x -> x' is z = (x' - x) / sigma_eff at the
        level sigma_eff, the rms of x' - x: the loss is 1/2 ||h(x') - (x - x') / sigma_eff||^2, and
        of the denoiser head, whose h = D(x') - x' needs no such unit, 1 / sigma_eff^2 times its own
        squared error, as at a single level of Gaussian noise.
    """
    level_key, noise_key = jax.random.split(key)
    level = jax.random.randint(level_key, (), 0, sigmas.shape[0])
    z = noise(noise_key, image)
    sigma = sigmas[level]
    error = score.predict_noise(image + sigma * z, sigma) - z
    if score.head == "denoiser":
        error *= sigma / sigmas[0]
    loss = 0.5 * jnp.sum(error**2)
    drawn = jax.nn.one_hot(level, sigmas.shape[0])
    return loss, {"loss_by_level": (drawn * loss, drawn)}


def cross_entropy(
    classifier: Classifier, image: Image, label: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, Metrics, PyTree]:
    """Cross-entropy of one image with an optionally smoothed label, its accuracy, and the running
    statistics of `Classifier.train`."""
    logits, stats = classifier.train(image)
    loss = smoothed_cross_entropy(logits, label, label_smoothing)
    return loss, {"accuracy": hit(logits, label)}, stats


def smoothed_cross_entropy(logits: Array, label: Array, label_smoothing: float) -> Array:
    """Cross-entropy of logits [K] with a label of which that share is spread over all classes."""
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, target)


def hit(logits: Array, label: Array) -> tuple[Array, Array]:
    """The metric of one answer: (1 where it is right, else 0; 1)."""
    return (jnp.argmax(logits) == label).astype(jnp.float32), jnp.ones(())
