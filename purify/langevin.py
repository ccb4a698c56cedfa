"""Annealed Langevin dynamics: images from the distribution that a score model has learnt.

    x  = centre + sigma_1 n
    x <- x + alpha_i s(x, sigma_i) + sqrt(2 alpha_i) n,  alpha_i = eps sigma_i^2 / sigma_L^2,
         steps_per_level times at each of the levels sigma_1 > ... > sigma_L
    x <- x + sigma_L^2 s(x, sigma_L)

with fresh n ~ N(0, I) (Song and Ermon, NeurIPS 2019; algorithm 1 of their NCSNv2, NeurIPS 2020,
whose last step takes the last noise away). The score model is blind to the noise level: s(x, sigma)
= -z(x) / sigma, z being the unit noise that it sees in x; that is h / sigma, or h / sigma^2 of the
denoiser head. Written in z and in the step size a = eps / sigma_L^2, a step at any level is

    x <- x + sigma_i (sqrt(2 a) n - a z(x))
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purify.models.networks import Score
from purify.training.losses import noise_levels
from purify.types import Image, Key, static


@flax.struct.dataclass
class AnnealedLangevin:
    """`sampler(key, centre) -> image`, float [H, W, C]: pixels are of [0, 1] but not clipped to it.

    The centre is any image, such as mid-grey where sigma_max hides every image, or one whose
    neighbourhood is to be sampled. What the model has learnt holds only at the noise levels that it
    was trained on.

    sigma_max, sigma_min, num_levels: sigma_1, sigma_L, L of the geometric levels, in pixel units.
    step_size: a; see balanced_step_size.
    """

    score: Score
    sigma_max: float = static(5.0)
    sigma_min: float = static(0.01)
    num_levels: int = static(40)
    steps_per_level: int = static(5)
    step_size: float = static(0.1)

    def __post_init__(self):
        noise_levels(self.sigma_max, self.sigma_min, self.num_levels)  # says what is wrong
        if self.steps_per_level < 1 or not 0 < self.step_size <= 1:
            raise ValueError(
                f"Langevin dynamics need steps_per_level >= 1 and 0 < step_size <= 1, got "
                f"steps_per_level={self.steps_per_level}, step_size={self.step_size}"
            )

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return (self.num_levels * self.steps_per_level + 1) * self.score.nfe

    def start(self, key: Key, centre: Image) -> Image:
        """The first x of the sample with that key."""
        n = jax.random.normal(jax.random.fold_in(key, 0), centre.shape, centre.dtype)
        return centre + self.sigma_max * n

    def __call__(self, key: Key, centre: Image) -> Image:
        levels = noise_levels(self.sigma_max, self.sigma_min, self.num_levels)
        sigmas = jnp.asarray(np.repeat(levels, self.steps_per_level), centre.dtype)

        def step(x, at):
            number, sigma = at
            n = jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype)
            z = self.score.predict_noise(x, sigma)
            return x + sigma * (jnp.sqrt(2.0 * self.step_size) * n - self.step_size * z), None

        steps = (1 + jnp.arange(sigmas.size), sigmas)
        x, _ = jax.lax.scan(step, self.start(key, centre), steps)
        return x - sigmas[-1] * self.score.predict_noise(x, sigmas[-1])


def balanced_step_size(
    sigma_max: float, sigma_min: float, num_levels: int, steps_per_level: int
) -> float:
    """The step size a after which samples of a level have most nearly that level's variance: Song
    and Ermon (2020), technique 4.

    Around a fixed image, T steps at level i take the variance (gamma sigma_i)^2 that the level
    before it left, gamma = sigma_{i-1} / sigma_i, to sigma_i^2 times

        (1 - a)^{2T} (gamma^2 - v) + v,  v = 2 a / (1 - (1 - a)^2),

    which is more than 1 for every a in (0, 1]: the smallest is the nearest. ValueError for a single
    level, which no other one goes before.
    """
    if num_levels < 2 or not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            "without two noise levels no step size follows from them: got "
            f"sigma_max={sigma_max}, sigma_min={sigma_min}, num_levels={num_levels}"
        )
    gamma = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
    a = np.geomspace(1e-6, 1.0, 100_000)
    v = 2 / (2 - a)
    variance = (1 - a) ** (2 * steps_per_level) * (gamma**2 - v) + v
    return float(a[np.argmin(variance)])
