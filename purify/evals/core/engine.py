"""Per-image work into a store: what is pending, in batches, padded, timed and recorded."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from purify.evals.core.store import Store
from purify.runtime import parallel
from purify.runtime.messages import counted
from purify.runtime.progress import Progress, progress
from purify.saving.files import FileError


class Cost(NamedTuple):
    """Runs of the classifier, and evaluations and gradients of the score network."""

    runs: int = 0
    nfe: int = 0
    nge: int = 0

    def __str__(self) -> str:
        of_score = [counted(self.nfe, "evaluation")]
        of_score += [counted(self.nge, "gradient")] if self.nge else []
        return (
            f"{counted(self.runs, 'run')} of the classifier, {' and '.join(of_score)} of the score "
            "network"
        )

    @property
    def work(self) -> int:
        """Roughly how long it takes beside others: a forward 1, a gradient 3."""
        return self.runs + self.nfe + 3 * self.nge

    def times(self, number: int) -> "Cost":
        return Cost(*(number * each for each in self))


def total(costs: Iterable[Cost]) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed of each of the first num_images images, in records of that name.

    cost: of an image, at most.
    """

    name: str
    num_images: int
    cost: Cost


# Positions of images -> their records.
Compute = Callable[[np.ndarray], Sequence[dict]]


class Engine:
    """The work of one evaluation on its images, into its store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], distinct: the dataset
        index of each, which its keys are folded from. A position is one into these arrays.
    """

    def __init__(
        self,
        store: Store,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
    ):
        self.store, self.seed = store, seed
        self.images, self.labels, self.indices = images, labels, indices
        self.progress: Progress = None
        self._estimated: set[str] = set()  # the kinds of work whose speed was told

    def index(self, at: int) -> int:
        """The dataset index of the image at a position."""
        return int(self.indices[at])

    def pending(self, job: Job) -> list[int]:
        """Positions of the images of a job that have no record."""
        done = self.store.records(job.name)
        return [at for at in range(job.num_images) if self.index(at) not in done]

    def left(self, jobs: Sequence[Job]) -> Cost:
        """What is left to do of the jobs, at most."""
        return total(job.cost.times(len(self.pending(job))) for job in jobs)

    def records(self, job: Job) -> list[dict]:
        """Those of a job, in the order of its images."""
        records = self.store.records(job.name)
        return [records[self.index(at)] for at in range(job.num_images)]

    @contextlib.contextmanager
    def working(self, jobs: Sequence[Job], **signature) -> Iterator[None]:
        """A progress bar over what is left of the jobs, inside of which they are done; signature:
        see Store.sign."""
        if work := self.left(jobs).work:
            self.store.sign(devices=jax.device_count(), **signature)
        with progress(total=work, disable=not work) as self.progress:
            yield
            self.progress.set_description("all rows done")

    def do(
        self, job: Job, begin: Callable[[Sequence[int]], Compute], *, size: int, doing: str
    ) -> None:
        """What is pending of a job, `size` images at a time.

        begin: pending positions -> what computes, compiled; called where anything is pending.
        """
        pending = self.pending(job)
        if not pending:
            return
        self.progress.set_description(f"{job.name}: compiling")
        compute = begin(pending)
        self.progress.set_description(f"{job.name}: {doing}")
        for start in range(0, len(pending), size):
            at = np.array(pending[start : start + size])
            begun = time.perf_counter()
            records = compute(at)
            self.store.append(job.name, records)
            self.progress.update(len(at) * job.cost.work)
            self._say_estimate(job, doing, (time.perf_counter() - begun) / len(at))

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

    def _say_estimate(self, job: Job, doing: str, seconds: float) -> None:
        """After the first batch of each kind of work: the cost of an image, and how long the rest
        takes at that speed."""
        if doing in self._estimated or not job.cost.work:
            return
        self._estimated.add(doing)
        left = (self.progress.total - self.progress.n) * seconds / job.cost.work
        self.progress.write(
            f"estimate from the first images of {job.name}, {doing}: at most {job.cost} and "
            f"{seconds:.3f} s per image; about {left / 60:.1f} min of computing left in all"
        )


def timed(program: Callable, *args) -> tuple:
    """(the program's result on the host, seconds until it was there)."""
    start = time.perf_counter()
    result = parallel.fetch(program(*args))
    return result, time.perf_counter() - start
