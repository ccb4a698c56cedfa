"""Rows of a certification, image by image, into a Store: samples of smoothed defences."""

import dataclasses
import functools
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from purify import parallel
from purify.compilation import jit
from purify.defense import Defense
from purify.evals import smoothing
from purify.evals.evaluation import BAR
from purify.evals.store import Store
from purify.random import image_keys, index_keys
from purify.types import Array, Key


@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedRow:
    """One smoothed defence: its first noise, sigma, is the certificate's."""

    defense_name: str
    defense: Defense
    sigma: float
    num_images: int
    num_samples: int

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.sigma:g}"

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return self.defense.purifier.nfe


@functools.partial(jax.jit, static_argnums=2)
def sample_keys(key: Key, first: int, number: int) -> Key:
    """Keys [number] of an image's samples from `first` on."""
    return index_keys(key, first + jnp.arange(number))


@jit
def predict(defense: Defense, keys: Key, image: Array) -> Array:
    """The class [n] that one run of the defence gives to image [H, W, C] with each of keys [n]."""
    return jax.vmap(lambda key: defense.run(key, image).argmax())(keys)


def smoothed(defense: Defense, sigma: float, name: str) -> Defense:
    """The defence with its injected noise at sigma: the certificate's noise, and the only one.

    Raises ValueError where its first act is not to add that noise to the image, or where its draws
    are not independent.
    """
    purifier = defense.purifier
    if defense.couples_batch:
        raise ValueError(f"{name} decides a batch together: its draws are not independent")
    if not hasattr(purifier, "sigma"):
        raise ValueError(
            f"{name} cannot be certified: {type(purifier).__name__} does not begin with noise of "
            "its own; choose one that does, as noise_only for smoothing the classifier alone"
        )
    if getattr(purifier, "second_sigma", None) is not None:
        raise ValueError(f"{name} cannot be certified: its noise has one of two levels")
    return dataclasses.replace(defense, purifier=cast(Any, purifier).replace(sigma=sigma))


class Certification:
    """The rows of one certification, image by image, into a Store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], of the dataset.
    num_selection, alpha: see smoothing.certify. chunk: how many samples are computed at once.
    """

    def __init__(
        self,
        store: Store,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        num_classes: int,
        num_selection: int,
        alpha: float,
        chunk: int,
    ):
        self.store, self.images, self.labels, self.indices = store, images, labels, indices
        self._seed, self._chunk, self._num_selection = seed, chunk, num_selection
        self._num_classes, self._alpha = num_classes, alpha

    def run(self, rows: list[SmoothedRow]) -> None:
        """Do whatever is not done yet, with a progress bar in units of work."""
        pending = [self._pending(row) for row in rows]
        samples = [row.num_samples + self._num_selection for row in rows]
        total, nfe, work = (
            sum(len(at) * n * cost for at, n, cost in zip(pending, samples, costs, strict=True))
            for costs in ([1] * len(rows), [r.nfe for r in rows], [1 + r.nfe for r in rows])
        )
        print(
            f"{len(rows)} rows: at most {total:,} samples and {nfe:,} network evaluations; into "
            f"{self.store.folder}"
        )
        if total:
            self.store.sign(chunk=self._chunk, devices=jax.device_count())
        with tqdm(total=work, bar_format=BAR, smoothing=0, mininterval=1.0) as progress:
            for row, positions, number in zip(rows, pending, samples, strict=True):
                if positions:
                    progress.set_description(f"{row.name}: compiling")
                    self._compile(row, positions[0])
                    progress.set_description(row.name)
                for count, at in enumerate(positions):
                    record = self._certify(row, at)
                    self.store.append(row.name, [record])
                    progress.update(number * (1 + row.nfe))
                    if not count:
                        progress.write(
                            f"first image of {row.name}: {record['samples']:,} samples, "
                            f"{record['nfe']:,} network evaluations, {record['seconds']:.2f} s"
                        )
            progress.set_description("all rows done")

    def _pending(self, row: SmoothedRow) -> list[int]:
        done = self.store.records(row.name)
        return [at for at in range(row.num_images) if int(self.indices[at]) not in done]

    def _compile(self, row: SmoothedRow, at: int) -> None:
        """For all sizes that will be asked for, so that no image's seconds hold that."""
        looks = {min(smoothing.LOOK, row.num_samples), row.num_samples % smoothing.LOOK}
        for number in {self._num_selection, *looks}:
            jax.block_until_ready(self._start(row, at, "selection", 0, number))

    def _certify(self, row: SmoothedRow, at: int) -> dict:
        """The line of the image at a position."""
        start, drawn = time.perf_counter(), 0
        ahead: dict[int, list[tuple[Array, int]]] = {}

        def sample(stream: str, first: int, number: int) -> np.ndarray:
            nonlocal drawn
            drawn += number
            parts = ahead.pop(first, None) if stream == "defense" else None
            parts = parts or self._start(row, at, stream, first, number)
            # While these are looked at, the next are computed.
            following = first + number if stream == "defense" else 0
            if left := min(smoothing.LOOK, row.num_samples - following):
                ahead[following] = self._start(row, at, "defense", following, left)
            return np.concatenate([parallel.fetch(classes)[:size] for classes, size in parts])

        found = smoothing.certify(
            sample,
            sigma=row.sigma,
            num_classes=self._num_classes,
            num_selection=self._num_selection,
            num_samples=row.num_samples,
            alpha=self._alpha,
        )
        return {
            "index": int(self.indices[at]),
            "label": int(self.labels[at]),
            **found._asdict(),
            "counts": found.counts.tolist(),
            "samples": drawn,
            "nfe": drawn * row.nfe,
            "seconds": time.perf_counter() - start,
        }

    def _start(
        self, row: SmoothedRow, at: int, stream: str, first: int, number: int
    ) -> list[tuple[Array, int]]:
        """The classes of `number` samples of a stream from `first` on, in parts that are being
        computed: each with how many of it count, for the devices share equally. The key of a sample
        does not depend on how many are computed at once."""
        key = image_keys(self._seed, self.indices[at : at + 1], stream=stream)[0]
        parts = []
        for start in range(0, number, self._chunk):
            size = min(self._chunk, number - start)
            padded = -(-size // jax.device_count()) * jax.device_count()
            keys = parallel.shard(sample_keys(key, first + start, padded))
            parts.append((predict(row.defense, keys, self.images[at]), size))
        return parts
