"""Per-image work into a store: what is pending, in batches, padded, timed and recorded."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from purify.evals.core.sealed_arrays import seal
from purify.evals.core.store import Store
from purify.random import check_seed, image_keys
from purify.runtime import parallel
from purify.runtime.errors import FileError
from purify.runtime.messages import counted, few
from purify.runtime.progress import Progress, progress
from purify.types import Key


class Cost(NamedTuple):
    """Runs of the classifier, and evaluations and gradients of the score network."""

    runs: int = 0
    nfe: int = 0
    nge: int = 0

    def __str__(self) -> str:
        return (
            f"{counted(self.runs, 'run')} of the classifier, {counted(self.nfe, 'evaluation')} and "
            f"{counted(self.nge, 'gradient')} of the score network"
        )

    @property
    def work(self) -> int:
        """Roughly how long it takes beside others: a forward 1, a gradient 3."""
        return self.runs + self.nfe + 3 * self.nge

    def times(self, number: int) -> "Cost":
        return Cost(*(number * each for each in self))


def total(costs: Iterable[Cost]) -> Cost:
    return Cost(*(sum(each) for each in zip(Cost(), *costs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed of each of the first num_images images, in records of that name.

    cost: of an image, at most. label: what people call it. couples: whether an image's result
    depends on its neighbours: then batches are always the same ones. unless: the name of the
    records that make those of the same image superfluous, '' for none. indices: of its images in
    their data set, where they are not the engine's; positions are then into these.
    """

    name: str
    num_images: int
    cost: Cost
    label: str = ""
    couples: bool = False
    unless: str = ""
    indices: Sequence[int] | None = None


# Positions of images -> their records.
Compute = Callable[[np.ndarray], Sequence[dict]]


class Engine:
    """The work of one evaluation on its images, into its store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], distinct: the dataset
        index of each, which its keys are folded from. A position is one into these arrays.
    batch_size: the limit of compiled batches. Those of a job have one size, which follows from it
        and from the job's number of images (see parallel.balanced); what is not full, as after an
        interruption, is padded with copies, so that an image's result never depends on its
        neighbours. A job of other length, as by another --max_images, may have another size: other
        rounding, no more. Of a job that couples images each batch is one block of batch_size
        positions.
    """

    def __init__(
        self,
        store: Store,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int = 1,
    ):
        self.store, self.seed, self.batch_size = store, check_seed(seed), batch_size
        self.images, self.labels, self.indices = images, labels, indices
        self.progress: Progress = None
        # Positions of attacked images that were found in their ball, by what they are.
        self.in_ball: dict[tuple, set[int]] = {}
        self._estimated: set[str] = set()  # the kinds of work whose speed was told
        self._asks_score = False

    # What is there

    def index(self, at: int) -> int:
        """The dataset index of the image at a position."""
        return int(self.indices[at])

    def positions(self, indices: Collection[int]) -> list[int]:
        """The positions of the images with these indices, ascending."""
        return [at for at, index in enumerate(self.indices.tolist()) if index in indices]

    def pending(self, job: Job) -> list[int]:
        """Positions of the images of a job that are to be computed, for want of a record; of a job
        that couples images in whole blocks, even where a part is done."""
        done = self.store.records(job.name)
        missing = [at for at, index in enumerate(self._indices(job)) if index not in done]
        if not job.couples:
            return missing
        blocks = {at // self.batch_size for at in missing}
        return [at for at in range(job.num_images) if at // self.batch_size in blocks]

    def number_left(self, job: Job) -> int:
        """How many images a job has left, without those whose record would be superfluous."""
        spared = self.store.records(job.unless) if job.unless else ()
        indices = self._indices(job)
        return sum(indices[at] not in spared for at in self.pending(job))

    def left(self, jobs: Iterable[Job]) -> Cost:
        """What is left to do of the jobs, at most."""
        return total(job.cost.times(self.number_left(job)) for job in jobs)

    def records(self, job: Job) -> list[dict]:
        """Those of a job, in the order of its images."""
        records = self.store.records(job.name)
        return [records[index] for index in self._indices(job)]

    def _indices(self, job: Job) -> list[int]:
        indices = self.indices if job.indices is None else np.asarray(job.indices)
        return indices[: job.num_images].tolist()

    def on(self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> "Engine":
        """The same on other images: for the batches of jobs that are about them."""
        arrays = images, labels, indices
        return Engine(self.store, *arrays, seed=self.seed, batch_size=self.batch_size)

    def size(self, job: Job) -> int:
        """The size of the batches of a job."""
        return parallel.balanced(self.batch_size, job.num_images, blocks=job.couples)

    # Work

    @contextlib.contextmanager
    def working(self, jobs: Sequence[Job], **signature: int) -> Iterator[None]:
        """A progress bar over what is left of the jobs, which are done inside; signature: in which
        shape, see Store.sign, beside the number of devices."""
        left = [job for job in jobs if self.number_left(job)]
        self._asks_score = any(job.cost.nfe for job in left)
        if left:
            self.store.sign(**signature, devices=jax.device_count())
        with progress(total=self.left(left).work, disable=not left) as self.progress:
            yield
            self.progress.set_description("all rows done")

    def do(
        self,
        job: Job,
        begin: Callable[[Sequence[int]], Compute],
        *,
        doing: str,
        among: Collection[int] | None = None,
        size: int = 0,
    ) -> None:
        """What is pending of a job, among these positions.

        begin: pending positions -> what computes, compiled; called where anything is pending.
        doing: the kind of work, for people. size: of batches, by default that of the job.
        """
        pending = self.pending(job)
        if among is not None:
            pending = sorted(set(pending) & set(among))
        if not pending:
            return
        label, size = job.label or job.name, size or self.size(job)
        self.progress.set_description(f"{label}: compiling")
        compute = begin(pending)
        self.progress.set_description(f"{label}: {doing}")
        for start in range(0, len(pending), size):
            at = np.array(pending[start : start + size])
            begun = time.perf_counter()
            self.store.append(job.name, compute(at))
            self.progress.update(len(at) * job.cost.work)
            self._say_estimate(job, doing, (time.perf_counter() - begun) / len(at))

    def _say_estimate(self, job: Job, doing: str, seconds: float) -> None:
        """After the first batch of a kind of work through the score network, if any job asks it:
        the cost of an image, and how long the rest takes at that speed."""
        if doing in self._estimated or not job.cost.work or (self._asks_score and not job.cost.nfe):
            return
        self._estimated.add(doing)
        left = (self.progress.total - self.progress.n) * seconds / job.cost.work
        self.progress.write(
            f"estimate from the first batch of {job.label or job.name}, {doing}: "
            f"{job.cost.nfe:,} network evaluations and {seconds:.3f} s per image; about "
            f"{left / 60:.1f} min of computing left in all"
        )

    def keys(self, at: np.ndarray, stream: str) -> Key:
        """Of the images at these positions, [n]."""
        return image_keys(self.seed, self.indices[at], stream=stream)

    def batch(
        self, positions: Sequence[int], images: np.ndarray, size: int, *streams: str
    ) -> tuple:
        """(keys of each stream, images, labels) of one batch of that size, padded and sharded."""
        at = np.resize(positions, size)  # repeats positions to fill up, or cuts off
        keys = (self.keys(at, stream) for stream in streams)
        return parallel.shard((*keys, images[at], self.labels[at]))

    @staticmethod
    def timed(program: Callable, *args) -> tuple:
        """(the program's result on the host, seconds until it was there)."""
        start = time.perf_counter()
        result = parallel.fetch(program(*args))
        return result, time.perf_counter() - start

    # Whether what is there fits

    def check_there(self, images: np.ndarray, positions: Sequence[int], name: str) -> None:
        """FileError unless the images at these positions are there, of an array of that name."""
        if not all(there(images[at]) for at in positions):
            raise FileError(
                f"{self.store.folder}/arrays/{name}.npy lacks images that images.jsonl has lines "
                "of; bring the file back"
            )

    def check_finite(self, values: np.ndarray, at: np.ndarray, what: str) -> None:
        """`check_finite` of values [n, ...] of the images at positions [n]."""
        check_finite(values, self.indices[at], what)

    def check(self, job: Job, agrees: Callable[[Mapping, int], None]) -> None:
        """FileError where a record of a job contradicts itself or its image: agrees(record, label)
        raises ValueError."""
        for at, record in enumerate(self.records(job)):
            try:
                agrees(record, int(self.labels[at]))
            except ValueError as error:
                raise FileError(
                    f"{self.store.folder}/images.jsonl: {job.name}, index {record['index']}: "
                    f"{error}; bring the file back, or move the folder elsewhere"
                ) from None

    def forget_gone(
        self, name: str, array: str, shape: tuple[int, ...], positions: Collection[int]
    ) -> bool:
        """Put records under that name aside, of images at these positions, whose entries of an
        array of that shape are not there any more; whether there were any."""
        records = self.store.records(name)
        done = [at for at in positions if self.index(at) in records]
        entries = self.store.array(array, shape, name, self.indices) if done else np.empty(0)
        gone = [self.index(at) for at in done if not there(entries[at])]
        if gone:
            self.store.forget(name, gone, f"arrays/{array}.npy lacks its image")
        return bool(gone)

    def forget_stale(self, name: str, array: str, images: np.ndarray) -> None:
        """Put records under that name aside that are of other images than these, [n, H, W, C] of
        the first n positions, by the seals of `array` that they have: of those that were attacked
        again since."""
        records = self.store.records(name)
        stale = []
        for at in self.positions(records):
            known = records[self.index(at)].get("arrays", {}).get(array)
            if known and at < len(images) and there(images[at]) and known != seal(images[at]):
                stale.append(self.index(at))
        self.store.forget(name, stale, "it is of another image than the one that is there")


def check_finite(values: np.ndarray, indices: np.ndarray, what: str) -> None:
    """ValueError that names `what` and the images where one of values [n, ...] is NaN or infinite.

    Argmax would take a NaN for a class, and a comparison would take it for an answer. indices: of
    the images in their data set, [n].
    """
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    if finite.all():
        return
    wrong = indices[~finite].tolist()
    raise ValueError(
        f"{what} are not finite (NaN or infinite) on {len(wrong)} of {len(values)} images, index "
        f"{few(wrong, limit=5)}: no answer can be read from them; look at the options of the "
        "defence, such as sigma, and at the weights of its networks"
    )


def there(entry: np.ndarray) -> bool:
    """Whether an entry of an array was written."""
    return bool(np.isfinite(entry).all())
