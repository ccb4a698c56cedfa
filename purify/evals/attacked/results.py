"""From per-image records to the numbers of results.json: protocols, intervals, comparisons."""

import collections
from collections.abc import Mapping

import numpy as np

from attacks.ascent import Ascent
from purify.evals.attacked.rows import Row, main_ball
from purify.evals.attacked.strongest import Strongest
from purify.evals.core.stats import (
    Estimate,
    bootstrap_mean,
    mcnemar,
    paired_difference,
    paired_share,
    proportion,
)
from purify.purifiers.detect_then_purify import DetectThenPurify
from purify.types import Purifier

# Rows, and the records of their images in their order.
Done = list[tuple[Row, list[dict]]]
SINGLE_RUN = "S=1"
MAIN = ("mean", "fixed_key")  # the protocol of a row's headline: it has one of the two
ATTACK_FIELDS = (
    *("norm", "eps", "step_size", "momentum", "loss", "targets", "eot", "eot_samples", "average"),
    *("restarts", "selection_draws", "ranking_draws", "keep", "estimate", "directions"),
)


def protocols(row: Row, records: list[dict]) -> dict[str, np.ndarray]:
    """protocol -> one number per image [n]; the records are those of one row.

    mean: share of the N draws that are right. ensemble: whether the first draw (S runs combined)
    is. vote: whether the majority of that draw's runs is (the smaller class wins a tie).
    worst_of_n: whether all N draws are. fixed_key: whether the one draw that the attacker knew is;
    a row of that kind has no other protocol.
    """
    correct = np.array([record["correct"] for record in records])
    if row.fixed_key:
        return {"fixed_key": correct[:, 0]}
    votes = [np.bincount(r["predictions"][0]).argmax() == r["label"] for r in records]
    return {
        "mean": correct.mean(1),
        "ensemble": correct[:, 0],
        "vote": np.array(votes),
        "worst_of_n": correct.all(1),
    }


def single_run(records: list[dict]) -> np.ndarray:
    """Per image, the share of right answers among all N S single runs, as if S were 1: [n]."""
    return np.array([np.mean(np.array(r["predictions"]) == r["label"]) for r in records])


def per_image(row: Row, records: list[dict]) -> dict[str, np.ndarray]:
    """`protocols`, and 'S=1' where a draw has several runs."""
    values = protocols(row, records)
    if row.defense.num_runs > 1 and not row.fixed_key:
        values[SINGLE_RUN] = single_run(records)
    return values


def interim_accuracy(row: Row, records: list[dict], clean: list[dict]) -> float | None:
    """What an evaluation that stops at the first success would report: the share of the images of
    which the first clean draw is right and the search saw no wrong answer (see attacks.Attacked).

    It is no accuracy of the attacked images: the search takes many draws of each, and one that is
    wrong is enough. None where there was no search, or where it asked another function than the
    defence.
    """
    if not row.asks_defense:
        return None
    wrong = {record["index"] for record in clean if not record["correct"][0]}
    failed = [record["interim_success"] or record["index"] in wrong for record in records]
    return 1.0 - float(np.mean(failed))


def unmoved(row: Row, records: list[dict]) -> int | None:
    """On how many images the loss of the row's attack is what it was at the clean image, where all
    draws are right, too; None where that says nothing, or are too few to tell from chance.

    Too few: not half of the images that stay right, or not a tenth of all. It is asked of attacks
    that climb the loss of the defence's own answers (others see another function, and a penalty
    may outweigh all that a climb gains), and of the choice among them.
    """
    if not isinstance(row.attack, Ascent | Strongest) or not row.asks_defense:
        return None
    if row.penalty is not None or row.passes is not None:
        return None
    right = [record for record in records if all(record["correct"])]
    still = sum(record["loss"] == record["start_loss"] for record in right)
    return still if still and 2 * still >= len(right) and 10 * still >= len(records) else None


def estimate(values: np.ndarray, *, one_outcome: bool, seed: int) -> Estimate:
    """Clopper-Pearson where an image has one 0/1 outcome by the protocol (not by chance: draws that
    all agree are still a mean), else the bootstrap over images."""
    if one_outcome:
        return proportion(values)
    return bootstrap_mean(values, seed=seed)


def defense_fields(row: Row) -> dict:
    """The defence of a row as entries of results.json have it."""
    averaged = {"S": row.defense.num_runs, "average": row.defense.average}
    return {"name": row.defense_name, **purifier_fields(row.defense.purifier), **averaged}


def attack_fields(row: Row) -> dict:
    """What makes the attack of a row, None where it has no such thing."""
    options = row.options
    return {
        "method": options.get("attack"),
        "gradient": options.get("gradient"),
        **{name: options.get(name) or None for name in ("surrogate", "direction", "penalty")},
        "source": options.get("source") or None,
        "starts": list(row.starts) or None,
        "attack_steps": getattr(row.attack, "num_steps", None),
        **{name: getattr(row.attack, name, None) for name in ATTACK_FIELDS},
    }


def purifier_fields(purifier: Purifier) -> dict:
    """What a purifier adds to these entries: T is 0 where there is no score model.

    One that detects first adds its threshold and the fields of its parts; of them it has, beside
    the higher T, those of what it does where it suspects.
    """
    if isinstance(purifier, DetectThenPurify):
        parts = {name: purifier_fields(getattr(purifier, name)) for name in purifier.parts}
        num_steps = max(part["T"] for part in parts.values())
        return {**parts["suspected"], "T": num_steps, "threshold": purifier.threshold, **parts}
    return {
        "sigma": getattr(purifier, "sigma", 0.0),
        "second_sigma": getattr(purifier, "second_sigma", None),
        "T": getattr(purifier, "num_steps", 1 if purifier.nfe else 0),
        "curvature": getattr(purifier, "curvature", None),
    }


def cost_fields(records: list[dict]) -> dict[str, float]:
    """What an image cost, attack and scoring, and what a draw of the defence alone."""
    cost = {}
    for name in ("seconds", "nfe", "nge", "defense_seconds", "defense_nfe"):
        # A busy or suspended machine moves the median time less than the mean.
        average = np.median if name.endswith("seconds") else np.mean
        cost[f"{name}_per_image"] = float(average([record[name] for record in records]))
    return cost


def result_rows(
    row: Row, records: list[dict], clean: list[dict], *, seed: int, exact_beside: bool | None = None
) -> list[dict]:
    """The entries of results.json for one row, one a protocol, and one with S = 1.

    records, clean: of the same images, attacked and clean (the clean ones empty where images were
    given). exact_beside: of a row of BPDA, whether one of the exact gradient in its ball is there.
    """
    defense = defense_fields(row)
    shared = {
        "attack": row.attack_name,
        **attack_fields(row),
        "num_images": len(records),
        "num_draws": row.num_draws,
        "exact_beside": exact_beside,
        "interim_accuracy": interim_accuracy(row, records, clean),
    }
    if still := unmoved(row, records):
        shared["unmoved"] = still
    if row.stages:
        shared["chosen"] = dict(collections.Counter(r["chosen"] for r in records).most_common())
    cost = cost_fields(records)
    values, clean_values = per_image(row, records), per_image(row, clean) if clean else {}
    rows = []
    for protocol, outcomes in values.items():
        one_outcome = protocol not in ("mean", SINGLE_RUN) or (
            protocol == "mean" and row.num_draws == 1
        )
        accuracy = estimate(outcomes, one_outcome=one_outcome, seed=seed)
        clean_value = clean_values.get(protocol)
        single = protocol == SINGLE_RUN
        rows.append(
            {
                "defense": defense | ({"S": 1} if single else {}),
                **shared,
                "protocol": "mean" if single else protocol,
                "single_run": single,
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "clean_accuracy": None if clean_value is None else float(np.mean(clean_value)),
                **cost,
                "seed": seed,
            }
        )
    return rows


def comparisons(headline: str, done: Done, *, seed: int) -> list[dict]:
    """Paired differences on the same images: the headline defence against each other one under the
    same attack; and, on each defence, BPDA against attacks that differ in nothing but the gradient.

    See `pair`; 'beats': the 95 % interval lies above 0; 'share', of BPDA's pairs: what the other
    gradient leaves of what BPDA leaves, see stats.paired_share.
    """
    by_name = {row.name: (row, records) for row, records in done}
    pairs = []
    for row, _ in done:
        if row.defense_name != headline:
            pairs.append((f"{headline}-{row.attack_name}", row.name, False))
        pairs += [(other.name, row.name, True) for other, _ in done if _is_bpda_of(other, row)]
    entries = []
    for a, b, same_defense in pairs:
        if a not in by_name or b not in by_name:
            continue
        sides = [by_name[name][1] for name in (a, b)]
        paired = pair(*sides, seed=seed)
        entry = {"a": a, "b": b, **paired, "beats": paired["low"] > 0}
        if same_defense:
            share = paired_share(*map(_means, _common(*sides)), seed=seed)
            entry["share"] = None if share is None else share._asdict()
        entries.append(entry)
    return entries


def _is_bpda_of(other: Row, row: Row) -> bool:
    """Whether the other is the row's attack but for the gradient, which is BPDA's."""
    same = ("direction", "penalty", "starts", "loss", "eot")
    return (
        row.attack is not None
        and other.defense_name == row.defense_name
        and other.attack == row.attack
        and all(other.options.get(k) == row.options.get(k) for k in same)
        and other.options["gradient"] == "bpda"
        and row.options["gradient"] not in ("blind", "bpda", "transfer")
        and other.fixed_key == row.fixed_key
    )


def pair(a: list[dict], b: list[dict], *, seed: int) -> dict:
    """The paired difference of two rows' records, a minus b, on the images that both have.

    mean_difference, low, high: of mean-over-draws accuracy, with its 95 % interval. mcnemar_p:
    exact, for one S-run draw each. ValueError where they have no image in common.
    """
    sides = _common(a, b)
    difference = paired_difference(*(_means(side) for side in sides), seed=seed)
    return {
        "num_images": difference.n,
        "mean_difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "mcnemar_p": mcnemar(*([draws[0] for draws in side] for side in sides)),
    }


def _common(a: list[dict], b: list[dict]) -> list[list[list[bool]]]:
    """The outcomes of the draws, of the images that both have; ValueError where there are none."""
    first, second = ({record["index"]: record["correct"] for record in side} for side in (a, b))
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("the two have no image in common")
    return [[side[i] for i in common] for side in (first, second)]


def _means(outcomes: list[list[bool]]) -> list[float]:
    return [float(np.mean(draws)) for draws in outcomes]


def protocol_name(row: dict) -> str:
    """The protocol of an entry of results.json, 'S=1' for the mean over single runs."""
    single = row["defense"]["S"] == 1 and row["protocol"] == "mean" and row["single_run"]
    return SINGLE_RUN if single else row["protocol"]


def headlines(done: Done) -> dict[str, str]:
    """defence -> the attack that leaves it the lowest mean-over-draws accuracy on the images that
    all its attacks of the main ball share: other balls are other questions."""
    attacked = [(row, records) for row, records in done if row.attack]
    ball = main_ball(row for row, _ in attacked)
    lowest: dict[str, str] = {}
    for name in dict.fromkeys(row.defense_name for row, _ in attacked):
        means = {
            row.attack_name: {r["index"]: float(np.mean(r["correct"])) for r in records}
            for row, records in attacked
            if row.defense_name == name
            and row.ball == ball
            and not row.fixed_key  # that attacker knows what no other does
        }
        if means:
            shared = set.intersection(*(set(values) for values in means.values()))
            totals = {attack: sum(values[i] for i in shared) for attack, values in means.items()}
            lowest[name] = min(totals, key=lambda attack: totals[attack])
    return lowest


def accuracy_text(row: Mapping) -> str:
    """'37.0 % [30, 45]', of the accuracy of a row and its 95 % interval."""
    value, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    return f"{value:.1f} % [{low:.0f}, {high:.0f}]"


def mean_rows(results: Mapping) -> list[Mapping]:
    """Of results.json of eval_robust, the rows whose protocol is the mean of draws."""
    return [row for row in results["rows"] if protocol_name(row) == "mean"]
