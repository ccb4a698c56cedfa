"""Rows with stages: of each image the strongest of several attacks, on draws that score nothing."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from purify.evals.attacked.rows import CLEAN, Row
from purify.evals.attacked.strongest import Strongest, measure
from purify.evals.core.engine import Compute, Engine
from purify.evals.core.sealed_arrays import seal, sealed
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered

COSTS = ("queries", "nfe", "nge", "seconds")


def choose(
    engine: Engine,
    row: Row,
    pending: Sequence[int],
    *,
    attack: Callable[[Row, Sequence[int]], None],
    images: Callable[[Row], np.ndarray],
) -> None:
    """Attack the images at the pending positions stage by stage, and keep the strongest results.

    A stage leaves out what those before it have settled, where the row says so (see Strongest).
    Everything is recorded as it is computed, so that an interrupted choice goes on.

    attack: (stage, positions), attacks these images. images: stage -> its attacked images.
    """
    # Compiled where something is to be measured, and gone with this choice: it holds memory maps.
    program = functools.cache(lambda: _compile(engine, row, pending))
    measured = {CLEAN: _measure(engine, row, CLEAN, engine.images, pending, program)}
    left = list(pending)
    for stage in row.stages:
        if cast(Strongest, row.attack).survivors:
            last = list(measured.values())[-1]
            standing = [at for at in left if not last[engine.index(at)]["settled"]]
            spared = stage.attack_job.cost.work + row.choice_job(stage.crafted).cost.work
            engine.progress.update((len(pending) - len(standing)) * spared)
            left = standing
        if not left:
            continue
        # In batches as of the choice: the size follows from the number of images.
        attack(dataclasses.replace(stage, num_images=row.num_images), left)
        found = images(stage)
        measured[stage.crafted] = _measure(engine, row, stage.crafted, found, left, program)
    _take_strongest(engine, row, pending, measured, images)


def _compile(engine: Engine, row: Row, positions: Sequence[int]) -> Callable:
    """The program that measures a candidate on a batch."""
    batch = engine.batch(positions, engine.images, engine.size(row.attack_job), "selection")
    return compile_lowered(measure.lower(row.attack, parallel.replicate(row.attacked), *batch))


def _measure(
    engine: Engine,
    row: Row,
    candidate: str,
    images: np.ndarray,
    positions: Sequence[int],
    program: Callable[[], Callable],
) -> dict[int, dict]:
    """dataset index -> record with loss and settled, of the images at these positions."""
    job = row.choice_job(candidate)
    engine.forget_stale(job.name, candidate, images)

    def begin(pending: Sequence[int]) -> Compute:
        engine.check_there(images, pending, candidate)
        defense, compiled, size = parallel.replicate(row.attacked), program(), engine.size(job)
        spent = {"queries": job.cost.runs, "nfe": job.cost.nfe, "nge": 0}

        def compute(at: np.ndarray) -> list[dict]:
            batch = engine.batch(at, images, size, "selection")
            (losses, settled), seconds = engine.timed(compiled, defense, *batch)
            margins = losses[: len(at)]
            engine.check_finite(margins, at, f"{row.name}: margins of {candidate} images")
            cost = spent | {"seconds": seconds / len(at)}
            records = [
                {"index": engine.index(i), "loss": float(loss), "settled": bool(wrong)} | cost
                for i, loss, wrong in zip(at, losses, settled, strict=False)  # not the padding
            ]
            return sealed(records, {candidate: [seal(images[i]) for i in at]})

        return compute

    engine.do(job, begin, doing="choosing", among=positions)
    return engine.store.records(job.name)


def highest(tried: Mapping[str, Mapping]) -> str:
    """The name of the record with the highest loss; one that is no number counts as that, so that
    it is seen in the results."""
    return max(tried, key=lambda name: np.nan_to_num(tried[name]["loss"], nan=np.inf))


def _take_strongest(
    engine: Engine,
    row: Row,
    pending: Sequence[int],
    measured: dict[str, dict],
    images: Callable[[Row], np.ndarray],
) -> None:
    """Write each image's candidate of highest loss and what was spent on all of them."""
    store = engine.store
    candidates = {CLEAN: engine.images}
    candidates |= {stage.crafted: images(stage) for stage in row.stages}
    attacks = {name: store.records(f"attack:{name}") for name in candidates}
    asking = {stage.crafted for stage in row.stages if stage.asks_defense}
    records, chosen = [], []
    for at in pending:
        index = engine.index(at)
        tried = {name: of[index] for name, of in measured.items() if index in of}
        best = highest(tried)
        chosen.append(candidates[best][at])
        spent = [*tried.values(), *(attacks[name][index] for name in tried if name != CLEAN)]
        records.append(
            {
                "index": index,
                "chosen": best,
                "loss": tried[best]["loss"],
                "start_loss": tried[CLEAN]["loss"],
                "interim_success": any(
                    attacks[name][index]["interim_success"] for name in tried if name in asking
                ),
                "distance": 0.0 if best == CLEAN else attacks[best][index]["distance"],
                **{cost: sum(record[cost] for record in spent) for cost in COSTS},
            }
        )
    seals = store.write(row.crafted, engine.images.shape, pending, np.stack(chosen))
    store.append(row.attack_records, sealed(records, {row.crafted: seals}))
