"""Projected gradient descent (Madry et al. 2018), with momentum if wanted (Dong et al. 2018)."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from attacks.ascent import Ascent, Best, View
from attacks.norms import NORMS
from attacks.types import Array


@dataclasses.dataclass(frozen=True)
class PGD(Ascent):
    """Steps of one length along the steepest direction; see Ascent for the rest.

    With a direction_fn half of each step is steepest along what that says: under Linf
    (sign(gradient) + sign(direction)) / 2, the joint attacks of Yoon, Hwang and Lee (2021).

    step_size: the length of each, in the norm.
    momentum: decay of the sum of the gradients, each scaled to L1 norm 1, that steps go along:
        1 is MIM, 0 (the gradient alone) plain PGD.
    """

    step_size: float = 2 / 255
    momentum: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.norm == "l1":
            raise ValueError("norm='l1': steps along one pixel get stuck there; use apgd")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size} must be positive and finite")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must be from 0 to 1")

    @property
    def direction_queries(self) -> int:
        """Calls of direction_fn, per image, where there is one."""
        return self._runs * self.num_steps

    def begin(self, start: Array) -> "_State":
        return _State(start, jnp.zeros_like(start))

    def step(self, state: "_State", view: View, best: Best, t: Array, image: Array) -> "_State":
        norm, along = NORMS[self.norm], view.gradient
        if self.momentum:
            size = jnp.maximum(jnp.sum(jnp.abs(along)), jnp.finfo(along.dtype).tiny)
            along = self.momentum * state.along + along / size
        ahead = norm.steepest(along)
        if view.direction is not None:
            ahead = 0.5 * (ahead + norm.steepest(view.direction))
        return _State(norm.project(state.x + self.step_size * ahead, image, self.eps), along)


class _State(NamedTuple):
    x: Array
    along: Array  # the sum of the gradients
