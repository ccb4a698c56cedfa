"""--mode=sample: what the score model has learnt: samples, and the paths of purified images."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from purify.evals.core.defenses import (
    build_purifier,
    defense_settings,
    network_run,
    purifier_options,
)
from purify.evals.core.inputs import Inputs, load_inputs, tell_seen
from purify.evals.core.store import Store
from purify.evals.core.terminal import telling_done_before
from purify.evals.sample import show
from purify.evals.sample.measure import Sampling, ShownPath
from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted, shown
from purify.saving.settings import read_settings

STARTS = ("noised", "prior")
GREY = 0.5
SAMPLER_FIELDS = ("sigma_max", "sigma_min", "num_levels", "steps_per_level", "step_size")


def run(config, workdir: Path, input: str | None = None) -> None:
    """Sample, follow purifiers step by step, and write images and figures.

    input: an .npz of labelled images, for example attacked ones, taken in place of the test split.
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
    settings = _settings(config, sampler, centres, paths, followed)
    with Store(workdir, "sample", settings) as store:
        asked = counted(len(centres.labels) if sampler else 0, "sample")
        if sampler:
            asked += f" of {counted(sampler.nfe, 'network evaluation')} each"
        of = counted(len(followed.labels), "image")
        print(f"{asked}, {counted(len(paths), 'path')} of {of}; into {shown(store.folder)}")
        if not input:
            noised = centres.indices if sampler and cfg.start == "noised" else []
            tell_seen(config.data, inputs, sorted({*noised, *followed.indices}))
        sampling = Sampling(
            store, inputs.score, seed=config.seed, batch_size=config.eval.batch_size
        )
        with telling_done_before(store):
            sampling.run(sampler, centres, paths, followed)
        show.write(config, store, sampler, centres, paths, followed, settings)


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


def _settings(
    config,
    sampler: AnnealedLangevin | None,
    centres: Inputs,
    paths: Sequence[ShownPath],
    followed: Inputs,
) -> dict:
    """Everything that decides samples and paths."""
    cfg = config.sample
    return {
        "sampler": sampler
        and {
            "start": cfg.start,
            "num_images": len(centres.labels),
            "around": centres.settings(config)["images"],
            **{field: getattr(sampler, field) for field in SAMPLER_FIELDS},
        },
        "purifiers": {path.name: defense_settings(config, path.name) for path in paths},
        **followed.settings(config),
    }
