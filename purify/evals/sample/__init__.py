"""--mode=sample: what the score model has learnt: samples, and the paths of purified images."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from purify.evals.core import mode
from purify.evals.core.defenses import (
    build_purifier,
    defense_settings,
    network_run,
    purifier_options,
)
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import Inputs, load_inputs, seen
from purify.evals.sample import show
from purify.evals.sample.measure import (
    SAMPLES,
    ShownPath,
    beside_of,
    measure_path,
    measure_samples,
    path_job,
    path_shape,
    samples_job,
)
from purify.evals.sample.numbers import numbers
from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted
from purify.saving.settings import read_settings

STARTS = ("noised", "prior")
GREY = 0.5
SAMPLER_FIELDS = ("sigma_max", "sigma_min", "num_levels", "steps_per_level", "step_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled(mode.Task):
    """Samples around centres, if there is a sampler, and each path of each followed image.

    given: the images are not those of the test split. taken: how many of the centres, and of the
    followed images.
    """

    sampler: AnnealedLangevin | None
    centres: Inputs
    paths: list[ShownPath]
    followed: Inputs
    given: bool
    taken: int
    mode = "sample"
    shown = show.SHOWN

    @property
    def asked(self) -> str:
        centres, followed = self.chosen
        asked = counted(len(centres.labels) if self.sampler else 0, "sample")
        if self.sampler:
            asked += f" of {counted(self.sampler.nfe, 'network evaluation')} each"
        paths, images = len(self.paths), len(followed.labels)
        return f"{asked}, {counted(paths, 'path')} of {counted(images, 'image')}"

    @property
    def title(self) -> str:
        data = self.config.data
        return f"{data.name} {data.test_split}: samples and paths"

    @property
    def chosen(self) -> tuple[Inputs, Inputs]:
        """(centres, followed images) that are taken."""
        return self.centres.first(self.taken), self.followed.first(self.taken)

    @property
    def jobs(self) -> list[Job]:
        jobs = []
        if self.sampler:
            jobs.append(samples_job(self.sampler, self.centres, self.taken))
        given = self.followed, self.taken, self.inputs.score
        return [*jobs, *(path_job(path, *given) for path in self.shown_paths)]

    @property
    def shown_paths(self) -> list[ShownPath]:
        """None where there are no images to follow."""
        return self.paths if len(self.followed.labels) else []

    @functools.cached_property
    def settings(self) -> dict:
        config, sampler = self.config, None
        if self.sampler:
            fields = {field: getattr(self.sampler, field) for field in SAMPLER_FIELDS}
            sampler = {
                "start": config.sample.start,
                "num_images": len(self.centres.labels),
                "around": self.centres.settings(config)["images"],
                **fields,
            }
        paths = {path.name: defense_settings(config, path.name) for path in self.paths}
        return {"sampler": sampler, "purifiers": paths, **self.followed.settings(config)}

    def limited(self, max_images: int) -> "Sampled":
        return dataclasses.replace(self, taken=min(self.taken, max_images))

    def tell_seen(self) -> None:
        if self.given:
            return
        centres, followed = self.chosen
        noised = centres.indices if self.sampler and self.config.sample.start == "noised" else []
        positions = sorted({*noised, *followed.indices})
        seen(self.config.data, self.inputs, positions).tell()

    def mend(self, engine: Engine) -> None:
        shapes = {path.row: path_shape(path, self.followed) for path in self.paths}
        for job in self.jobs:
            images = self.centres if job.name == SAMPLES else self.followed
            shape = shapes.get(job.name, images.images.shape)
            every = range(len(images.indices))
            beside_of(engine, images).forget_gone(job.name, job.name, shape, every)

    def measure(self, engine: Engine) -> None:
        if self.sampler:
            measure_samples(engine, self.sampler, self.centres, self.taken)
        for path in self.shown_paths:
            measure_path(engine, path, self.followed, self.taken, self.inputs.score)

    def numbers(self, engine: Engine) -> dict:
        centres, followed = self.chosen
        given = self.sampler, self.settings["sampler"], centres
        return numbers(engine.store, *given, self.shown_paths, followed)

    def write(self, engine: Engine, results: Mapping) -> list[Path]:
        store, paths = engine.store, []
        if self.sampler:
            noised, chosen = self.config.sample.start == "noised", slice(self.taken)
            arrays = show.samples_of(store, self.centres)[chosen], self.centres.take(chosen)
            paths += show.write_samples(
                store.folder, self.sampler, *arrays, engine.seed, noised=noised
            )
        for path in self.shown_paths:
            paths += show.draw_path(store, path, self.followed, self.taken)
        return paths


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Sample, follow purifiers step by step, and write images and figures.

    input: an .npz of labelled images, for example attacked ones, taken in place of the test split.
    max_images: as of mode.run.
    """
    cfg = config.sample
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    inputs = load_inputs(config, workdir, cfg.purifiers, input, needed=("score",))
    sampler = _sampler(config, inputs, workdir / "score")
    paths = _paths(config, inputs)
    followed = inputs.take(_positions(cfg, len(inputs.labels)))
    if not sampler and not (paths and len(followed.labels)):
        raise ValueError(
            "config.sample asks for nothing: num_images, or purifiers and positions, must not be "
            "empty"
        )
    centres = _centres(cfg, inputs)
    task = Sampled(
        config=config,
        inputs=inputs,
        sampler=sampler,
        centres=centres,
        paths=paths,
        followed=followed,
        given=bool(input),
        taken=max(len(centres.labels), len(followed.labels)),
    )
    mode.run(task, workdir, max_images)


def _sampler(config, inputs: Inputs, run: Path) -> AnnealedLangevin | None:
    """What config.sample asks for, within what the score model in `run` was trained on; None if no
    samples are asked for."""
    cfg, trained = config.sample, read_settings(run)
    if cfg.num_images < 0:
        raise ValueError(f"config.sample.num_images={cfg.num_images} must not be negative")
    choose("config.sample.start", dict.fromkeys(STARTS), cfg.start)
    if not cfg.num_images:
        return None
    learnt = trained.get("perturbation", {"name": "gaussian"})["name"]
    if learnt != "gaussian":
        raise ValueError(
            f"the score model in {run} has learnt to undo {learnt!r}, not Gaussian noise: there is "
            "no score to sample by; --config.sample.num_images=0 shows paths alone"
        )
    # Imported weights come without noise levels: those of the config are theirs.
    levels = {
        field: trained.get(field, config.score[field])
        for field in ("sigma_max", "sigma_min", "num_levels")
    }
    asked = levels | {field: cfg[field] for field in levels if cfg[field]}
    if asked["sigma_max"] > levels["sigma_max"] or asked["sigma_min"] < levels["sigma_min"]:
        raise ValueError(
            f"config.sample.sigma_max={asked['sigma_max']} and sigma_min={asked['sigma_min']} must "
            f"lie within the noise that the score model in {run} was trained on, "
            f"{levels['sigma_max']} to {levels['sigma_min']}"
        )
    # Half the diagonal of the cube that images fill: no image is further from grey.
    hiding = 0.5 * math.sqrt(inputs.images[0].size)
    if cfg.start == "prior" and asked["sigma_max"] < hiding:
        raise ValueError(
            f"config.sample.start='prior' needs noise in which every image is lost, sigma_max >= "
            f"{hiding:.3g}, not {asked['sigma_max']}: start from 'noised' images, or train another "
            f"score model with --config.score.sigma_max={hiding:.3g} or more"
        )
    step_size = cfg.step_size or balanced_step_size(**asked, steps_per_level=cfg.steps_per_level)
    steps = dict(steps_per_level=cfg.steps_per_level, step_size=step_size)
    return AnnealedLangevin(inputs.score, **asked, **steps)


def _centres(cfg, inputs: Inputs) -> Inputs:
    """What samples start around."""
    if cfg.start == "noised":
        if cfg.num_images > (available := len(inputs.labels)):
            raise ValueError(
                f"config.sample.num_images={cfg.num_images} must be at most {available}, the "
                "images that there are to start from; or start from the 'prior'"
            )
        return inputs.first(cfg.num_images)
    images = np.full((cfg.num_images, *inputs.images.shape[1:]), GREY, np.float32)
    none = np.zeros(cfg.num_images, int)
    return dataclasses.replace(
        inputs, images=images, labels=none, indices=np.arange(cfg.num_images)
    )


def _paths(config, inputs: Inputs) -> list[ShownPath]:
    paths = []
    for name in config.sample.purifiers:
        purifier_options(config, name, field="config.sample.purifiers")
        purifier = build_purifier(config, name, inputs.networks)
        if getattr(purifier, "axis_name", None) is not None:
            raise ValueError(
                f"config.sample.purifiers: {name} decides a batch together, so that an image alone "
                "has no path"
            )
        classifier = inputs.networks.get(network_run(config, name, "classifier"))
        paths.append(ShownPath(name, purifier, classifier))
    return paths


def _positions(cfg, available: int) -> np.ndarray:
    positions = np.array(cfg.positions, int)
    if len(set(positions.tolist())) < len(positions) or not all(
        0 <= at < available for at in positions
    ):
        raise ValueError(
            f"config.sample.positions={tuple(cfg.positions)} must be different numbers from 0 to "
            f"{available - 1}"
        )
    return positions
