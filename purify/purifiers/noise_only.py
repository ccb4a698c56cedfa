"""Noise alone: the baseline that shows what it costs, and what smoothing is made of."""

import flax.struct
import jax.numpy as jnp

from purify.purifiers.noise import add_noise, check_sigma
from purify.purifiers.traces import full_trace
from purify.types import Image, Key, Trace, static


@flax.struct.dataclass
class NoiseOnly:
    """Noise without purification: clip(x + sigma n, 0, 1)."""

    sigma: float = static(0.25)
    straight_through_noise: bool = static(False)
    nfe = 0
    nge = 0

    def __post_init__(self):
        check_sigma(self.sigma)

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    def __call__(self, key: Key, image: Image) -> Image:
        return add_noise(key, image, self.sigma, straight_through=self.straight_through_noise)

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        return self(key, image), full_trace(jnp.zeros(0), jnp.zeros(0), 0)
