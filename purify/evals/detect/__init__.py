"""--mode=detect: how well statistics of an image tell that it was attacked, by attackers who do not
know of them and by attackers who do."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from attacks.gradients import attacked_purifier
from purify.data import datasets
from purify.data.corruptions import CORRUPTIONS, SEVERITIES
from purify.data.corruptions.cases import Case, corrupted
from purify.detectors import STATISTICS as KNOWN
from purify.detectors import Statistic, build_statistic
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.rows import Row, jobs_of
from purify.evals.core import mode
from purify.evals.core.defenses import defense_settings, purifier_options
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import Inputs, Seen, load_inputs, seen, without
from purify.evals.detect import show
from purify.evals.detect.measure import (
    RATE,
    STATISTICS,
    Calibrated,
    attack_rows,
    calibrate,
    forget_others,
    measure_images,
    noisy,
    statistics_job,
    values_of,
)
from purify.evals.detect.numbers import Values, numbers
from purify.evals.detect.roc import threshold
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted
from purify.saving.checkpoint import ROLES

# What an attack on a detector cannot have of its own.
_TAKEN = ("surrogate", "direction", "penalty", "starts", "estimate", "fixed_key")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detected(mode.Task):
    """Every statistic on clean, natural and attacked images.

    calibration: the images that set the thresholds. taken: how many images of `inputs`.
    """

    calibration: Inputs
    statistics: Mapping[str, Statistic]
    taken: int
    mode = "detect"
    shown = show.SHOWN

    @property
    def asked(self) -> str:
        return (
            f"{counted(len(self.statistics), 'statistic')}, set on "
            f"{counted(len(self.calibration.labels), 'natural image')}, on "
            f"{counted(self.taken, 'other')} and on what attacks make of them"
        )

    @property
    def title(self) -> str:
        natural = len(self.calibration.labels)
        return show.title(self.config, self.planned, natural)

    @property
    def num_images(self) -> int:
        return self.taken

    @property
    def num_draws(self) -> int:
        """Of what draws: half of them choose the strongest attack, half are scored."""
        return 2 * self.config.detect.num_draws

    @property
    def jobs(self) -> list[Job]:
        attacked = [name for name, row in self.planned.items() if row.attack]
        natural = ("clean", "noise", *self.config.detect.corruptions)
        return [
            self.calibration_job,
            *jobs_of(list(self.planned.values())),
            *(self.statistics_job(name) for name in (*natural, *attacked)),
        ]

    @property
    def calibration_job(self) -> Job:
        indices = tuple(self.calibration.indices.tolist())
        job = self.statistics_job("calibration")
        return dataclasses.replace(job, num_images=len(indices), indices=indices)

    def statistics_job(self, name: str) -> Job:
        """Of images of that name."""
        return statistics_job(name, self.statistics, self.taken, self.num_draws)

    @functools.cached_property
    def settings(self) -> dict:
        config, cfg = self.config, self.config.detect.to_dict()
        names = cfg["defense"], cfg["purifier"]
        return {
            "detect": cfg | {"statistics": list(self.statistics)},
            "purifiers": {name: defense_settings(config, name) for name in names},
            "defense": {"num_runs": config.defense.num_runs, "average": config.defense.average},
            "attack": without(config.attacks[cfg["attack"]].to_dict(), "chunk"),
            "calibration_images": self.calibration.settings(config)["images"],
            **self.inputs.settings(config),
        }

    def limited(self, max_images: int) -> "Detected":
        return dataclasses.replace(self, taken=min(self.taken, max_images))

    @functools.cached_property
    def planned(self) -> dict[str, Row]:
        """Rows of the names and costs that those after calibration have."""
        return self.rows({name: Calibrated(s, 0.0, 1.0) for name, s in self.statistics.items()})

    def rows(self, calibrated: Mapping[str, Calibrated]) -> dict[str, Row]:
        """The defence behind the detector on clean images and under every attack, by the attack.

        calibrated: by statistic.
        """
        config, cfg = self.config, self.config.detect
        defense = self.inputs.defense(config, cfg.defense)
        num_draws = self.num_draws if defense.purifier.stochastic else 1
        clean = Row(cfg.defense, "clean", defense, None, None, {}, self.taken, num_draws)
        return {"clean": clean} | attack_rows(
            cfg.defense,
            defense,
            cfg.attack,
            config.attacks[cfg.attack].to_dict(),
            calibrated,
            weights=tuple(cfg.weights),
            eot_samples=cfg.eot_samples,
            num_images=self.taken,
            num_draws=num_draws,
        )

    @functools.cached_property
    def calibration_seen(self) -> Seen:
        split, positions = self.config.detect.calibration_split, range(len(self.calibration.labels))
        return seen(self.config.data, self.inputs, positions, split)

    def tell_seen(self) -> None:
        super().tell_seen()
        self.calibration_seen.tell()

    def mend(self, engine: Engine) -> None:
        for job in self.jobs:
            if job.name.startswith(STATISTICS):
                forget_others(engine.store, job.name, self.statistics, self.num_draws)
        Evaluation(engine).forget_lost(list(self.planned.values()))

    def measure(self, engine: Engine) -> None:
        natural, measured = self.calibration, functools.partial(measure_images, engine)
        beside = engine.on(natural.images, natural.labels, natural.indices)
        given = self.statistics, self.num_draws
        measured(beside, self.calibration_job, natural.images, *given, stream="calibration")
        rows = self.rows(self.calibrated(engine))
        evaluation = Evaluation(engine)
        evaluation.measure(list(rows.values()))
        sets = {"clean": engine.images, **_natural(self.config, self.inputs.first(self.taken))}
        attacked = {name: row for name, row in rows.items() if row.attack}
        sets |= {name: evaluation.attacked_images(row) for name, row in attacked.items()}
        for name, images in sets.items():
            measured(engine, self.statistics_job(name), images, *given)

    def calibrated(self, engine: Engine) -> dict[str, Calibrated]:
        """The statistics, by what was measured of the calibration images."""
        return calibrate(self.statistics, values_of(engine, self.calibration_job, self.statistics))

    def values(self, engine: Engine) -> Values:
        """What was measured: images -> statistic -> [n, D]."""
        jobs = [job for job in self.jobs if job.name.startswith(STATISTICS)]
        return {
            job.name.removeprefix(STATISTICS): values_of(engine, job, self.statistics)
            for job in jobs
        }

    def numbers(self, engine: Engine) -> dict:
        by = self.calibration_seen.by
        entries = numbers(
            self.values(engine),
            {name: (row, engine.records(row.score_job)) for name, row in self._final(engine)},
            num_draws=self.config.detect.num_draws,
            seed=self.config.seed,
        )
        return {**entries, "calibration_seen_by": by, "note": show.seen_note(by)}

    def _final(self, engine: Engine) -> Iterable[tuple[str, Row]]:
        return self.rows(self.calibrated(engine)).items()

    def write(self, engine: Engine, results: Mapping) -> list[Path]:
        right = {
            name: np.array([record["correct"] for record in engine.records(row.score_job)])
            for name, row in self._final(engine)
        }
        folder = engine.store.folder / "figures"
        return show.draw_curves(folder, results, self.values(engine), right)


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Attack, measure the statistics, print a table, and write results.json and the curves.

    max_images: as of mode.run, of test images.
    """
    cfg = config.detect
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    _check(config)
    inputs = load_inputs(config, workdir, [cfg.defense, cfg.purifier], needed=ROLES)
    for field in ("purifier", "defense"):
        if inputs.defense(config, cfg[field]).couples_batch:
            raise ValueError(
                f"config.detect.{field}={cfg[field]!r} decides a batch together: what is measured "
                "of an image would depend on its neighbours"
            )
    available = len(inputs.labels)
    if not 1 <= cfg.num_images <= available:
        raise ValueError(f"config.detect.num_images={cfg.num_images} must be 1 to {available}")
    inputs = inputs.first(cfg.num_images)
    calibration = inputs.of_split(config, cfg.calibration_split)
    _check_apart(config)
    threshold(np.zeros(len(calibration.labels)), RATE)  # are there enough?
    task = Detected(
        config=config,
        inputs=inputs,
        calibration=calibration,
        statistics=_statistics(config, inputs),
        taken=cfg.num_images,
    )
    mode.run(task, workdir, max_images)


def _check(config) -> None:
    """ValueError for what config.detect cannot mean."""
    cfg = config.detect
    for field in ("purifier", "defense"):
        purifier_options(config, cfg[field], field=f"config.detect.{field}")
    for name in cfg.statistics:
        choose("config.detect.statistics entry", KNOWN, name)
    for name in cfg.corruptions:
        choose("config.detect.corruptions entry", CORRUPTIONS, name)
    if cfg.severity not in SEVERITIES:
        raise ValueError(f"config.detect.severity={cfg.severity} must be one of {SEVERITIES}")
    if not all(0 < weight < math.inf for weight in cfg.weights):
        raise ValueError(
            f"config.detect.weights={tuple(cfg.weights)} must all be positive and finite"
        )
    for field in ("eot_samples", "num_draws"):
        if cfg[field] < 1:
            raise ValueError(f"config.detect.{field}={cfg[field]} must be at least 1")
    options = choose("config.detect.attack", config.attacks.to_dict(), cfg.attack)
    own = [field for field in _TAKEN if options.get(field)]
    if options["attack"] not in ("pgd", "apgd") or own:
        having = f" with {', '.join(own)}" if own else ""
        raise ValueError(
            f"config.detect.attack={cfg.attack!r} does not fit: it is {options['attack']}{having}; "
            f"pgd and apgd without {', '.join(_TAKEN)} do"
        )


def _check_apart(config) -> None:
    """ValueError where a threshold would be set by images that it is then judged on."""
    cfg, where = config.data, dict(data_dir=config.data.dir, path=config.data.path)
    split, count = config.detect.calibration_split, config.detect.num_images
    judged = datasets.members(cfg.name, cfg.test_split, **where)[:count]
    if shared := set(judged) & set(datasets.members(cfg.name, split, **where)):
        raise ValueError(
            f"config.detect.calibration_split={split!r} shares {counted(len(shared), 'image')} "
            f"with the first {count} of {cfg.test_split!r}; take another split, or a smaller "
            "num_images"
        )


def _statistics(config, inputs: Inputs) -> dict[str, Statistic]:
    """Those that are asked for, or all that there are of this score model; of a purifier as it can
    be differentiated, which knowing attackers do."""
    has = inputs.score.head == "energy"
    names = config.detect.statistics or [n for n in KNOWN if has or n != "energy"]
    defense = inputs.defense(config, config.detect.purifier)
    defense = dataclasses.replace(defense, purifier=attacked_purifier("exact", defense.purifier))
    return {name: build_statistic(name, defense, inputs.score) for name in names}


def _natural(config, inputs: Inputs) -> dict[str, np.ndarray]:
    """Images that are not clean, but nobody's attack: noise as large as an attack, corruptions."""
    cfg, attack = config.detect, config.attacks[config.detect.attack]
    images, indices = inputs.images, inputs.indices
    made = {"noise": noisy(config.seed, images, indices, attack.norm, attack.eps)}
    for name in cfg.corruptions:
        made[name] = corrupted(config.seed, images, indices, Case(name, cfg.severity))
    return made
