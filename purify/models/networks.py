"""The two wrappers behind which networks live: frozen pytrees, called on ONE image.

variables: the network's in Flax's form, {'params': ...} and, with batch normalisation,
{'batch_stats': ...}.
precision: 'bfloat16' computes the network in it, from weights and to results that stay as they are;
normalisation and running statistics stay float32.
image_shape: (H, W, C) of the images that the network was trained on, None where that is not known;
ValueError for images of another shape, and for integers.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from purify.types import Array, Image, PyTree, static

HEADS = ("score", "energy", "denoiser")
PRECISIONS = ("float32", "bfloat16")


def _cast(precision: str, variables: PyTree, image: Image) -> tuple[PyTree, Image]:
    """The parameters and the image in bfloat16 if that is the precision, else as they are."""
    if precision == "float32":
        return variables, image
    params = jax.tree.map(lambda leaf: leaf.astype(precision), variables["params"])
    return variables | {"params": params}, image.astype(precision)


def _apply(wrapper: "Score | Classifier", image: Image) -> Array:
    if image.ndim != 3 or wrapper.image_shape not in (None, image.shape):
        raise ValueError(
            f"an image of shape {image.shape} does not fit {type(wrapper).__name__}: it takes one "
            f"of {wrapper.image_shape or '(height, width, channels)'}"
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"an image of {image.dtype} must be floats in [0, 1]")
    # What layers say of shapes, as of channels; TypeErrors have other reasons, too.
    told = ScopeParamShapeError if wrapper.image_shape else (ScopeParamShapeError, TypeError)
    try:
        return _network(wrapper, image)
    except told as error:
        raise ValueError(
            f"an image of shape {image.shape} does not fit the network: {error}"
        ) from error


@jax.jit  # traced once, however often a program calls it and transforms that
def _network(wrapper: "Score | Classifier", image: Image) -> Array:
    variables, x = _cast(wrapper.precision, wrapper.variables, image)
    return wrapper.network.apply(variables, x[None])[0].astype(image.dtype)


def _short(wrapper: "Score | Classifier") -> str:
    """For `repr`: class, network and options, and how many parameters; no arrays."""
    variables: PyTree = wrapper.variables
    params = variables.get("params") if isinstance(variables, Mapping) else variables
    count = sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(params))
    network = _options(wrapper.network, without=("parent", "name"))
    options = _options(wrapper, without=("variables", "network"))
    return (
        f"{type(wrapper).__name__}({type(wrapper.network).__name__}({network}), {options}, "
        f"{count:,} parameters)"
    )


def _options(of: PyTree, *, without: tuple[str, ...]) -> str:
    names = [field.name for field in dataclasses.fields(of) if field.name not in without]
    return ", ".join(f"{name}={getattr(of, name)!r}" for name in names)


@flax.struct.dataclass
class Score:
    """A noise-blind score model: `score(image) -> h`, float [H, W, C] -> [H, W, C], a field that
    points to the clean images.

    head: 'score': the network is h, the score undivided by sigma, s(x, sigma) = h(x) / sigma: minus
    the unit noise that it sees in x, of root-mean-square at most about 1.
    'energy': the same, but the network is f and h = -grad E of E(x) = 1/2 ||x - f(x)||^2 (Salimans
    and Ho 2021), a gradient field by construction.
    'denoiser': the network is h = D(x) - x of a denoiser D, minus the noise in pixel units, of
    root-mean-square at most about sigma: s = h / sigma^2, and the curvature along h is about 1, so
    that ADP's lam (alpha_max up to 1) becomes the share of the noise that a step takes away.
    """

    variables: PyTree
    network: nn.Module = flax.struct.field(pytree_node=False)
    head: str = static("score")
    precision: str = static("float32")
    image_shape: tuple[int, ...] | None = static(None)
    __repr__ = _short

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is unknown; known: {', '.join(HEADS)}")

    @property
    def nfe(self) -> int:
        """Network evaluations of one call: the energy head also runs a backward pass."""
        return 2 if self.head == "energy" else 1

    def __call__(self, image: Image) -> Array:
        if self.head == "energy":
            return -jax.grad(self.energy)(image)
        return _apply(self, image)

    def predict_noise(self, image: Image, sigma: Array | float) -> Array:
        """The z [H, W, C] that the network sees in image = clean + sigma z; only the denoiser head
        needs sigma for it, taken as 1e-6 where it is smaller."""
        h = self(image)
        return -h / jnp.maximum(sigma, 1e-6) if self.head == "denoiser" else -h

    def energy(self, image: Image) -> Array:
        """E(x), a scalar; ValueError for the score head, which has none."""
        if self.head != "energy":
            raise ValueError(f"head={self.head!r} has no energy; train with head='energy'")
        return 0.5 * jnp.sum((image - _apply(self, image)) ** 2)


@flax.struct.dataclass
class Classifier:
    """`classifier(image) -> logits`, float [H, W, C] in [0, 1] -> [num_classes]."""

    variables: PyTree
    network: nn.Module = flax.struct.field(pytree_node=False)
    precision: str = static("float32")
    image_shape: tuple[int, ...] | None = static(None)
    __repr__ = _short

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def __call__(self, image: Image) -> Array:
        return _apply(self, image)

    def train(self, image: Image) -> tuple[Array, PyTree]:
        """(logits, updated running statistics) of one image of a training batch, which is the axis
        named 'batch' of a vmap. Without batch normalisation the statistics are empty."""
        variables, x = _cast(self.precision, self.variables, image)
        logits, stats = self.network.apply(variables, x[None], train=True, mutable=["batch_stats"])
        return logits[0].astype(image.dtype), stats
