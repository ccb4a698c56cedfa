"""The table of purifiers. A purifier is a frozen pytree, `purifier(key, image) -> image`."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purify.models.networks import Score
from purify.options import check_options, choose
from purify.purifiers.adp import ADP
from purify.purifiers.detect_then_purify import DetectThenPurify
from purify.purifiers.noise import add_noise
from purify.purifiers.reference import ReferenceADP
from purify.types import Array, Image, Key, Purifier, Trace, static


def _trace(step_sizes, score_norms, nfe: int) -> Trace:
    """A trace in which every step was taken."""
    sizes = jnp.asarray(step_sizes)
    return Trace(jnp.array(sizes.size), sizes, jnp.asarray(score_norms), jnp.array(nfe))


def _rms(values: Array) -> Array:
    return jax.lax.stop_gradient(jnp.sqrt(jnp.mean(values**2)))


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma} must be at least 0 and finite")


@flax.struct.dataclass
class Identity:
    """No purification: with it the defence is the undefended classifier."""

    stochastic = False
    nfe = 0
    nge = 0

    def __call__(self, key: Key, image: Image) -> Image:
        return image

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        return image, _trace(jnp.zeros(0), jnp.zeros(0), 0)


@flax.struct.dataclass
class NoiseOnly:
    """Noise without purification: clip(x + sigma n, 0, 1)."""

    sigma: float = static(0.25)
    straight_through_noise: bool = static(False)
    nfe = 0
    nge = 0

    def __post_init__(self):
        _check_sigma(self.sigma)

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    def __call__(self, key: Key, image: Image) -> Image:
        return add_noise(key, image, self.sigma, straight_through=self.straight_through_noise)

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        return self(key, image), _trace(jnp.zeros(0), jnp.zeros(0), 0)


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
            return x, (x if keep else None, _rms(z))

        steps = (jnp.asarray(levels[:-1], x.dtype), step_sizes)
        x, (after, norms) = jax.lax.scan(step, x, steps)
        return x, after, _trace(step_sizes, norms, self.nfe)


@flax.struct.dataclass
class OneStep:
    """The one-step denoiser clip(x_0 - sigma z(x_0), 0, 1), z being the predicted noise."""

    score: Score
    sigma: float = static(0.25)
    straight_through_noise: bool = static(False)

    def __post_init__(self):
        _check_sigma(self.sigma)

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
        return jnp.clip(x - self.sigma * z, 0.0, 1.0), _trace(step_sizes, _rms(z)[None], self.nfe)

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """As purify.types.Stepwise says."""
        purified, trace = self.trace(key, image)
        return jnp.stack([add_noise(key, image, self.sigma), purified]), trace


PURIFIERS = {
    "identity": Identity,
    "noise_only": NoiseOnly,
    "one_step": OneStep,
    "schedule": Schedule,
    "adp": ADP,
    "adp_reference": ReferenceADP,
    "detect_then_purify": DetectThenPurify,
}


def parts_of(name: str) -> tuple[str, ...]:
    """The options of the purifier of that name that are purifiers themselves."""
    return getattr(choose("purifier", PURIFIERS, name), "parts", ())


def needs_score(name: str) -> bool:
    """Whether the purifier of that name has a score model."""
    return "score" in choose("purifier", PURIFIERS, name).__dataclass_fields__


def build(name: str, score: Score | None, **options) -> Purifier:
    """The purifier `name`; `score` may be None where none is needed. Options that are purifiers
    (parts_of) are given as {"purifier": its name, and its options}.

    Raises ValueError for an unknown name or option, listing what exists.
    """
    make = choose("purifier", PURIFIERS, name)
    check_options(name, make, options, reserved=frozenset({"score"}))
    for part in parts_of(name):
        if part not in options:
            raise ValueError(f"{name} needs {part}=dict(purifier=..., its options)")
        own = dict(options[part])
        options[part] = build(own.pop("purifier"), score, **own)
    if not needs_score(name):
        return make(**options)
    if score is None:
        raise ValueError(f"purifier {name!r} needs a score model")
    return make(score, **options)
