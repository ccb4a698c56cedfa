"""Projected gradient descent (Madry et al. 2018), with momentum if wanted (Dong et al. 2018)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from attacks.ascent import Ascent
from attacks.norms import NORMS
from attacks.types import Array


@dataclasses.dataclass(frozen=True)
class PGD(Ascent):
    """Steps of one length along the steepest direction; see Ascent for the rest.

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
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum} must be from 0 to 1")

    def ascend(self, evaluate: Callable, start: Array, image: Array) -> tuple[Array, Array]:
        norm = NORMS[self.norm]

        def step(carry, t):
            x, along, best, best_loss = carry
            loss, gradient = evaluate(t, x)
            best = jnp.where(loss > best_loss, x, best)
            if self.momentum:
                size = jnp.maximum(jnp.sum(jnp.abs(gradient)), jnp.finfo(x.dtype).tiny)
                along = self.momentum * along + gradient / size
            else:
                along = gradient
            ahead = norm.project(x + self.step_size * norm.steepest(along), image, self.eps)
            return (ahead, along, best, jnp.maximum(loss, best_loss)), None

        nothing = jnp.full((), -jnp.inf, image.dtype)
        carry = (start, jnp.zeros_like(start), start, nothing)
        (last, _, best, _), _ = jax.lax.scan(step, carry, jnp.arange(self.num_steps))
        return best, last
