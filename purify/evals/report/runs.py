"""The evaluations that a report is about, read from their folders."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from purify.evals.core.labels import labels
from purify.evals.core.result_files import RESULTS, read_results
from purify.evals.core.store import read_records
from purify.evals.report.modes import MODES
from purify.runtime.errors import FileError
from purify.runtime.messages import shown
from purify.saving.checkpoint import NeedsMode
from purify.saving.files import inside
from purify.saving.settings import read_settings

SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One finished evaluation, <workdir>/<mode>/<hash>: its settings.json and results.json."""

    folder: Path
    settings: dict
    results: dict

    @property
    def mode(self) -> str:
        return self.folder.parent.name

    @property
    def workdir(self) -> Path:
        return self.folder.parent.parent

    def told_apart(self, runs: Iterable["Run"]) -> str:
        """What it has otherwise than those of its mode: workdir, data, settings, and the name of
        its folder; '' where it is the only one of its mode."""
        same = [run for run in runs if run.mode == self.mode]
        if len(same) < 2:
            return ""
        said = []
        if len({run.workdir.absolute() for run in same}) > 1:
            names = {run.workdir.absolute().name for run in same}
            said.append(self.workdir.absolute().name if len(names) > 1 else str(self.workdir))
        said.append(labels([run.settings for run in same])[same.index(self)])
        words = ", ".join(filter(None, said))
        return f"{words} ({self.folder.name})" if words else self.folder.name

    def class_name(self, label: int) -> str:
        """As the data set has it, or the number, as where an earlier version wrote the results."""
        names = self.results.get("class_names", ())
        return names[label] if label < len(names) else str(label)

    @functools.cached_property
    def records(self) -> dict[str, dict[int, dict]]:
        """row -> dataset index -> record; none where there is no images.jsonl, and without lines
        that are damaged, of which it tells."""
        return read_records(inside(self.folder, "images.jsonl"), strict=False)

    def files(self, folder: str, pattern: str) -> list[Path]:
        """Its files of that pattern in a folder of its own, by name; FileError where one of them is
        a link: it leads to what is none of the evaluation's."""
        found = inside(self.folder, folder).glob(pattern)
        return [inside(self.folder, folder, path.name) for path in sorted(found)]


class Found(NamedTuple):
    """runs: in the order of MODES and then of time. points: evaluations that an ablation made, of
    which it has the numbers: they are of interest together only. unfinished: their folders."""

    runs: list[Run]
    points: list[Run]
    unfinished: list[Path]


def find_runs(given: Iterable[Path]) -> Found:
    """Finished evaluations. given: each the folder of one, or a workdir, for all in it, of which
    those that are not finished are left out.

    Raises NeedsMode where something is missing that a command makes, ValueError for folders that
    are neither, FileError for files that are damaged, or links to elsewhere.
    """
    named: list[Run] = []
    contained: list[Run] = []
    unfinished = []
    for folder in given:
        if not folder.is_dir():
            raise ValueError(
                f"'{shown(folder)}' does not exist; give the folder of an evaluation, as "
                "runs/digits/eval_robust/0123abcd, or a workdir"
            )
        if _is_evaluation(folder):
            named.append(_named(folder))
            continue
        found = [path for mode in MODES for path in _evaluations(folder, mode)]
        done = [path for path in found if _is_finished(path)]
        if not found:
            raise NeedsMode(
                f"there is no evaluation in '{shown(folder)}'", mode="eval_robust", workdir=folder
            )
        if not done:
            raise _unfinished(found[0])
        contained += map(_read, done)
        unfinished += [path for path in found if path not in done]
    # Two names of one folder are one run.
    each = {run.folder.resolve(): run for run in (*contained, *named)}
    asked = {run.folder.resolve() for run in named}
    of_ablation = {
        inside(run.workdir, "eval_robust", row["run"]).resolve()
        for run in each.values()
        if run.mode == "ablate"
        for row in run.results["rows"]
        if "run" in row
    } - asked
    # Those of an ablation that is named are not inside of anything given.
    each |= {path: _read(path) for path in sorted(of_ablation - each.keys()) if _is_finished(path)}
    modes = list(MODES)
    order = sorted(each.values(), key=lambda r: (modes.index(r.mode), r.results.get("time", "")))
    points = [run for run in order if run.folder.resolve() in of_ablation]
    return Found([run for run in order if run not in points], points, unfinished)


def _evaluations(workdir: Path, mode: str) -> list[Path]:
    """The folders of evaluations of a mode, finished or not."""
    folders = sorted(inside(workdir, mode).glob("*"))
    return [inside(workdir, mode, path.name) for path in folders if _is_evaluation(path)]


def _named(folder: Path) -> Run:
    """The one in that folder, which must be finished."""
    if (mode := folder.absolute().parent.name) not in MODES:
        raise ValueError(
            f"'{shown(folder)}' is in the folder '{shown(mode)}', which is no mode whose results a "
            f"report shows: {', '.join(MODES)}"
        )
    if not _is_finished(folder):
        raise _unfinished(folder)
    return _read(folder)


def _is_evaluation(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (SETTINGS, RESULTS))


def _is_finished(folder: Path) -> bool:
    return os.path.lexists(folder / RESULTS)


def _unfinished(folder: Path) -> NeedsMode:
    mode, workdir = folder.absolute().parent.name, folder.absolute().parent.parent
    message = (
        f"'{shown(folder)}' is not finished: it has no results.json; the command that began it "
        "ends it"
    )
    return NeedsMode(message, mode=mode, workdir=workdir)


def _read(folder: Path) -> Run:
    named = folder if folder.parent.name else folder.absolute()  # '.' does not say its mode
    results = read_results(folder, named.parent.name)
    if not os.path.lexists(folder / SETTINGS):
        raise FileError(
            f"'{shown(folder)}' has lost its {SETTINGS}, which says what was evaluated: bring it "
            "back, or name the other folders alone"
        )
    return Run(named, read_settings(folder), results)
