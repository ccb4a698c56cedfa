"""What the headline defence does to each attacked image: strips, and cards to browse."""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from purify.data.image_io import encode_image
from purify.evals.attacked.results import MAIN, protocol_name
from purify.evals.report.blocks import Block, Prose, data_uri
from purify.evals.report.runs import Run
from purify.evals.robust.versions import VERSIONS, Versions, read_versions
from purify.saving.files import inside

STRIP = 10  # images of a strip
MAX_CARDS = 100  # of a row
# Of all images of a report, in bytes of the page: more of them would open slowly.
BUDGET = 8_000_000
ALWAYS = 10  # cards of a row, whatever they need
DIGITS = 3  # letters of a class that is named by its number
ClassName = Callable[[int], str]
OUTCOMES = {
    "right": "right in all draws",
    "some": "wrong in some",
    "wrong": "wrong in all",
}


class Picture(NamedTuple):
    """One version of an image, and what the classifier alone sees in it."""

    version: str
    uri: str
    size: tuple[int, int]  # height, width
    answer: str
    right: bool


class Card(NamedTuple):
    """One attacked image.

    number: its index in the data set. draws: whether each draw of the defence is right; runs: what
    its single runs said, most often first, with how often. loss, distance: None where nobody knows.
    chosen: of an attack that takes the strongest of several, which one; else ''.
    """

    number: int
    label: str
    pictures: Sequence[Picture]
    draws: Sequence[bool]
    runs: Sequence[tuple[str, int]]
    loss: float | None
    distance: float | None
    chosen: str

    @property
    def outcome(self) -> str:
        return outcome(self.draws)


class AttackedRow(NamedTuple):
    """counts: outcome -> how many of all its images; cards: of the first ones."""

    attack: str
    row: Mapping
    counts: Mapping[str, int]
    cards: Sequence[Card]

    @property
    def num_images(self) -> int:
        return sum(self.counts.values())

    @property
    def strip(self) -> Sequence[Card]:
        return self.cards[:STRIP]

    @property
    def named(self) -> bool:
        """Whether classes have names that need more room than digits."""
        names = [name for card in self.cards for name in (card.label, *(n for n, _ in card.runs))]
        names += [picture.answer for card in self.cards for picture in card.pictures]
        return any(len(name) > DIGITS for name in names)


@dataclasses.dataclass(frozen=True)
class Strips(Block):
    defense: str
    rows: Sequence[AttackedRow]
    versions: Sequence[str] = VERSIONS


@dataclasses.dataclass(frozen=True)
class Browser(Block):
    """chosen: the attack that is shown first."""

    rows: Sequence[AttackedRow]
    chosen: str
    outcomes: Mapping[str, str] = dataclasses.field(default_factory=lambda: OUTCOMES)


def outcome(draws: Sequence[bool]) -> str:
    """One of OUTCOMES."""
    return "right" if all(draws) else "some" if any(draws) else "wrong"


def image_blocks(run: Run, *, budget: int = BUDGET) -> list[Block]:
    """The strips and the browser of an evaluation's headline defence, none where it was not
    attacked. budget: bytes that its images may take.

    Raises ValueError where a file of them is damaged.
    """
    defense = run.results["config"]["defense"]["purifier"]
    found: dict[str, tuple[Mapping, Versions]] = {}
    lacking, unrecorded = [], []
    for row in run.results["rows"]:
        attacked = row["defense"]["name"] == defense and row["gradient"] is not None
        if not attacked or protocol_name(row) not in MAIN:
            continue
        path = inside(run.folder, "purified", f"{defense}-{row['attack']}.npz")
        if not os.path.lexists(path):
            lacking.append(row["attack"])
        elif not run.records.get(f"{defense}-{row['attack']}"):
            unrecorded.append(row["attack"])
        else:
            found[row["attack"]] = row, read_versions(path)
    notes = []
    if unrecorded:
        notes.append(
            f"Left out: the images of {', '.join(unrecorded)}, of which {run.folder}/images.jsonl "
            "has no records. The numbers above are those of results.json."
        )
    if lacking:
        notes.append(
            f"Not kept: the images of {', '.join(lacking)}. Where the attacked ones are there, the "
            "evaluation's command, given again, writes them."
        )
    if not found:
        return [Prose(notes)] if notes else []
    share = budget // len(found)
    rows = [
        _attacked_row(row, versions, run.records[f"{defense}-{attack}"], run.class_name, share)
        for attack, (row, versions) in found.items()
    ]
    headline = run.results["headline"].get(defense)
    rows.sort(key=lambda row: row.attack != headline)
    cut = [f"{row.attack}: {len(row.cards)}" for row in rows if len(row.cards) < row.num_images]
    if cut:
        notes.append(f"The first images of the data set, of each attack so many: {', '.join(cut)}.")
    chosen = rows[0].attack
    return [Prose(notes), Strips(defense, rows), Browser(rows, chosen)]


def _attacked_row(
    row: Mapping, versions: Versions, records: Mapping, class_name: ClassName, budget: int
) -> AttackedRow:
    """Cards of the first images, as many as the budget holds."""
    places = [at for at, index in enumerate(versions.index) if int(index) in records]
    cards: list[Card] = []
    spent = 0
    for card in _cards(versions, records, places[:MAX_CARDS], class_name):
        spent += sum(len(picture.uri) for picture in card.pictures)
        if len(cards) >= ALWAYS and spent > budget:
            break
        cards.append(card)
    # Records may be of more images than the row: an evaluation that was cut off left them.
    outcomes = (outcome(records[int(versions.index[at])]["correct"]) for at in places)
    counts = collections.Counter(outcomes)
    return AttackedRow(row["attack"], row, {name: counts[name] for name in OUTCOMES}, cards)


def _cards(
    versions: Versions, records: Mapping, places: Sequence[int], class_name: ClassName
) -> Iterator[Card]:
    for at in places:
        index, label = int(versions.index[at]), int(versions.labels[at])
        record = records[index]
        answers = collections.Counter(np.ravel(record["predictions"]).tolist())
        loss = record.get("loss")
        pictures = [
            Picture(
                name,
                data_uri(encode_image(versions.images[name][at], ".png"), ".png"),
                versions.images[name].shape[1:3],
                class_name(versions.answers[name][at]),
                int(versions.answers[name][at]) == label,
            )
            for name in VERSIONS
        ]
        yield Card(
            index,
            class_name(label),
            pictures,
            record["correct"],
            [(class_name(answer), count) for answer, count in answers.most_common()],
            loss if loss is not None and math.isfinite(loss) else None,
            record.get("distance"),
            record.get("chosen", ""),
        )
