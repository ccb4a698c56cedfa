"""Rows of a certification, image by image, into a Store: samples of smoothed defences."""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from attacks.gradients import numbered_draws
from purify.defense import Defense
from purify.evals.attacked.programs import check_finite
from purify.evals.certify import smoothing
from purify.evals.core.agreement import check_label
from purify.evals.core.store import Store
from purify.evals.core.terminal import tell_work
from purify.purifiers import NoiseOnly, OneStep, Schedule
from purify.purifiers.adp import ADP
from purify.random import image_keys
from purify.runtime import parallel
from purify.runtime.compilation import jit
from purify.runtime.messages import counted
from purify.runtime.progress import progress
from purify.saving.files import FileError
from purify.types import Array, Key

# Functions of clip(x + sigma n, 0, 1), which draw nothing else; ADP as long as it has one sigma.
NOISE_FIRST = (NoiseOnly, OneStep, Schedule, ADP)
# Blocks of samples: one of a small network keeps one CPU core busy and a quarter of the next.
AT_ONCE = 2
NO_CLASS = -1


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
        """Network evaluations of one sample that does not stop early."""
        return self.defense.purifier.nfe

    @property
    def is_plain(self) -> bool:
        """Whether it smooths the classifier alone."""
        return isinstance(self.defense.purifier, NoiseOnly)


@jit
def predict(defense: Defense, key: Key, first: int, places: Array, image: Array) -> Array:
    """The classes [n] that single runs of the defence give to image [H, W, C], as its draws of the
    numbers first + places [n]: these come split over the devices, and the samples with them.
    NO_CLASS where a logit is not finite."""

    def answer(key: Key, image: Array) -> Array:
        logits = defense.run(key, image)
        return jnp.where(jnp.isfinite(logits).all(), logits.argmax(), NO_CLASS)

    return numbered_draws(answer)(key, first + places, image)


@functools.cache
def _places(number: int) -> Array:
    """0, 1, ..., so many that they are at least `number` and the devices share them equally."""
    devices = jax.device_count()
    return parallel.shard(np.arange(-(-number // devices) * devices, dtype=np.int32))


def smoothed(defense: Defense, sigma: float, name: str) -> Defense:
    """The defence with its injected noise at sigma: the certificate's noise, and the only one.

    Raises ValueError where its first and only random act is not to add that noise to the image, or
    where its draws are not independent.
    """
    purifier = defense.purifier
    if defense.couples_batch:
        raise ValueError(f"{name} decides a batch together: its draws are not independent")
    if not isinstance(purifier, NOISE_FIRST):
        raise ValueError(
            f"{name} cannot be certified: {type(purifier).__name__} does not begin with noise of "
            "its own; choose one that does, as noise_only for smoothing the classifier alone"
        )
    if isinstance(purifier, ADP) and purifier.second_sigma is not None:
        raise ValueError(f"{name} cannot be certified: its noise has one of two levels")
    return dataclasses.replace(defense, purifier=cast(Any, purifier).replace(sigma=sigma))


class Samples:
    """`sample` of smoothing.certify, of one image: blocks of classes, each of them begun before the
    one ahead of it is waited for.

    blocks: (stream, first, number) of all there are, in the order in which they will be asked for.
    start: the same -> what will be their classes, [at least number].
    """

    def __init__(self, blocks: Iterable[tuple], start: Callable[[str, int, int], Future]):
        self.started = 0  # samples, also those that nobody looked at
        self._start, self._waiting, self._running = start, deque(blocks), deque[tuple]()
        self._classes = {stream: np.empty(0, int) for stream, *_ in self._waiting}
        self._start_one()

    def __call__(self, stream: str, first: int, number: int) -> np.ndarray:
        while len(self._classes[stream]) < first + number:
            self._start_one()
            of, size, classes = self._running.popleft()
            self._classes[of] = np.append(self._classes[of], classes.result()[:size])
        return self._classes[stream][first : first + number]

    def wait(self) -> None:
        """For what was begun in vain: it would delay who comes next."""
        for *_, classes in self._running:
            classes.result()

    def _start_one(self) -> None:
        if self._waiting:
            stream, first, number = self._waiting.popleft()
            self._running.append((stream, number, self._start(stream, first, number)))
            self.started += number


class Certification:
    """The rows of one certification, image by image, into a Store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], of the dataset.
    num_selection, alpha: see smoothing.certify. chunk: samples of a block, AT_ONCE of which are
        computed at once.
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
        self._chunk, self._num_selection = chunk, num_selection
        self._num_classes, self._alpha = num_classes, alpha
        self._keys = {s: image_keys(seed, indices, stream=s) for s in ("selection", "defense")}

    def run(self, rows: list[SmoothedRow]) -> None:
        """Do whatever is not done yet, with a progress bar in units of work."""
        pending = [self._pending(row) for row in rows]
        samples = [row.num_samples + self._num_selection for row in rows]
        work = sum(
            len(at) * n * (1 + row.nfe) for at, n, row in zip(pending, samples, rows, strict=True)
        )
        cost, left = (
            f"{counted(sum(n * m for n, m in zip(each, samples, strict=True)), 'sample')} and "
            + counted(
                sum(n * m * row.nfe for n, m, row in zip(each, samples, rows, strict=True)),
                "network evaluation",
            )
            for each in ([row.num_images for row in rows], [len(at) for at in pending])
        )
        tell_work(counted(len(rows), "row"), cost, left if work else "", self.store.folder)
        if work:
            self.store.sign(chunk=self._chunk, devices=jax.device_count())
        with progress(total=work, disable=not work) as bar, ThreadPoolExecutor(AT_ONCE) as pool:
            for row, positions, number in zip(rows, pending, samples, strict=True):
                if positions:
                    bar.set_description(f"{row.name}: compiling")
                    row = dataclasses.replace(row, defense=parallel.replicate(row.defense))
                    self._compile(row, positions[0], pool)
                    bar.set_description(row.name)
                for count, at in enumerate(positions):
                    record = self._certify(row, at, pool)
                    self.store.append(row.name, [record])
                    bar.update(number * (1 + row.nfe))
                    if not count:
                        bar.write(
                            f"first image of {row.name}: {counted(record['samples'], 'sample')}, "
                            f"at most {counted(record['nfe'], 'network evaluation')}, "
                            f"{record['seconds']:.2f} s"
                        )
            bar.set_description("all rows done")
        for row in rows:
            self._check(row)

    def _check(self, row: SmoothedRow) -> None:
        """FileError unless the records say what follows from their own counts, of these labels."""
        records = self.store.records(row.name)
        for at in range(row.num_images):
            record = records[int(self.indices[at])]
            try:
                check_label(record, self.labels[at])
                smoothing.check_certified(record, **self._options(row))
            except ValueError as error:
                raise FileError(
                    f"{self.store.folder}/images.jsonl: {row.name}, index {record['index']}: "
                    f"{error}; bring the file back, or move the folder elsewhere"
                ) from None

    def _options(self, row: SmoothedRow) -> dict[str, Any]:
        """Those of smoothing.certify."""
        return {
            "sigma": row.sigma,
            "num_classes": self._num_classes,
            "num_selection": self._num_selection,
            "num_samples": row.num_samples,
            "alpha": self._alpha,
        }

    def _pending(self, row: SmoothedRow) -> list[int]:
        done = self.store.records(row.name)
        return [at for at in range(row.num_images) if int(self.indices[at]) not in done]

    def _blocks(self, row: SmoothedRow) -> list[tuple[str, int, int]]:
        """(stream, first, number) of the samples that are computed at once, in order."""
        streams = {"selection": self._num_selection, "defense": row.num_samples}
        return [
            (stream, first, min(self._chunk, number - first))
            for stream, number in streams.items()
            for first in range(0, number, self._chunk)
        ]

    def _starter(
        self, row: SmoothedRow, at: int, pool: Executor
    ) -> Callable[[str, int, int], Future]:
        """start of Samples for the image at a position. The key of a sample does not depend on how
        many are computed at once."""
        image = self.images[at]
        keys = {stream: parallel.replicate(keys[at]) for stream, keys in self._keys.items()}

        def classes(stream: str, first: int, number: int) -> np.ndarray:
            found = parallel.fetch(
                predict(row.defense, keys[stream], first, _places(number), image)
            )
            known = np.where(found == NO_CLASS, np.nan, found)[None]
            check_finite(known, self.indices[[at]], f"{row.name}: logits of the defence")
            return found

        return lambda *block: pool.submit(classes, *block)

    def _compile(self, row: SmoothedRow, at: int, pool: Executor) -> None:
        """For all sizes of blocks, so that no image's seconds hold that."""
        start = self._starter(row, at, pool)
        for number in {number for *_, number in self._blocks(row)}:
            start("selection", 0, number).result()

    def _certify(self, row: SmoothedRow, at: int, pool: Executor) -> dict:
        """The line of the image at a position."""
        start = time.perf_counter()
        sample = Samples(self._blocks(row), self._starter(row, at, pool))
        found = smoothing.certify(sample, **self._options(row))
        sample.wait()
        return {
            "index": int(self.indices[at]),
            "label": int(self.labels[at]),
            **found._asdict(),
            "counts": found.counts.tolist(),
            "samples": self._num_selection + int(found.counts.sum()),
            "nfe": sample.started * row.nfe,
            "seconds": time.perf_counter() - start,
        }
