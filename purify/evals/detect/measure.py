"""What a detector is measured on: attacked images, natural ones, and the statistics of both."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from attacks.gradients import attacked_purifier
from attacks.norms import NORMS
from purify.data.corruptions import CORRUPTIONS
from purify.defense import Defense
from purify.detectors import Passes, Penalty, Statistic
from purify.evals.attacked.plan import build_attacks
from purify.evals.attacked.rows import Row
from purify.evals.attacked.strongest import MIN_SELECTION_DRAWS
from purify.evals.core.engine import Compute, Cost, Engine, Job
from purify.evals.core.sealed_arrays import seal, sealed
from purify.evals.core.store import Store
from purify.evals.detect.roc import threshold
from purify.random import image_keys
from purify.runtime import parallel
from purify.runtime.compilation import jit
from purify.types import Array, Key

STATISTICS = "statistics:"  # before the name of the images, in those of the records
UNKNOWING, JOINT = "unknowing", "joint"
RATE = 0.05  # the false-positive rate of the threshold that attackers know
JOINT_TARGETS = 9  # classes that a joint attack aims at, one after the other


class Calibrated(NamedTuple):
    """A statistic, the threshold that the attacker knows, and the standard deviation on calibration
    images, in units of which the attacker weighs an excess."""

    statistic: Statistic
    threshold: float
    scale: float


def calibrate(
    statistics: Mapping[str, Statistic], natural: Mapping[str, np.ndarray]
) -> dict[str, Calibrated]:
    """Each with what its values on natural images, [n, D], make of it: the first draw of each."""
    calibrated = {}
    for name, statistic in statistics.items():
        values = natural[name][:, 0]
        calibrated[name] = Calibrated(statistic, threshold(values, RATE), values.std() or 1.0)
    return calibrated


@jit
def measure(
    statistics: Mapping[str, Statistic], keys: Key, images: Array, numbers: Array
) -> dict[str, Array]:
    """The statistics of images [n, H, W, C] with keys [n]: name -> [n, D], of the draws of these
    numbers [D]; D is 1 where nothing is drawn."""

    def one(statistic: Statistic, key: Key, image: Array) -> Array:
        if not statistic.stochastic:
            return statistic(key, image)[None]
        return jax.vmap(lambda i: statistic(jax.random.fold_in(key, i), image))(numbers)

    def all_of(key: Key, image: Array) -> dict[str, Array]:
        return {name: one(statistic, key, image) for name, statistic in statistics.items()}

    return jax.vmap(all_of, axis_name="batch")(keys, images)


def statistics_job(
    name: str, statistics: Mapping[str, Statistic], num_images: int, num_draws: int
) -> Job:
    """The statistics of images of that name; num_draws: of those that draw."""
    nfe = sum(each.nfe * (num_draws if each.stochastic else 1) for each in statistics.values())
    return Job(f"{STATISTICS}{name}", num_images, Cost(0, nfe), f"statistics of {name}")


def measure_images(
    engine: Engine,
    beside: Engine,
    job: Job,
    images: np.ndarray,
    statistics: Mapping[str, Statistic],
    num_draws: int,
    *,
    stream: str = "detection",
) -> None:
    """The statistics of images [n, H, W, C], in the order of `beside`, whose job it is.

    stream: of their keys.
    """
    name = job.name.removeprefix(STATISTICS)
    beside.forget_stale(job.name, name, images)

    def begin(pending: Sequence[int]) -> Compute:
        beside.check_there(images, pending, name)
        on_devices, size = parallel.replicate(dict(statistics)), beside.size(job)
        numbers = np.arange(num_draws)

        def compute(at: np.ndarray) -> list[dict]:
            keys, batch, _ = beside.batch(at, images, size, stream)
            found, _ = engine.timed(measure, on_devices, keys, batch, numbers)
            for key in statistics:
                what = f"values of the statistic {key!r} of {name} images"
                beside.check_finite(found[key][: len(at)], at, what)
            records = [
                {"index": beside.index(position)}
                | {key: found[key][i].tolist() for key in statistics}
                for i, position in enumerate(at)
            ]
            return sealed(records, {name: [seal(images[position]) for position in at]})

        return compute

    engine.do(job, begin, doing="measuring")


def values_of(
    engine: Engine, job: Job, statistics: Mapping[str, Statistic]
) -> dict[str, np.ndarray]:
    """statistic -> [n, D], as they were measured."""
    records = engine.records(job)
    return {key: np.array([record[key] for record in records]) for key in statistics}


def forget_others(
    store: Store, row: str, statistics: Mapping[str, Statistic], num_draws: int
) -> None:
    """Put records of that row aside, to be computed again, which lack one of the statistics or have
    not all draws of it: they are no records of this evaluation."""
    draws = {name: num_draws if each.stochastic else 1 for name, each in statistics.items()}
    wrong = [
        index
        for index, record in store.records(row).items()
        if any(len(record.get(name, ())) != count for name, count in draws.items())
    ]
    store.forget(row, wrong, "not all draws of all statistics")


def noisy(seed: int, images: np.ndarray, indices: np.ndarray, norm: str, eps: float) -> np.ndarray:
    """A random point of the attack's ball and of [0, 1] around each of images [n, H, W, C]."""
    keys = image_keys(seed, indices, stream="corruption")
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, len(CORRUPTIONS))
    random = jax.vmap(lambda key, image: NORMS[norm].random(key, image, eps))
    return np.asarray(random(keys, images))


def attack_rows(
    name: str,
    defense: Defense,
    attack: str,
    options: Mapping,
    calibrated: Mapping[str, Calibrated],
    *,
    weights: tuple[float, ...],
    eot_samples: int,
    num_images: int,
    num_draws: int,
) -> dict[str, Row]:
    """The attacks by name, as rows of an evaluation: the one described by `options`, which knows of
    no detector; and for each statistic and weight c an APGD of its ball and budget, which can
    settle on the kink of the penalty as steps of one length cannot, along the exact gradient of

        margin - c max(0, statistic - threshold) / scale

    and which climbs from the images of the former as well: between the clean image and those that
    fool there may be only such that the detector sees. Where the statistic has something that can
    be fooled jointly (Statistic.joint), a targeted APGD does that, by the cross-entropy, and the
    others climb from its images, too. Of all that such an attack finds it takes what fools and
    passes most often.

    name: of the defence. attack: the name of the options. eot_samples: of the knowing attacks,
    where the defence or the statistic draws. num_draws: of the defence, where it draws.
    """

    row = functools.partial(_row, name, defense, attack, num_images=num_images, num_draws=num_draws)
    first = row(UNKNOWING, dict(options) | dict(starts=()))
    rows = {UNKNOWING: first}
    # The fields that PGD alone has.
    shared = {k: v for k, v in options.items() if k not in ("step_size", "momentum")}
    shared |= dict(attack="apgd", loss="margin")
    for statistic_name, (statistic, limit, scale) in calibrated.items():
        passes = Passes(statistic, limit)
        draws = statistic.stochastic or defense.purifier.stochastic
        knowing = shared | dict(gradient="exact", starts=[first.crafted])
        if (joint := statistic.joint()) is not None:
            aimed = shared | dict(gradient="surrogate", starts=(), targets=JOINT_TARGETS)
            joint_row = row(
                f"{statistic_name}_{JOINT}",
                aimed | dict(loss="cross_entropy"),
                attacked=joint,
                passes=passes,
                num_samples=2 * eot_samples,  # one of two things is drawn, too
            )
            rows[joint_row.attack_name] = joint_row
            knowing["starts"] = [first.crafted, joint_row.crafted]
        for weight in weights:
            penalty = Penalty(statistic, limit, weight / scale)
            attack_name = f"{statistic_name}_{weight:g}"
            rows[attack_name] = row(
                attack_name,
                knowing,
                penalty=penalty,
                passes=passes,
                num_samples=eot_samples if draws else 0,
            )
    return rows


def _row(
    name: str,
    defense: Defense,
    attack: str,
    attack_name: str,
    options: Mapping,
    *,
    num_images: int,
    num_draws: int,
    attacked: Defense | None = None,
    penalty: Penalty | None = None,
    passes: Passes | None = None,
    num_samples: int = 0,
) -> Row:
    """The row of the attack that `options` describe, under a name of its own.

    attacked: what it attacks, the defence by default. num_samples: of its gradients, where anything
        draws, which the defence itself need not; 0 where nothing does.
    """
    if attacked is None:
        purifier = attacked_purifier(options["gradient"], defense.purifier)
        attacked = dataclasses.replace(defense, purifier=purifier)
    built: Any = build_attacks(attack, options, attacked)[attack]
    if num_samples:
        several = dict(eot_samples=num_samples, selection_draws=MIN_SELECTION_DRAWS)
        built = dataclasses.replace(built, **several, remeasure=True)
    return Row(
        *(name, attack_name, defense, built, attacked, options, num_images, num_draws),
        penalty=penalty,
        passes=passes,
        starts=tuple(options["starts"]),
    )
