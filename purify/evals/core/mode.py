"""One run for every mode: limits, the folder, what is told before and after, the files."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from purify.evals.core.engine import Cost, Engine, Job, total
from purify.evals.core.inputs import Inputs, tell_seen
from purify.evals.core.result_files import write_results
from purify.evals.core.show import Shown
from purify.evals.core.store import Store
from purify.evals.core.terminal import (
    print_reservations,
    print_table,
    stopped_early,
    tell_work,
    tell_written,
)
from purify.runtime import parallel


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """One evaluation of a mode, planned and checked.

    mode: its name, and that of the folder. config: as results.json keeps it. inputs: of the images
    that it needs.
    """

    mode: ClassVar[str]
    shown: ClassVar[Shown]
    config: Any
    inputs: Inputs

    @property
    @abc.abstractmethod
    def asked(self) -> str:
        """What is asked for, in words."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What all the results share, in lines."""

    @property
    @abc.abstractmethod
    def settings(self) -> dict:
        """All that decides the results."""

    @property
    @abc.abstractmethod
    def jobs(self) -> Sequence[Job]: ...

    @property
    def signature(self) -> Mapping[str, int]:
        """In which shape it is computed, beside the devices, see Store.sign."""
        return {}

    @abc.abstractmethod
    def limited(self, max_images: int) -> Self:
        """The same on the first images of each row: the others can follow later."""

    @abc.abstractmethod
    def measure(self, engine: Engine) -> None:
        """Do what is pending of the jobs."""

    @abc.abstractmethod
    def numbers(self, engine: Engine) -> dict:
        """What results.json says, beside title and settings."""


def run(task: Task, workdir: Path, max_images: int | None = None) -> dict:
    """Measure what is missing, write results.json and the figures, print the tables; the results.

    max_images: stop after so many images of each row. No setting: a later run, with more of them or
    without a limit, is the same evaluation and goes on from there.
    """
    needed = _num_images(task)
    task = task.limited(max_images) if max_images else task
    taken = _num_images(task)
    stopped = stopped_early(taken, needed, max_images)
    with Store(workdir, task.mode, task.settings, stopped=stopped) as store:
        inputs, config = task.inputs, task.config
        arrays = inputs.images, inputs.labels, inputs.indices
        engine = Engine(store, *arrays, seed=config.seed)
        cost = total(job.cost.times(job.num_images) for job in task.jobs)
        left = engine.left(task.jobs)
        tell_work(task.asked, str(cost), str(left) if left != Cost() else "", store.folder)
        tell_seen(config.data, inputs, range(taken))
        with engine.working(task.jobs, **task.signature):
            task.measure(engine)
        results = {
            "title": inputs.titled(task.title),
            **task.numbers(engine),
            **task.settings,
            **store.computed_by(),
            "trained": inputs.trained(),
            "config": config.to_dict(),
        }
        if parallel.is_first_process():
            _tell(task.shown, store, results)
        return results


def _num_images(task: Task) -> int:
    return max(job.num_images for job in task.jobs)


def _tell(shown: Shown, store: Store, results: Mapping) -> None:
    paths = [write_results(store.folder, results), store.folder / "images.jsonl"]
    for table in shown.tables(results):
        print_table(table)
    print_reservations(results)
    tell_written([*paths, *shown.draw(store.folder / "figures", results)])
