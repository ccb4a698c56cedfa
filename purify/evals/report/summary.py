"""The numbers that stand at the head of a page."""

from collections.abc import Mapping
from typing import NamedTuple

from purify.evals.attacked.results import protocol_name


class Share(NamedTuple):
    """An accuracy and its 95 % interval, in %, of so many images."""

    value: float
    low: float
    high: float
    num_images: int


class Defended(NamedTuple):
    """One defence in the summary: clean, under the attack that leaves it least, and that attack's
    worst of all draws. unproven: no exact gradient stands beside that attack. unmoved: its loss did
    not move."""

    name: str
    clean: Share | None
    attack: str
    attacked: Share | None
    worst: Share | None
    unproven: bool
    unmoved: bool
    nfe: float


def summary(results: Mapping) -> list[Defended]:
    """Of an evaluation under attack, each defence at a glance; of other results none."""
    if "headline" not in results:
        return []
    rows: dict[str, dict[tuple[str, str], Mapping]] = {}
    for row in results["rows"]:
        named = rows.setdefault(row["defense"]["name"], {})
        named[row["attack"], protocol_name(row)] = row
    found = []
    for name, own in rows.items():
        attack = results["headline"].get(name, "given")  # images attacked elsewhere
        clean, attacked, worst = (
            own.get(key) for key in (("clean", "mean"), (attack, "mean"), (attack, "worst_of_n"))
        )
        found.append(
            Defended(
                name,
                _share(clean),
                attack if attacked else "",
                _share(attacked),
                _share(worst),
                bool(attacked) and attacked["exact_beside"] is False,
                bool(attacked) and "unmoved" in attacked,
                next(iter(own.values()))["defense_nfe_per_image"],
            )
        )
    return found


def _share(row: Mapping | None) -> Share | None:
    if row is None:
        return None
    value, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    return Share(value, low, high, row["num_images"])
