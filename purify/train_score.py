"""--mode=train: the energy-based model's score, by denoising score matching."""

import functools
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from purify.losses import dsm, noise_levels
from purify.networks import Score
from purify.train import LossFn, run_training


def run(config, workdir: Path) -> None:
    cfg = config.score
    sigmas = noise_levels(cfg.sigma_max, cfg.sigma_min, cfg.num_levels)

    def make_loss_fn(network: nn.Module) -> LossFn:
        def loss_fn(variables, key, image, label):
            score = Score(variables, network, cfg.head, cfg.train.precision)
            loss, metrics = dsm(score, key, image, sigmas=jnp.asarray(sigmas))
            return loss, metrics, {}

        return loss_fn

    run_training(
        "score",
        config,
        workdir,
        make_loss_fn,
        extra_settings={k: cfg[k] for k in ("head", "sigma_max", "sigma_min", "num_levels")},
        name_metrics=functools.partial(name_by_sigma, sigmas),
    )


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
