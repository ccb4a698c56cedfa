"""One run for every mode: limits, the folder, what is told before and after, the files."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from purify.evals.core.engine import Cost, Engine, Job, total
from purify.evals.core.inputs import Inputs, seen
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
from purify.runtime.messages import printable, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    @functools.cached_property
    @abc.abstractmethod
    def settings(self) -> dict:
        """All that decides the results: two tasks with equal settings are the same evaluation."""

    @property
    def recorded(self) -> Mapping:
        """What of the settings results.json has beside the config."""
        return self.settings

    @property
    @abc.abstractmethod
    def jobs(self) -> Sequence[Job]: ...

    @property
    def num_images(self) -> int:
        return max(job.num_images for job in self.jobs)

    @property
    def cost(self) -> Cost:
        """Of all that is planned, at most."""
        return total(job.cost.times(job.num_images) for job in self.jobs)

    @abc.abstractmethod
    def limited(self, max_images: int) -> Self:
        """The same on the first images of each row: the others can follow later."""

    def engine(self, store: Store) -> Engine:
        return self.inputs.engine(self.config, store)

    def mend(self, engine: Engine) -> None:  # noqa: B027
        """Put aside what was done but cannot count any more; nothing as a rule."""

    def tell_seen(self) -> None:
        """Say what a reader should know of images and networks."""
        seen(self.config.data, self.inputs, range(self.num_images)).tell()

    def signature(self, engine: Engine) -> Mapping[str, int]:
        """In which shape it is computed, beside the number of devices, see Store.sign."""
        return {"batch_size": max(map(engine.size, self.jobs))}

    @abc.abstractmethod
    def measure(self, engine: Engine) -> None:
        """Do what is pending of the jobs."""

    @abc.abstractmethod
    def numbers(self, engine: Engine) -> dict:
        """What results.json says, beside title and settings."""

    def write(self, engine: Engine, results: Mapping) -> Iterable[Path]:
        """Write more files than results.json and the figures of it; their paths."""
        return ()


def run(task: Task, workdir: Path, max_images: int | None = None) -> None:
    """Measure what is missing, write results.json and the figures, and print the tables.

    max_images: stop after so many images of each row. No setting: a later run, with more of them or
    without a limit, is the same evaluation and goes on from there.
    """
    needed = task.num_images
    task = task.limited(max_images) if max_images else task
    stopped = stopped_early(task.num_images, needed, max_images)
    cost = str(task.cost)  # rows that do not fit say so here, before anything is written
    with Store(workdir, task.mode, task.settings, stopped=stopped) as store:
        engine = task.engine(store)
        task.mend(engine)
        left = [job for job in task.jobs if engine.number_left(job)]
        tell_work(task.asked, cost, str(engine.left(left)) if left else "", store.folder)
        task.tell_seen()
        results = complete(task, engine)
        if parallel.is_first_process():
            tell(task.shown, store.folder, results, lambda: task.write(engine, results))
            runs = task.inputs.runs.values()
            print("checkpoints:\n" + "\n".join(f"  {shown(run / 'checkpoints')}" for run in runs))


def complete(task: Task, engine: Engine) -> dict:
    """What results.json holds, after what is missing was measured."""
    with engine.working(task.jobs, **task.signature(engine)):
        task.measure(engine)
    if not parallel.is_first_process():
        return {}
    return {
        "title": task.inputs.titled(task.title),
        **task.numbers(engine),
        **task.recorded,
        **engine.store.computed_by(),
        "trained": task.inputs.trained(),
        "config": task.config.to_dict(),
    }


def tell(
    showing: Shown,
    folder: Path,
    results: Mapping,
    write_more: Callable[[], Iterable[Path]] = lambda: (),
) -> None:
    """Write results.json and its figures, print the tables, and say where what is.

    write_more: writes other files; their paths.
    """
    written = [write_results(folder, results)]
    for table in showing.tables(results):
        print_table(table)
    for line in showing.lines(results):
        print(printable(line))
    print_reservations(results)
    records = folder / "images.jsonl"
    written += [records] if records.exists() else []
    written += showing.draw(folder / "figures", results)
    tell_written([*written, *write_more()])
