"""Rows with stages: of each image the strongest of several attacks, on draws that score nothing."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from purify.evals.attacked.programs import check_finite
from purify.evals.attacked.rows import Row
from purify.evals.attacked.strongest import Strongest, measure
from purify.evals.core.sealed_arrays import seal, sealed
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered

if TYPE_CHECKING:
    from purify.evals.attacked.evaluation import Evaluation

CLEAN = "clean"  # the candidate that is always there
COSTS = ("queries", "nfe", "nge", "seconds")


def choose(evaluation: "Evaluation", row: Row, pending: Sequence[int]) -> None:
    """Attack the images at the pending positions stage by stage, and keep the strongest results.

    A stage leaves out what those before it have settled, where the row says so (see Strongest).
    Everything is recorded as it is computed, so that an interrupted choice goes on.
    """
    # Compiled where something is to be measured, and gone with this choice: it holds memory maps.
    program = functools.cache(lambda: _compile(evaluation, row, pending))
    measured = {CLEAN: _measure(evaluation, row, CLEAN, evaluation.images, pending, program)}
    left = list(pending)
    for stage in row.stages:
        if cast(Strongest, row.attack).survivors:
            last = list(measured.values())[-1]
            standing = [at for at in left if not last[evaluation.index(at)]["settled"]]
            spared = stage.attack_work + row.attack_work / (len(row.stages) + 1)
            evaluation.progress.update((len(pending) - len(standing)) * spared)
            left = standing
        if not left:
            continue
        evaluation.attack(dataclasses.replace(stage, num_images=row.num_images), left)
        images = evaluation.attacked_images(stage)
        measured[stage.crafted] = _measure(evaluation, row, stage.crafted, images, left, program)
    _take_strongest(evaluation, row, pending, measured)


def _compile(evaluation: "Evaluation", row: Row, positions: Sequence[int]) -> Callable:
    """The program that measures a candidate on a batch."""
    evaluation.progress.set_description(f"{row.name}: compiling the choice")
    size = evaluation.row_size(row)
    batch = evaluation.batch(positions, evaluation.images, size, "selection")
    return compile_lowered(measure.lower(row.attack, parallel.replicate(row.attacked), *batch))


def _measure(
    evaluation: "Evaluation",
    row: Row,
    candidate: str,
    images: np.ndarray,
    positions: Sequence[int],
    program: Callable[[], Callable],
) -> dict[int, dict]:
    """dataset index -> record with loss and settled, of the images at these positions."""
    name = f"choice:{row.name}:{candidate}"
    evaluation.forget_stale(name, candidate, images)
    pending = sorted(set(evaluation.pending(name, row)) & set(positions))
    if not pending:
        return evaluation.store.records(name)
    evaluation.check_there(images, pending, candidate)
    strongest, defense = cast(Strongest, row.attack), parallel.replicate(row.attacked)
    queries = strongest.queries_per_candidate
    compiled, size = program(), evaluation.row_size(row)
    for at in evaluation.batches(pending, size, f"{row.name}: choosing"):
        batch = evaluation.batch(at, images, size, "selection")
        (losses, settled), seconds = evaluation.timed(compiled, defense, *batch)
        margins = losses[: len(at)]
        check_finite(margins, evaluation.indices[at], f"{row.name}: margins of {candidate} images")
        cost = {"queries": queries, "nfe": queries * defense.purifier.nfe, "nge": 0}
        cost["seconds"] = seconds / len(at)
        records = [
            {"index": evaluation.index(i), "loss": float(loss), "settled": bool(all_wrong)} | cost
            for i, loss, all_wrong in zip(at, losses, settled, strict=False)  # without the padding
        ]
        seals = {candidate: [seal(images[i]) for i in at]}
        evaluation.store.append(name, sealed(records, seals))
        evaluation.progress.update(len(at) * row.attack_work / (len(row.stages) + 1))
    return evaluation.store.records(name)


def highest(tried: Mapping[str, Mapping]) -> str:
    """The name of the record with the highest loss; one that is no number counts as that, so that
    it is seen in the results."""
    return max(tried, key=lambda name: np.nan_to_num(tried[name]["loss"], nan=np.inf))


def _take_strongest(
    evaluation: "Evaluation", row: Row, pending: Sequence[int], measured: dict[str, dict]
) -> None:
    """Write each image's candidate of highest loss and what was spent on all of them."""
    store = evaluation.store
    candidates = {CLEAN: evaluation.images}
    candidates |= {stage.crafted: evaluation.attacked_images(stage) for stage in row.stages}
    attacks = {name: store.records(f"attack:{name}") for name in candidates}
    asking = {stage.crafted for stage in row.stages if stage.asks_defense}
    records, chosen = [], []
    for at in pending:
        index = evaluation.index(at)
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
    seals = store.write(row.crafted, evaluation.images.shape, pending, np.stack(chosen))
    store.append(f"attack:{row.crafted}", sealed(records, {row.crafted: seals}))
