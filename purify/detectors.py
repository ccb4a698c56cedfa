"""Statistics that tell attacked images from natural ones, and what an attacker does against them.

A statistic is a frozen pytree, `statistic(key, image) -> scalar`, of one image in [0, 1]; the
higher, the less natural. A detector rejects what lies above a threshold; see DetectThenPurify for
one that decides how to purify.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from attacks.gradients import draws
from purify.defense import Defense
from purify.models.networks import Score
from purify.options import choose
from purify.purifiers.detect_then_purify import DetectThenPurify, rms, score_norm
from purify.types import Array, Image, Key, Purifier, static


class Statistic:
    """nfe: score-network evaluations of one call. stochastic: whether two keys can differ."""

    nfe: Any
    stochastic: Any

    @classmethod
    def of(cls, defense: Defense, score: Score) -> "Statistic":
        """That of the defence's purifier and classifier, or of the score model."""
        raise NotImplementedError

    def __call__(self, key: Key, image: Image) -> Array:
        raise NotImplementedError

    def descent(self, key: Key, image: Image) -> Array:
        """What an attacker makes small in its place: at least as much, and with a slope wherever it
        is large."""
        return self(key, image)

    def joint(self) -> Defense | None:
        """What an attacker fools in the place of the classifier, for the statistic not to rise with
        it; None where lowering the statistic is all that there is to do."""
        return None


@flax.struct.dataclass
class ScoreNorm(Statistic):
    """The root-mean-square of h(x), as of Yoon, Hwang and Lee (ICML 2021)."""

    score: Score
    stochastic = False

    @classmethod
    def of(cls, defense: Defense, score: Score) -> "ScoreNorm":
        return cls(score)

    @property
    def nfe(self) -> int:
        return self.score.nfe

    def __call__(self, key: Key, image: Image) -> Array:
        return score_norm(self.score, image)


@flax.struct.dataclass
class Energy(Statistic):
    """E(x) of an energy head, per pixel and channel; minus the log-density up to a constant."""

    score: Score
    stochastic = False
    nfe = 1

    def __post_init__(self):
        if self.score.head != "energy":
            raise ValueError(
                f"the statistic 'energy' needs a score model with head='energy', not "
                f"{self.score.head!r}; train one in another --workdir"
            )

    @classmethod
    def of(cls, defense: Defense, score: Score) -> "Energy":
        return cls(score)

    def __call__(self, key: Key, image: Image) -> Array:
        return self.score.energy(image) / image.size


@flax.struct.dataclass
class ReconstructionError(Statistic):
    """How far purification, noise and all, takes the image: the root-mean-square of
    purifier(x) - x, mean over num_runs."""

    purifier: Purifier
    num_runs: int = static(1)

    @classmethod
    def of(cls, defense: Defense, score: Score) -> "ReconstructionError":
        return cls(defense.purifier, defense.num_runs)

    @property
    def nfe(self) -> int:
        return self.num_runs * self.purifier.nfe

    @property
    def stochastic(self) -> bool:
        return self.purifier.stochastic

    def __call__(self, key: Key, image: Image) -> Array:
        def error(key: Key, image: Image) -> Array:
            return rms(self.purifier(key, image) - image)

        return draws(error, self.num_runs)(key, image).mean()


@flax.struct.dataclass
class OftenPurified(Defense):
    """A run purifies with the probability `share`, and else classifies the image as it is: what
    fools it fools both. More often purified, since that is the harder to fool."""

    share: float = static(0.8)

    def run(self, key: Key, image: Image) -> Array:
        coin, own = jax.random.split(key)
        purified = jax.random.bernoulli(coin, self.share)
        return self.classifier(jnp.where(purified, self.purifier(own, image), image))


@flax.struct.dataclass
class PredictionChange(Statistic):
    """How far purification takes the prediction: the total variation, in [0, 1], between the
    classifier's probabilities of the image and their mean over the defence's runs.

    Xu, Evans and Qi (NDSS 2018) compare predictions like this, with squeezed images in the place of
    purified ones.
    """

    defense: Defense

    @classmethod
    def of(cls, defense: Defense, score: Score) -> "PredictionChange":
        return cls(defense)

    @property
    def nfe(self) -> int:
        return self.defense.num_runs * self.defense.purifier.nfe

    @property
    def stochastic(self) -> bool:
        return self.defense.purifier.stochastic

    def __call__(self, key: Key, image: Image) -> Array:
        before, after = map(jnp.exp, self._log_probabilities(key, image))
        return 0.5 * jnp.sum(jnp.abs(after - before))

    def descent(self, key: Key, image: Image) -> Array:
        """sqrt(KL / 2) of the two, at least the total variation (Pinsker). Of two answers that are
        sure, but differ, that one has no slope."""
        before, after = self._log_probabilities(key, image)
        divergence = jnp.sum(jnp.exp(before) * (before - after))
        return jnp.sqrt(jnp.maximum(0.5 * divergence, jnp.finfo(image.dtype).tiny))

    def joint(self) -> Defense:
        """The prediction does not change where both are fooled alike."""
        defense = self.defense
        return OftenPurified(defense.purifier, defense.classifier, defense.num_runs)

    def _log_probabilities(self, key: Key, image: Image) -> tuple[Array, Array]:
        runs = jax.nn.log_softmax(self.defense.runs(key, image))
        after = jax.nn.logsumexp(runs, axis=0) - jnp.log(len(runs))
        return jax.nn.log_softmax(self.defense.classifier(image)), after


STATISTICS = {
    "score_norm": ScoreNorm,
    "reconstruction_error": ReconstructionError,
    "energy": Energy,
    "prediction_change": PredictionChange,
}


def build_statistic(name: str, defense: Defense, score: Score) -> Statistic:
    """The statistic of that name, of the defence's purifier and classifier where it needs them.

    ValueError for an unknown name, and for one that the score model has not.
    """
    return choose("statistic", STATISTICS, name).of(defense, score)


@flax.struct.dataclass
class Penalty:
    """weight * max(0, statistic - threshold), of its `descent`: what an attack subtracts from its
    loss in order to look natural, a penalty_fn of attacks.ascent."""

    statistic: Statistic
    threshold: Array | float = 0.0
    weight: Array | float = 1.0

    @classmethod
    def of(cls, purifier: Purifier, weight: float) -> "Penalty":
        """Of that purifier's detector; ValueError where it has none."""
        if not isinstance(purifier, DetectThenPurify):
            raise ValueError(
                f"penalty={weight} does not apply to {type(purifier).__name__}: it has no detector"
            )
        return cls(ScoreNorm(purifier.score), purifier.threshold, weight)

    @property
    def nfe(self) -> int:
        return self.statistic.nfe

    def __call__(self, key: Key, image: Image) -> Array:
        return self.weight * jnp.maximum(self.statistic.descent(key, image) - self.threshold, 0.0)


@flax.struct.dataclass
class Passes:
    """Whether a detector lets an image pass, a passes_fn of attacks.ascent."""

    statistic: Statistic
    threshold: Array | float

    @property
    def nfe(self) -> int:
        return self.statistic.nfe

    def __call__(self, key: Key, image: Image) -> Array:
        return self.statistic(key, image) <= self.threshold
