"""Samples of a score model, and the paths of purified images, image by image, into a Store."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify.defense import first_run
from purify.evals.attacked.results import purifier_fields
from purify.evals.core.engine import Compute, Cost, Engine, Job
from purify.evals.core.inputs import Inputs
from purify.evals.core.sealed_arrays import sealed
from purify.langevin import AnnealedLangevin
from purify.models.networks import Classifier, Score
from purify.purifiers.detect_then_purify import score_norm
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered
from purify.types import Array, Key, Purifier, Stepwise, Trace

SAMPLES = "samples"


class ShownPath(NamedTuple):
    """A purifier whose paths are shown, and the classifier, if any, that reads the images on them.

    Of an image it shows the image itself, then x_0, ..., x_T; or, of a purifier that cannot show
    its steps, the result alone.
    """

    name: str
    purifier: Purifier
    classifier: Classifier | None

    @property
    def row(self) -> str:
        return f"path-{self.name}"

    @property
    def stepwise(self) -> bool:
        return isinstance(self.purifier, Stepwise)

    @property
    def length(self) -> int:
        """How many images it shows."""
        return 2 + (purifier_fields(self.purifier)["T"] if self.stepwise else 0)


class Followed(NamedTuple):
    """Of one image the n images that its path shows, [n, H, W, C], their score norms [n] and
    logits [n, K] (None without a classifier), and the trace."""

    images: Array
    norms: Array
    logits: Array | None
    trace: Trace


@jax.jit
def sample(sampler: AnnealedLangevin, keys: Key, centres: Array) -> Array:
    """Samples [B, H, W, C], clipped to [0, 1], around centres [B, H, W, C], with keys [B]."""
    return jnp.clip(jax.vmap(sampler)(keys, centres), 0.0, 1.0)


@jax.jit
def follow(
    purifier: Purifier, classifier: Classifier | None, score: Score, keys: Key, images: Array
) -> Followed:
    """The paths of images [B, H, W, C] with keys [B], in the first run that is scored of each."""

    def one(key, image):
        if isinstance(purifier, Stepwise):
            path, trace = purifier.path(first_run(key), image)
        else:
            purified, trace = purifier.trace(first_run(key), image)
            path = purified[None]
        shown = jnp.concatenate([image[None], path])
        logits = jax.vmap(classifier)(shown) if classifier else None
        return Followed(shown, jax.vmap(lambda x: score_norm(score, x))(shown), logits, trace)

    return jax.vmap(one)(keys, images)


def samples_job(sampler: AnnealedLangevin, centres: Inputs, number: int) -> Job:
    """A sample around each of the first `number` centres."""
    indices = tuple(centres.indices.tolist())
    return Job(SAMPLES, min(number, len(indices)), Cost(0, sampler.nfe), indices=indices)


def path_job(path: ShownPath, images: Inputs, number: int, score: Score) -> Job:
    """The path of each of the first `number` images; score: the model whose norms are told."""
    runs = path.length if path.classifier else 0
    cost = Cost(runs, path.purifier.nfe + path.length * score.nfe)
    indices = tuple(images.indices.tolist())
    return Job(path.row, min(number, len(indices)), cost, indices=indices)


def measure_samples(
    engine: Engine, sampler: AnnealedLangevin, centres: Inputs, number: int
) -> None:
    """What is pending of `samples_job`."""
    beside, job = beside_of(engine, centres), samples_job(sampler, centres, number)

    def begin(pending: Sequence[int]) -> Compute:
        program = _Program(beside, job, sample, (sampler,), "sample", pending)

        def compute(at: np.ndarray) -> list[dict]:
            images, seconds = program(at)
            if not np.isfinite(images).all():
                raise ValueError(
                    f"samples are not finite: config.sample.step_size={sampler.step_size:.3g} is "
                    "too large"
                )
            seals = engine.store.write(SAMPLES, centres.images.shape, at, images)
            records = [{"index": beside.index(i), "seconds": seconds} for i in at]
            return sealed(records, {SAMPLES: seals})

        return compute

    engine.do(job, begin, doing="sampling")


def measure_path(
    engine: Engine, path: ShownPath, images: Inputs, number: int, score: Score
) -> None:
    """What is pending of `path_job`."""
    beside, job = beside_of(engine, images), path_job(path, images, number, score)
    # The norms that its steps see are of its own model, where it has one.
    fixed = (path.purifier, path.classifier, getattr(path.purifier, "score", score))

    def begin(pending: Sequence[int]) -> Compute:
        program = _Program(beside, job, follow, fixed, "defense", pending)

        def compute(at: np.ndarray) -> list[dict]:
            followed, seconds = program(at)
            for values in (followed.norms, followed.logits):
                if values is not None:
                    beside.check_finite(values, at, f"{path.row}: score norms or logits")
            seals = engine.store.write(path.row, path_shape(path, images), at, followed.images)
            predictions = None if followed.logits is None else followed.logits.argmax(-1).tolist()
            records = [
                {
                    "index": beside.index(i),
                    "label": int(images.labels[i]),
                    "steps": int(followed.trace.steps[n]),
                    "step_sizes": followed.trace.step_sizes[n].tolist(),
                    "score_norms": followed.norms[n].tolist(),
                    "predictions": predictions and predictions[n],
                    "nfe": int(followed.trace.nfe[n]),
                    "seconds": seconds,
                }
                for n, i in enumerate(at)
            ]
            return sealed(records, {path.row: seals})

        return compute

    engine.do(job, begin, doing="following")


def beside_of(engine: Engine, images: Inputs) -> Engine:
    """The engine on those images."""
    return engine.on(images.images, images.labels, images.indices)


class _Program:
    """A jitted function of (*fixed, keys [B], images [B, ...]), compiled: positions -> (what it
    gives for their images, seconds per image), batches padded to one size with copies."""

    def __init__(
        self, engine: Engine, job: Job, function: Any, fixed: tuple, stream: str, first: Sequence
    ):
        self._engine, self._size, self._stream = engine, engine.size(job), stream
        self._fixed = parallel.replicate(fixed)
        self._program = compile_lowered(function.lower(*self._fixed, *self._batch(first)))

    def _batch(self, at: Sequence[int]) -> tuple:
        keys, images, _ = self._engine.batch(at, self._engine.images, self._size, self._stream)
        return keys, images

    def __call__(self, at: np.ndarray) -> tuple[Any, float]:
        result, seconds = self._engine.timed(self._program, *self._fixed, *self._batch(at))
        n = len(at)
        return jax.tree.map(lambda leaf: leaf[:n], result), seconds / n


def path_shape(path: ShownPath, images: Inputs) -> tuple[int, ...]:
    """Of the array that holds the path of each image."""
    return (len(images.indices), path.length, *images.images.shape[1:])
