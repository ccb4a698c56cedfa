"""The defence: purify, classify, and combine S independent runs."""

import flax.struct
import jax
import jax.numpy as jnp

from attacks.gradients import average_logits, draws
from purify.models.networks import Classifier
from purify.runtime.compilation import is_traced, jit
from purify.types import Array, Image, Key, Purifier, Trace, static

AVERAGES = ("logits", "softmax", "vote")
ROUNDING = 1e-6  # by which a pixel may lie outside [0, 1]


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
        """Whether an image's result depends on the others of its batch, see ReferenceADP."""
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


def classify(defense: Defense, keys: Key, images: Array) -> Array:
    """One draw of the defence for a batch: keys [n], float images [n, H, W, C] in [0, 1] -> logits
    [n, K]; within jax.jit, jax.grad and jax.vmap as well. Reverse mode goes through ADP with
    loop='scan' alone (load_defense(..., loop='scan')).

    ValueError for anything else, and for another shape than the networks were trained on (see
    purify.models.networks). Values are not known, and not checked, where a program is being traced.
    """
    images = images if hasattr(images, "dtype") else jnp.asarray(images)
    shape, dtype = images.shape, images.dtype
    if len(shape) != 4 or keys.shape[:1] != shape[:1]:
        raise ValueError(
            f"classify takes keys [n] and images [n, height, width, channels], not {keys.shape} "
            f"and {shape}; image[None] is a batch of one"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images of {dtype} must be floats in [0, 1]: divide 0 to 255 by 255")
    if not images.size:
        raise ValueError(f"images {shape} are none: give at least one")
    if not is_traced(images):
        low, high = float(images.min()), float(images.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise ValueError(
                f"images from {low:.4g} to {high:.4g} must be in [0, 1]: divide 0 to 255 by 255"
            )
    return _classify(defense, keys, images)


@jit
def _classify(defense: Defense, keys: Key, images: Array) -> Array:
    return jax.vmap(defense, axis_name="batch")(keys, images)


def combine(logits: Array, average: str) -> Array:
    """Logits [S, K] of the runs of one draw -> the draw's output [K]."""
    if average == "vote":
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
        return votes.mean(0)
    return average_logits(logits, average)
