"""--mode=ablate: the configured defence under attack, with one factor at a time at other values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from purify.evals import robust
from purify.evals.ablate import show
from purify.evals.ablate.plan import Factor, plan_points, title_of
from purify.evals.ablate.show import Measured
from purify.evals.attacked.results import per_image
from purify.evals.core import mode
from purify.evals.core.engine import Cost, total
from purify.evals.core.inputs import seen
from purify.evals.core.result_files import write_results
from purify.evals.core.store import Store, folder_of, read_records
from purify.evals.core.terminal import stopped_early, tell_work
from purify.evals.robust import Attacked
from purify.runtime.errors import FileError
from purify.runtime.messages import counted, shown


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Evaluate every point, print a table, and write the numbers and a figure.

    A point is an evaluation of --mode=eval_robust with other settings, in a folder of its own: what
    is done of it, by this mode or that one, is not done again. The default is one point.
    max_images: as of --mode=eval_robust.
    """
    factors, points = plan_points(config, workdir)
    default = points[None]
    folders = {key: folder_of(workdir, robust.MODE, p.settings) for key, p in points.items()}
    planned: dict[Path, Attacked] = {}  # of equal settings once
    titles: dict[Path, str] = {}
    for key, folder in folders.items():
        point = points[key]
        planned.setdefault(folder, point.limited(max_images) if max_images else point)
        titles.setdefault(folder, title_of(key))
    taken = max(p.num_images for p in planned.values())
    settings = _settings(factors, default)
    needed = max(p.num_images for p in points.values())
    stopped = stopped_early(taken, needed, max_images)
    with Store(workdir, "ablate", settings, stopped=stopped) as store:
        costs = {folder: point.cost for folder, point in planned.items()}
        lacking = {folder: _cost_left(point, folder) for folder, point in planned.items()}
        cost, left = (total(each.values()) for each in (costs, lacking))
        asked = (
            f"{counted(len(planned), 'evaluation')} on {counted(taken, 'image')}, the default and "
            f"one for each other value of {counted(len(factors), 'factor')}"
        )
        tell_work(asked, str(cost), str(left) if left.runs else "", store.folder)
        seen(config.data, default.inputs, range(taken)).tell()
        measured: dict[Path, Measured] = {}
        for number, (folder, point) in enumerate(planned.items(), start=1):
            where = "into" if lacking[folder].runs else "done before, in"
            print(f"{number} of {len(planned)}: {titles[folder]}, {where} {shown(folder)}")
            measured[folder] = _measure(point, workdir)
        show.write(
            config,
            store,
            factors,
            {key: measured[folder] for key, folder in folders.items()},
            settings,
        )


def _settings(factors: list[Factor], default: Attacked) -> dict:
    described = {
        factor.name: {"fields": factor.fields, "values": factor.values} for factor in factors
    }
    return {"factors": described, "default": default.settings}


class _Records(NamedTuple):
    """What a Store has done, to be looked at without a claim on its folder."""

    by_row: Mapping[str, dict]

    def records(self, row: str) -> dict:
        return self.by_row.get(row, {})


def _cost_left(task: Attacked, folder: Path) -> Cost:
    """Of what an evaluation lacks in its folder, which need not be there; of all of it where its
    records are damaged, which are put aside when it goes on."""
    try:
        records = read_records(folder / "images.jsonl")
    except FileError:
        records = {}
    store: Any = _Records(records)
    return task.engine(store).left(task.jobs)


def _measure(task: Attacked, workdir: Path) -> Measured:
    """Whatever is not done of an evaluation, and what it found."""
    with Store(workdir, task.mode, task.settings) as store:
        engine = task.engine(store)
        task.mend(engine)
        results = mode.complete(task, engine)
        write_results(store.folder, results)
    values = {
        (row.attack_name, protocol): dict(
            zip((record["index"] for record in records), each, strict=True)
        )
        for row in task.rows
        for records in [engine.records(row.score_job)]
        for protocol, each in per_image(row, records).items()
    }
    return Measured(results, values, store.folder)
