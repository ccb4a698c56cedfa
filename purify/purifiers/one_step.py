"""Purification in one step."""

import flax.struct
import jax.numpy as jnp

from purify.models.networks import Score
from purify.purifiers.noise import add_noise, check_sigma
from purify.purifiers.traces import full_trace, rms
from purify.types import Array, Image, Key, Trace, static


@flax.struct.dataclass
class OneStep:
    """The one-step denoiser clip(x_0 - sigma z(x_0), 0, 1), z being the predicted noise."""

    score: Score
    sigma: float = static(0.25)
    straight_through_noise: bool = static(False)

    def __post_init__(self):
        check_sigma(self.sigma)

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    @property
    def nfe(self) -> int:
        return self.score.nfe

    @property
    def nge(self) -> int:
        return self.nfe

    def __call__(self, key: Key, image: Image) -> Image:
        return self.trace(key, image)[0]

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        x = add_noise(key, image, self.sigma, straight_through=self.straight_through_noise)
        z = self.score.predict_noise(x, self.sigma)
        step_sizes = jnp.full(1, self.sigma, image.dtype)
        trace = full_trace(step_sizes, rms(z)[None], self.nfe)
        return jnp.clip(x - self.sigma * z, 0.0, 1.0), trace

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """As purify.types.Stepwise says."""
        purified, trace = self.trace(key, image)
        return jnp.stack([add_noise(key, image, self.sigma), purified]), trace
