"""Detect, then purify: what looks natural is spared most of the noise, and of the purification.

By the score norm, which attacked images raise (Yoon, Hwang and Lee, ICML 2021): an attacker who
knows of the detector keeps it low, see purify.detectors.
"""

from typing import ClassVar

import flax.struct
import jax.numpy as jnp

from purify.networks import Score
from purify.types import Array, Image, Key, Purifier, Trace, static


def rms(values: Array) -> Array:
    """The root-mean-square, a scalar, whose gradient is 0 where all values are."""
    squared = jnp.mean(values**2)
    return jnp.sqrt(jnp.maximum(squared, jnp.finfo(squared.dtype).tiny))


def score_norm(score: Score, image: Image) -> Array:
    """The root-mean-square of h(x)."""
    return rms(score(image))


@flax.struct.dataclass
class DetectThenPurify:
    """`suspected` where the score norm of the image exceeds the threshold, else `natural`.

    Both are computed, and counted, and one is taken: a gradient is that of the one that is taken.
    Threshold 0 suspects every image; for a false-positive rate of 5 %, say, it is the quantile 0.95
    of the score norms of natural images.
    """

    score: Score
    natural: Purifier
    suspected: Purifier
    threshold: float = static(0.0)
    parts: ClassVar[tuple[str, ...]] = ("natural", "suspected")

    def __post_init__(self):
        if self.threshold < 0:
            raise ValueError(f"threshold={self.threshold} must be at least 0")
        for part in (self.natural, self.suspected):
            if getattr(part, "axis_name", None) is not None:
                raise ValueError(f"{type(part).__name__} decides a batch together: no part of it")

    @property
    def stochastic(self) -> bool:
        return self.natural.stochastic or self.suspected.stochastic

    @property
    def nfe(self) -> int:
        return self.score.nfe + self.natural.nfe + self.suspected.nfe

    @property
    def nge(self) -> int:
        return self.natural.nge + self.suspected.nge

    def __call__(self, key: Key, image: Image) -> Image:
        return self.trace(key, image)[0]

    def is_suspected(self, image: Image) -> Array:
        return score_norm(self.score, image) > self.threshold

    def trace(self, key: Key, image: Image) -> tuple[Image, Trace]:
        (purified, trace), (spared, other) = (
            part.trace(key, image) for part in (self.suspected, self.natural)
        )
        length = max(len(trace.step_sizes), len(other.step_sizes))

        def choose(ours: Array, theirs: Array) -> Array:
            ours, theirs = (
                jnp.pad(a, (0, length - len(a))) if a.ndim else a for a in (ours, theirs)
            )
            return jnp.where(suspected, ours, theirs)

        suspected = self.is_suspected(image)
        taken = Trace(*map(choose, trace, other))._replace(
            nfe=self.score.nfe + trace.nfe + other.nfe
        )
        return jnp.where(suspected, purified, spared), taken
