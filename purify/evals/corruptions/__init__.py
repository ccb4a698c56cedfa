"""--mode=eval_corruptions: the defences on common corruptions of the images, and on clean ones."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from purify.data import datasets
from purify.data.corruptions import CORRUPTIONS, SEVERITIES
from purify.data.corruptions.cases import Case, corrupted
from purify.defense import Defense
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.rows import Row, jobs_of, limited
from purify.evals.core import mode
from purify.evals.core.defenses import defense_settings
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import load_inputs
from purify.evals.corruptions import show
from purify.evals.corruptions.files import CorruptionFiles
from purify.evals.corruptions.numbers import CLEAN, corruption_means, result_rows
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted


class CaseImages:
    """images_of of Evaluation.run: the images of the case that a row is named after.

    Made when asked for, and kept until another case is: all defences of a case come one after the
    other. make: (case, positions) -> images.
    """

    def __init__(self, clean: np.ndarray, cases: Sequence[Case], make: Callable):
        self._clean, self._make = clean, make
        self._cases = {case.name: case for case in cases}
        self._of: Case | None = None
        self._images, self._there = np.empty(0), np.empty(0, bool)

    def __call__(self, row: Row, positions: Sequence[int]) -> np.ndarray:
        case = self._cases.get(row.attack_name)
        if case is None:
            return self._clean
        if case != self._of:
            self._of, self._images = case, np.full_like(self._clean, np.nan)
            self._there = np.zeros(len(self._clean), bool)
        missing = [at for at in positions if not self._there[at]]
        if missing:
            self._images[missing] = self._make(case, missing)
            self._there[missing] = True
        return self._images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted(mode.Task):
    """Every defence, on clean images and on every case.

    source: the folder that the corrupted images were read from, '' where they are made. files: the
    hashes of what is read there. make: (case, positions) -> images.
    """

    cases: Sequence[Case]
    rows: list[Row]
    make: Callable
    source: str = ""
    files: Mapping = dataclasses.field(default_factory=dict)
    mode = "eval_corruptions"
    shown = show.SHOWN

    @property
    def asked(self) -> str:
        defenses = len({row.defense_name for row in self.rows})
        return (
            f"{counted(defenses, 'defence')}, clean and on "
            f"{counted(len(self.cases), 'corruption')} with severity, "
            f"{counted(self.num_images, 'image')}"
        )

    @property
    def title(self) -> str:
        return show.title(self.config, self.num_images, self.source, self.settings)

    @property
    def jobs(self) -> list[Job]:
        return jobs_of(self.rows)

    @functools.cached_property
    def settings(self) -> dict:
        config, cfg = self.config, self.config.corruptions
        couples = any(row.defense.couples_batch for row in self.rows)
        return {
            "cases": [case.name for case in self.cases],
            "defenses": {name: defense_settings(config, name) for name in cfg.defenses},
            "defense": {"num_runs": config.defense.num_runs, "average": config.defense.average},
            "num_images": cfg.num_images,
            "num_draws": cfg.num_draws,
            **({"batch_size": config.eval.batch_size} if couples else {}),
            **self.inputs.settings(config),
            "files": self.files,
        }

    @property
    def recorded(self) -> dict:
        return {"weights": self.settings["weights"]}

    def limited(self, max_images: int) -> "Corrupted":
        rows = limited(self.rows, max_images, self.config.eval.batch_size)
        return dataclasses.replace(self, rows=rows)

    def measure(self, engine: Engine) -> None:
        images_of = CaseImages(engine.images, self.cases, self.make)
        Evaluation(engine).measure(self.rows, images_of)

    def numbers(self, engine: Engine) -> dict:
        done = {
            (row.defense_name, row.attack_name): (row, engine.records(row.score_job))
            for row in self.rows
        }
        frost = not self.source and any(case.corruption == "frost" for case in self.cases)
        return {
            "note": show.FROST if frost else "",
            "rows": result_rows(done, self.cases, seed=self.config.seed),
            "means": corruption_means(done, self.cases, seed=self.config.seed),
            "source": self.source or None,
        }


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Evaluate, print a table, and say what was written.

    input: a folder of CIFAR-10-C's files, of TFDS's copy of them, or of others in their form, taken
        instead of corrupting.
    max_images: as of mode.run.
    """
    cfg, where = config.corruptions, dict(data_dir=config.data.dir, path=config.data.path)
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    cases = _cases(cfg)
    inputs = load_inputs(config, workdir, cfg.defenses)
    defenses = {name: inputs.defense(config, name) for name in cfg.defenses}
    available = len(inputs.labels)
    rows = plan_rows(cases, defenses, cfg.num_images, cfg.num_draws, available=available)
    inputs, hashes = inputs.first(cfg.num_images), {}
    images, indices = inputs.images, inputs.indices
    if input:
        files = CorruptionFiles(
            input, dict.fromkeys(case.corruption for case in cases), images.shape[1:]
        )
        numbers = datasets.published_positions(config.data.name, config.data.test_split, **where)
        numbers = numbers[: cfg.num_images]
        files.check(numbers, inputs.labels)
        hashes = files.hashes(numbers, cfg.severities)

    def make(case: Case, positions: Sequence[int]) -> np.ndarray:
        if input:
            return files.images([numbers[at] for at in positions], **case._asdict())
        return corrupted(config.seed, images[positions], indices[positions], case)

    task = Corrupted(
        config=config,
        inputs=inputs,
        cases=cases,
        rows=rows,
        make=make,
        source=input or "",
        files=hashes,
    )
    mode.run(task, workdir, max_images)


def plan_rows(
    cases: Sequence[Case],
    defenses: Mapping[str, Defense],
    num_images: int,
    num_draws: int,
    *,
    available: int,
) -> list[Row]:
    """A row for each defence on clean images and on every case, in this order.

    num_draws: of defences that draw. Raises ValueError for numbers that do not fit.
    """
    if not 1 <= num_images <= available:
        raise ValueError(f"config.corruptions.num_images={num_images} must be 1 to {available}")
    if num_draws < 1:
        raise ValueError(f"config.corruptions.num_draws={num_draws} must be at least 1")
    if not defenses:
        raise ValueError("config.corruptions.defenses is empty; name at least one purifier")
    return [
        Row(
            *(name, case, defense, None, None, {}, num_images),
            num_draws=num_draws if defense.purifier.stochastic else 1,
        )
        for case in (CLEAN, *(case.name for case in cases))
        for name, defense in defenses.items()
    ]


def _cases(cfg) -> list[Case]:
    """What config.corruptions asks for, in the order of CORRUPTIONS."""
    for name in cfg.names:
        choose("config.corruptions.names entry", CORRUPTIONS, name)
    if not cfg.severities or not set(cfg.severities) <= set(SEVERITIES):
        raise ValueError(
            f"config.corruptions.severities={tuple(cfg.severities)} must be some of {SEVERITIES}"
        )
    names = [name for name in CORRUPTIONS if name in cfg.names or not cfg.names]
    return [Case(name, severity) for name in names for severity in sorted(set(cfg.severities))]
