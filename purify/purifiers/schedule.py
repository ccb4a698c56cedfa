"""Purification down a known noise schedule."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purify.models.networks import Score
from purify.purifiers.noise import add_noise
from purify.purifiers.traces import full_trace, rms
from purify.types import Array, Image, Key, Trace, static


@flax.struct.dataclass
class Schedule:
    """Down a known noise schedule: x_{t+1} = clip(x_t - (sigma_t - sigma_{t+1}) z(x_t), 0, 1), z
    being the noise that the network predicts.

    The levels are geometric from sigma to sigma_min, then 0: Euler steps of the probability-flow
    ODE of the variance-exploding SDE (Song et al., ICLR 2021), one evaluation a step.
    """

    score: Score
    sigma: float = static(0.25)
    sigma_min: float = static(0.01)
    num_steps: int = static(5)
    straight_through_noise: bool = static(False)
    stochastic = True

    def __post_init__(self):
        if self.num_steps < 1 or not 0 < self.sigma_min <= self.sigma < math.inf:
            raise ValueError(
                f"Schedule needs num_steps >= 1 and 0 < sigma_min <= sigma < inf, got num_steps="
                f"{self.num_steps}, sigma_min={self.sigma_min}, sigma={self.sigma}"
            )

    @property
    def nfe(self) -> int:
        return self.num_steps * self.score.nfe

    @property
    def nge(self) -> int:
        return self.nfe

    def __call__(self, key: Key, image: Image) -> Image:
        return self.trace(key, image)[0]

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        x, _, trace = self._descend(self._start(key, image), keep=False)
        return x, trace

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """As purify.types.Stepwise says."""
        x = self._start(key, image)
        _, after, trace = self._descend(x, keep=True)
        return jnp.concatenate([x[None], after]), trace

    def _start(self, key: Key, image: Image) -> Image:
        return add_noise(key, image, self.sigma, straight_through=self.straight_through_noise)

    def _descend(self, x: Image, *, keep: bool) -> tuple[Image, Array | None, Trace]:
        """(the last image, those after each step if they are to be kept, the trace)."""
        levels = np.append(np.geomspace(self.sigma, self.sigma_min, self.num_steps), 0.0)
        step_sizes = jnp.asarray(-np.diff(levels), x.dtype)

        @jax.checkpoint
        def step(x, at):
            sigma, step_size = at
            z = self.score.predict_noise(x, sigma)
            x = jnp.clip(x - step_size * z, 0.0, 1.0)
            return x, (x if keep else None, rms(z))

        steps = (jnp.asarray(levels[:-1], x.dtype), step_sizes)
        x, (after, norms) = jax.lax.scan(step, x, steps)
        return x, after, full_trace(step_sizes, norms, self.nfe)
