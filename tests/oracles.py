"""Small models with known answers, shared by the tests. All are pytrees, as the real ones are."""

import contextlib
from unittest import mock

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify.models.layers import Conv
from purify.models.networks import Score

# For jit: compiled fast, because it runs once.
QUICK = {"xla_backend_optimization_level": 0}
# XLA's defaults: for a program as users have it, where tests/conftest.py makes the others quick.
THOROUGH = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):  # later ones have nothing but these emitters
    QUICK["xla_cpu_use_fusion_emitters"], THOROUGH["xla_cpu_use_fusion_emitters"] = False, True


@contextlib.contextmanager
def few_optimisations():
    """For operations that are compiled one by one, or programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def double_precision():
    """For tests of formulas. Their programs are compiled half as long, with few optimisations; the
    programs that users run are what the tests in single precision are about."""
    with few_optimisations(), jax.enable_x64(True):
        yield


class UnitScore:
    """What every oracle of a score model shares with Score of head 'score'."""

    nfe = 1
    head = "score"

    def predict_noise(self, image, sigma):
        return -self(image)


@flax.struct.dataclass
class LinearScore(UnitScore):
    """h(x) = -A (x - mean): its curvature along h is <h, A h> / ||h||^2 everywhere."""

    matrix: jax.Array  # [n, n], n the number of pixels
    mean: jax.Array  # [H, W, C]

    def __call__(self, image):
        return -(self.matrix @ (image - self.mean).ravel()).reshape(image.shape)


@flax.struct.dataclass
class ConstantScore(UnitScore):
    """h(x) = value: no curvature at all."""

    value: jax.Array

    def __call__(self, image):
        return jnp.broadcast_to(self.value, image.shape) + 0.0 * image


@flax.struct.dataclass
class GaussianScore(UnitScore):
    """The noise-blind optimum for data N(mean, std^2 I) and the noise levels `sigmas` [L]:
    h(x) = -sum_j w_j sigma_j (x - mean) / v_j, v_j = std^2 + sigma_j^2, w_j ~ N(x; mean, v_j I)."""

    mean: jax.Array
    std: float
    sigmas: jax.Array

    def __call__(self, image):
        d = image - self.mean
        variances = self.std**2 + self.sigmas**2
        log_densities = -0.5 * (jnp.sum(d**2) / variances + d.size * jnp.log(variances))
        return -jnp.sum(jax.nn.softmax(log_densities) * self.sigmas / variances) * d


class Denoiser(nn.Module):
    """h(x) = -(x - D(x)) / sqrt(mean (x - D(x))^2 + floor^2), D a small convolutional network.

    Behaves as a trained noise-blind score model does: its rms is near 1 in noise and its curvature
    near 0, so steps are at their upper bound; nearer to D(x) than `floor` h falls, its curvature
    tends to 1 / floor, and the image stops. D reaches a little out of [0, 1], so pixels clip.
    """

    features: int = 6
    floor: float = 0.01

    @nn.compact
    def __call__(self, x):
        y = Conv(x.shape[-1])(nn.silu(Conv(self.features)(2.0 * x - 1.0)))
        pattern = self.param("pattern", nn.initializers.normal(2.0), (1, *x.shape[1:]))
        difference = x - (0.5 + 0.502 * jnp.tanh(y + pattern))
        mean_square = (difference**2).mean((1, 2, 3), keepdims=True)
        return -difference / jnp.sqrt(mean_square + self.floor**2)


class OneConvolution(nn.Module):
    """A linear network of exactly one convolution, so that evaluations can be counted."""

    @nn.compact
    def __call__(self, x):
        return Conv(x.shape[-1])(x)


def make_score(shape, network=None, *, head="score", seed=0) -> Score:
    """A Score with random parameters (of double precision where that is on), nothing compiled."""
    network = network or Denoiser()
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        # Kernels keep the variance of their input; the pattern is most of what Denoiser aims at.
        scale = 2.0 if path[-1].key == "pattern" else np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape))

    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return Score(jax.tree_util.tree_map_with_path(draw, shapes), network, head)


@flax.struct.dataclass
class LinearClassifier:
    """logits = W x."""

    weights: jax.Array  # [K, n]

    def __call__(self, image):
        return self.weights @ image.ravel()


@flax.struct.dataclass
class QuadraticClassifier:
    """logits = (W x)^2, whose gradient depends on the point: 2 (W x)_k W_k."""

    weights: jax.Array  # [K, n]

    def __call__(self, image):
        return (self.weights @ image.ravel()) ** 2


def count_convolutions(fn, *args) -> int:
    """Convolutions that one call of fn executes, by its jaxpr (a scan's body counts every time)."""

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "while":
                raise ValueError("a while loop has no fixed count")
            inner = sum(
                count(getattr(item, "jaxpr", item))
                for value in equation.params.values()
                for item in (value if isinstance(value, tuple | list) else (value,))
                if hasattr(item, "jaxpr") or hasattr(item, "eqns")
            )
            total += inner * equation.params["length"] if name == "scan" else inner
            total += name in ("conv2d", "conv_general_dilated")
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


def relative_error(actual, expected) -> float:
    """||actual - expected|| / ||expected||, over all entries."""
    actual, expected = (np.asarray(a, np.float64).ravel() for a in (actual, expected))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def near(value, rel: float = 1e-5):
    """What equals a structure of dicts, lists and numbers up to rounding: another place in a batch,
    as after an interruption, rounds differently on some processors. Seals of arrays are of their
    bits."""
    if isinstance(value, dict):
        return {key: mock.ANY if key == "arrays" else near(of, rel) for key, of in value.items()}
    if isinstance(value, list):
        return [near(of, rel) for of in value]
    return pytest.approx(value, rel=rel, abs=1e-6) if isinstance(value, float) else value
