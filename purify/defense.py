"""The defence: purify, classify, and combine S independent runs."""

import flax.struct
import jax
import jax.numpy as jnp

from attacks.gradients import average_logits, draws
from purify.compilation import jit
from purify.networks import Classifier
from purify.types import Array, Image, Key, Purifier, Trace, static

AVERAGES = ("logits", "softmax", "vote")


@flax.struct.dataclass
class Defense:
    """`defense(key, image) -> logits [K]` of one draw: num_runs purifications with fresh noise.

    average: 'logits' (their mean, as in the paper), 'softmax' (log of the mean probability) or
        'vote' (share of runs that predict each class).
    chunk: how many runs are computed at once, all by default.
    """

    purifier: Purifier
    classifier: Classifier
    num_runs: int = static(10)
    average: str = static("logits")
    chunk: int | None = static(None)

    def __post_init__(self):
        if self.average not in AVERAGES:
            raise ValueError(f"average={self.average!r} is unknown; known: {', '.join(AVERAGES)}")
        if self.num_runs < 1:
            raise ValueError(f"num_runs={self.num_runs} must be at least 1")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be None or at least 1")

    @property
    def couples_batch(self) -> bool:
        """Whether an image's result depends on the others of its batch (purify.reference)."""
        return getattr(self.purifier, "axis_name", None) is not None

    def __call__(self, key: Key, image: Image) -> Array:
        return combine(self.runs(key, image), self.average)

    def run(self, key: Key, image: Image) -> Array:
        """Logits [K] of ONE purification: what expectation over transformation averages."""
        return self.classifier(self.purifier(key, image))

    def runs(self, key: Key, image: Image) -> Array:
        """Logits [S, K] of the num_runs purifications of one draw."""
        return draws(self.run, self.num_runs, self.chunk)(key, image)

    def trace(self, key: Key, image: Image) -> tuple[Array, Trace]:
        """`runs`, and the traces of their purifications stacked over S."""

        def traced(key, image):
            purified, trace = self.purifier.trace(key, image)
            return self.classifier(purified), trace

        return draws(traced, self.num_runs, self.chunk)(key, image)


def first_run(key: Key) -> Key:
    """Of an image's key, that of the first run of the first draw that an evaluation scores."""
    return jax.random.fold_in(jax.random.fold_in(key, 0), 0)


@jit
def classify(defense: Defense, keys: Key, images: Array) -> Array:
    """One draw of the defence for a batch: keys [n], images [n, H, W, C] -> logits [n, K]."""
    return jax.vmap(defense, axis_name="batch")(keys, images)


def combine(logits: Array, average: str) -> Array:
    """Logits [S, K] of the runs of one draw -> the draw's output [K]."""
    if average == "vote":
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        return votes.mean(0)
    return average_logits(logits, average)
