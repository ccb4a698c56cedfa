"""--mode=detect: how well statistics of an image tell that it was attacked, by attackers who do not
know of them and by attackers who do."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from attacks.gradients import attacked_purifier
from purify.data import datasets
from purify.data.corruptions import CORRUPTIONS, SEVERITIES
from purify.detectors import STATISTICS, Statistic, build_statistic
from purify.evals.attacked.rows import Row
from purify.evals.core.defenses import defense_settings, purifier_options
from purify.evals.core.inputs import Inputs, load_inputs, tell_seen, without
from purify.evals.core.store import Store
from purify.evals.core.terminal import stopped_early, telling_done_before
from purify.evals.corruptions import Case, corrupted
from purify.evals.detect import show
from purify.evals.detect.measure import (
    RATE,
    Calibrated,
    attack_rows,
    calibrate,
    measure_images,
    noisy,
)
from purify.evals.detect.roc import threshold
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted, shown
from purify.saving.checkpoint import ROLES

# What an attack on a detector cannot have of its own.
_TAKEN = ("surrogate", "direction", "penalty", "starts", "estimate", "fixed_key")


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Attack, measure the statistics, print a table, and write results.json and the curves.

    max_images: attack and measure so many test images at most, for a first look; a later run, with
        more of them or without a limit, goes on from there.
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
    statistics = _statistics(config, inputs)
    settings = _settings(config, inputs, calibration, statistics)
    threshold(np.zeros(len(calibration.labels)), RATE)  # are there enough?
    taken = min(cfg.num_images, max_images or cfg.num_images)
    _rows(config, inputs, {}, taken)  # does the attack fit?
    stopped = stopped_early(taken, cfg.num_images, max_images)
    with Store(workdir, "detect", settings, stopped=stopped) as store:
        print(
            f"{counted(len(statistics), 'statistic')}, set on "
            f"{counted(len(calibration.labels), 'natural image')}, on {counted(taken, 'other')} "
            f"and on what attacks make of them; into {shown(store.folder)}"
        )
        tell_seen(config.data, inputs, range(taken))
        split = cfg.calibration_split
        seen = tell_seen(config.data, inputs, range(len(calibration.labels)), split)
        by_itself, evaluation = (each.evaluation(config, store) for each in (calibration, inputs))
        natural, draws = {"calibration": calibration.images}, _num_draws(cfg)
        count = len(calibration.labels)
        # Both sign once, and the first of them must speak for the larger batches.
        if len(store.records("statistics:calibration")) < count:
            evaluation.sign(*map(evaluation.size, (count, taken)))
        with telling_done_before(store):
            values = measure_images(
                *(by_itself, statistics, natural, count, draws), stream="calibration"
            )
            calibrated = calibrate(statistics, values["calibration"])
            rows = _rows(config, inputs, calibrated, taken)
            evaluation.run(list(rows.values()))
            sets = {"clean": inputs.images, **_natural(config, inputs.first(taken))}
            attacks = [(name, row) for name, row in rows.items() if row.attack]
            sets |= {name: evaluation.attacked_images(row) for name, row in attacks}
            values |= measure_images(evaluation, statistics, sets, taken, draws)
        show.write(config, evaluation, rows, values, settings, seen, inputs)


def _check(config) -> None:
    """ValueError for what config.detect cannot mean."""
    cfg = config.detect
    for field in ("purifier", "defense"):
        purifier_options(config, cfg[field], field=f"config.detect.{field}")
    for name in cfg.statistics:
        choose("config.detect.statistics entry", STATISTICS, name)
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
    names = config.detect.statistics or [n for n in STATISTICS if has or n != "energy"]
    defense = inputs.defense(config, config.detect.purifier)
    defense = dataclasses.replace(defense, purifier=attacked_purifier("exact", defense.purifier))
    return {name: build_statistic(name, defense, inputs.score) for name in names}


def _num_draws(cfg) -> int:
    """Of what draws: half of them choose the strongest attack, half are scored."""
    return 2 * cfg.num_draws


def _rows(
    config, inputs: Inputs, calibrated: Mapping[str, Calibrated], num_images: int
) -> dict[str, Row]:
    """The defence behind the detector on clean images and under every attack, by the attack."""
    cfg = config.detect
    defense = inputs.defense(config, cfg.defense)
    num_draws = _num_draws(cfg) if defense.purifier.stochastic else 1
    clean = Row(cfg.defense, "clean", defense, None, None, {}, num_images, num_draws)
    return {"clean": clean} | attack_rows(
        cfg.defense,
        defense,
        cfg.attack,
        config.attacks[cfg.attack].to_dict(),
        calibrated,
        weights=tuple(cfg.weights),
        eot_samples=cfg.eot_samples,
        num_images=num_images,
        num_draws=num_draws,
    )


def _natural(config, inputs: Inputs) -> dict[str, np.ndarray]:
    """Images that are not clean, but nobody's attack: noise as large as an attack, corruptions."""
    cfg, attack = config.detect, config.attacks[config.detect.attack]
    images, indices = inputs.images, inputs.indices
    made = {"noise": noisy(config.seed, images, indices, attack.norm, attack.eps)}
    for name in cfg.corruptions:
        made[name] = corrupted(config.seed, images, indices, Case(name, cfg.severity))
    return made


def _settings(
    config, inputs: Inputs, calibration: Inputs, statistics: Mapping[str, Statistic]
) -> dict:
    """Everything that decides the results."""
    cfg = config.detect.to_dict()
    described = {name: defense_settings(config, name) for name in (cfg["defense"], cfg["purifier"])}
    return {
        "detect": cfg | {"statistics": list(statistics)},
        "purifiers": described,
        "defense": {"num_runs": config.defense.num_runs, "average": config.defense.average},
        "attack": without(config.attacks[cfg["attack"]].to_dict(), "chunk"),
        "calibration_images": calibration.settings(config)["images"],
        **inputs.settings(config),
    }
