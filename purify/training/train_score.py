"""--mode=train: the energy-based model's score, by denoising score matching."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify.data import datasets
from purify.models.networks import Score
from purify.random import check_seed
from purify.saving.checkpoint import run_folder
from purify.saving.settings import read_settings
from purify.training import perturbations
from purify.training.loop import LossFn, run_training
from purify.training.losses import dsm, noise_levels
from purify.training.perturbations import Perturbation
from purify.types import Array, Image, Key


def run(config, workdir: Path) -> None:
    cfg = config.score
    perturbation = perturbations.build(cfg.perturbation, **cfg.get(cfg.perturbation, {}))
    learnt = {"name": cfg.perturbation, **dataclasses.asdict(perturbation)}
    settings: dict[str, object] = {"head": cfg.head}
    noise: Callable[[Key, Image], Array] = perturbation
    if perturbation.has_levels:
        settings |= {field: cfg[field] for field in ("sigma_max", "sigma_min", "num_levels")}
        sigmas = noise_levels(cfg.sigma_max, cfg.sigma_min, cfg.num_levels)
    else:
        learnt["sigma_eff"] = _effective_sigma(config, perturbation, run_folder(workdir, "score"))
        sigmas = np.float32([learnt["sigma_eff"]])
        noise = perturbations.scaled(perturbation, learnt["sigma_eff"])
    if cfg.perturbation != "gaussian":  # which is what a run that records none has learnt from
        settings["perturbation"] = learnt

    def make_loss_fn(network: nn.Module) -> LossFn:
        def loss_fn(variables, key, image, label):
            score = Score(variables, network, cfg.head, cfg.train.precision)
            loss, metrics = dsm(score, key, image, sigmas=jnp.asarray(sigmas), noise=noise)
            return loss, metrics, {}

        return loss_fn

    run_training(
        "score",
        config,
        workdir,
        make_loss_fn,
        extra_settings=settings,
        name_metrics=functools.partial(name_by_sigma, sigmas),
    )


def _effective_sigma(config, perturbation: Perturbation, folder: Path) -> float:
    """sigma_eff of the run in `folder`, as recorded there, or measured on the training images.

    Not measured again for a run that goes on: on another machine it would be rounded differently.
    """
    if (folder / "settings.json").exists():
        recorded = read_settings(folder).get("perturbation", {})
        if "sigma_eff" in recorded:
            return recorded["sigma_eff"]
    cfg, seed = config.data, check_seed(config.seed, "config.seed")
    dataset = datasets.load(cfg.name, cfg.train_split, data_dir=cfg.dir, path=cfg.path)
    return perturbations.effective_sigma(perturbation, dataset.images, seed=seed)


def name_by_sigma(sigmas: np.ndarray, report: dict, num_bins: int = 8) -> dict[str, float]:
    """Replaces loss_by_level [L] by loss_by_sigma/<sigma>: means over num_bins runs of levels.

    A level that no image has drawn is NaN, and left out of its mean.
    """
    named = dict(report)
    by_level = named.pop("loss_by_level")
    for levels in np.array_split(np.arange(len(sigmas)), min(num_bins, len(sigmas))):
        if not np.all(np.isnan(by_level[levels])):
            centre = np.exp(np.mean(np.log(sigmas[levels])))
            named[f"loss_by_sigma/{centre:.3g}"] = np.nanmean(by_level[levels])
    return named
