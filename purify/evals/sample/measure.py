"""Samples of a score model, and the paths of purified images, image by image, into a Store."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify.defense import first_run
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.programs import check_finite
from purify.evals.attacked.results import purifier_fields
from purify.evals.core.inputs import Inputs
from purify.evals.core.sealed_arrays import sealed
from purify.evals.core.store import Store
from purify.langevin import AnnealedLangevin
from purify.models.networks import Classifier, Score
from purify.purifiers.detect_then_purify import score_norm
from purify.random import image_keys
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered
from purify.runtime.progress import Progress, progress
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


class Sampling:
    """Samples and paths of one score model, image by image, into a Store.

    batch_size: of every compiled batch, at most (see parallel.balanced); it changes rounding only.
    """

    def __init__(self, store: Store, score: Score, *, seed: int, batch_size: int):
        self._store, self._score, self._seed = store, score, seed
        self._batch_size = batch_size
        self._progress: Progress = None

    def run(
        self,
        sampler: AnnealedLangevin | None,
        centres: Inputs,
        paths: Sequence[ShownPath],
        images: Inputs,
    ) -> None:
        """Do whatever is not done yet: a sample around each of the centres, if there is a sampler,
        and each path of each of the images."""
        missing = self._missing(SAMPLES, centres, centres.images.shape) if sampler else []
        work = len(missing) * sampler.nfe if sampler else 0
        costs = [path.purifier.nfe + path.length * self._score.nfe for path in paths]
        pending = [self._missing(path.row, images, path_shape(path, images)) for path in paths]
        work += sum(len(at) * cost for at, cost in zip(pending, costs, strict=True))
        if work:
            asked = ([centres] if sampler else []) + ([images] if paths else [])
            largest = max(self._size(inputs) for inputs in asked)
            self._store.sign(batch_size=largest, devices=jax.device_count())
        with progress(total=work, disable=not work) as self._progress:
            if missing:
                self._sample(sampler, centres, missing)
            for path, places, cost in zip(paths, pending, costs, strict=True):
                if places:
                    self._follow(path, images, places, cost)
            self._progress.set_description("all done")

    def _sample(self, sampler: AnnealedLangevin, centres: Inputs, missing: list[int]) -> None:
        batches = self._batches(SAMPLES, sample, (sampler,), centres, missing, stream="sample")
        for at, images, seconds in batches:
            if not np.isfinite(images).all():
                raise ValueError(
                    f"samples are not finite: config.sample.step_size={sampler.step_size:.3g} is "
                    "too large"
                )
            seals = self._store.write(SAMPLES, centres.images.shape, at, images)
            records = [{"index": int(centres.indices[i]), "seconds": seconds} for i in at]
            self._store.append(SAMPLES, sealed(records, {SAMPLES: seals}))
            self._progress.update(len(at) * sampler.nfe)

    def _follow(self, path: ShownPath, images: Inputs, missing: list[int], cost: int) -> None:
        # The norms that its steps see are of its own model, where it has one.
        fixed = (path.purifier, path.classifier, getattr(path.purifier, "score", self._score))
        for at, followed, seconds in self._batches(
            path.row, follow, fixed, images, missing, stream="defense"
        ):
            for values in (followed.norms, followed.logits):
                if values is not None:
                    check_finite(values, images.indices[at], f"{path.row}: score norms or logits")
            seals = self._store.write(path.row, path_shape(path, images), at, followed.images)
            predictions = None if followed.logits is None else followed.logits.argmax(-1).tolist()
            records = [
                {
                    "index": int(images.indices[i]),
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
            self._store.append(path.row, sealed(records, {path.row: seals}))
            self._progress.update(len(at) * cost)

    def _missing(self, row: str, inputs: Inputs, shape: tuple[int, ...]) -> list[int]:
        """Positions that have no record, or had one and lack their images."""
        indices, records = inputs.indices.tolist(), self._store.records(row)
        done = [at for at, index in enumerate(indices) if index in records]
        if done:
            array = self._store.array(row, shape, row, indices)
            gone = [indices[at] for at in done if not np.isfinite(array[at]).all()]
            self._store.forget(row, gone, f"arrays/{row}.npy lacks its image")
        return [at for at, index in enumerate(indices) if index not in records]

    def _size(self, inputs: Inputs) -> int:
        return parallel.balanced(self._batch_size, len(inputs.indices))

    def _batches(
        self,
        row: str,
        function: Any,
        fixed: tuple,
        inputs: Inputs,
        missing: list[int],
        *,
        stream: str,
    ) -> Iterator[tuple[np.ndarray, Any, float]]:
        """(positions, what the function gives for them, seconds per image) for each batch of the
        missing ones, all padded to one size with copies.

        function: jitted, of (*fixed, keys, images), arrays [B, ...].
        """
        size = self._size(inputs)
        fixed = parallel.replicate(fixed)

        def batch(at) -> tuple:
            padded = np.resize(at, size)
            keys = image_keys(self._seed, inputs.indices[padded], stream=stream)
            return parallel.shard((keys, inputs.images[padded]))

        self._progress.set_description(f"{row}: compiling")
        program = compile_lowered(function.lower(*fixed, *batch(missing)))
        self._progress.set_description(row)
        for start in range(0, len(missing), size):
            at = np.array(missing[start : start + size])
            result, seconds = Evaluation.timed(program, *fixed, *batch(at))
            n = len(at)
            yield at, jax.tree.map(lambda leaf, n=n: leaf[:n], result), seconds / n


def path_shape(path: ShownPath, images: Inputs) -> tuple[int, ...]:
    """Of the array that holds the path of each image."""
    return (len(images.indices), path.length, *images.images.shape[1:])
