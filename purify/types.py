"""Types shared by every module: images are float [H, W, C] in [0, 1], keys are typed JAX keys."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax

Array = jax.Array
Key = jax.Array
Image = jax.Array
PyTree = Any


def static(default):
    """A field of a frozen pytree that is part of its structure: a hyper-parameter, not an array."""
    return flax.struct.field(pytree_node=False, default=default)


class Trace(NamedTuple):
    """What a purifier did to one image.

    steps: int32 scalar, steps taken (moves; the step that decides to stop is not one).
    step_sizes: float [T], alpha of every step evaluated, 0 after the stop.
    score_norms: float [T], root-mean-square of h (of the predicted unit noise where the purifier
        knows sigma) at every step evaluated, 0 after the stop.
    nfe: int32 scalar, network evaluations spent (a tangent or a backward pass counts as one).
    """

    steps: Array
    step_sizes: Array
    score_norms: Array
    nfe: Array


class Purifier(Protocol):
    """A frozen pytree: `purifier(key, image) -> image`, for one image."""

    nfe: int  # network evaluations of one call when no image stops early
    nge: int  # network gradients needed to differentiate one call
    stochastic: bool  # whether two keys can give two images

    def __call__(self, key: Key, image: Image) -> Image: ...

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]: ...


@runtime_checkable
class Stepwise(Protocol):
    """A purifier that can also show the images on its way: x_0, which is the noised one, ..., x_T,
    the result, as [T + 1, H, W, C], and the trace."""

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]: ...
