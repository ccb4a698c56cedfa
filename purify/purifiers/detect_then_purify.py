"""Detect, then purify: what looks natural is spared most of the noise, and of the purification.

By the score norm, which attacked images raise (Yoon, Hwang and Lee, ICML 2021): an attacker who
knows of the detector keeps it low, see purify.detectors.
"""

import math
from typing import ClassVar

import flax.struct
import jax.numpy as jnp
import numpy as np

from purify.models.networks import Score
from purify.types import Array, Image, Key, Purifier, Stepwise, Trace, static


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
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold} must be at least 0 and finite")
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
        return self._take(image, *(part.trace(key, image) for part in self._parts))

    def path(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """As purify.types.Stepwise says, of the part that is taken: where the other one takes more
        steps, the last image is repeated."""
        paths = [_path(part, key, image) for part in self._parts]
        length = 1 + max(len(trace.step_sizes) for _, trace in paths)
        steps = np.arange(length)
        return self._take(
            image, *((path[np.minimum(steps, len(path) - 1)], trace) for path, trace in paths)
        )

    @property
    def _parts(self) -> tuple[Purifier, Purifier]:
        return self.suspected, self.natural

    def _take(
        self, image: Image, ours: tuple[Array, Trace], theirs: tuple[Array, Trace]
    ) -> tuple[Array, Trace]:
        """Of what the two parts made, and of their traces, those of the part that is taken."""
        (purified, trace), (spared, other) = ours, theirs
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


def _path(part: Purifier, key: Key, image: Image) -> tuple[Array, Trace]:
    """The path of a part; of one without steps the result alone, which is the noised image."""
    if isinstance(part, Stepwise):
        return part.path(key, image)
    purified, trace = part.trace(key, image)
    return purified[None], trace
