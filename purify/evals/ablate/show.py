"""What an ablation leaves: ablation.csv, results.json, a figure, the table on the terminal."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from purify.evals import plots
from purify.evals.ablate.plan import Factor
from purify.evals.attacked.results import MAIN, protocol_name
from purify.evals.core.figures import drawn
from purify.evals.core.mode import tell
from purify.evals.core.show import Shown, title_says
from purify.evals.core.stats import paired_difference
from purify.evals.core.store import Store
from purify.evals.core.tables import Cell, Column, Table, grouped, percent
from purify.evals.core.terminal import (
    shared_options,
    variant_lines,
)
from purify.saving.jsonl import write_text


class Measured(NamedTuple):
    """One evaluation: its results.json, the per-image values of each (attack, protocol) by dataset
    index, and its folder."""

    results: dict
    values: dict[tuple[str, str], dict[int, float]]
    folder: Path


# (name of the factor, value) -> what was measured there; None -> at the default.
Points = Mapping[tuple[str, Any] | None, Measured]
# Fields of a row of results.json that a line keeps as they are.
KEPT = (
    *("num_images", "num_draws", "accuracy", "low", "high"),
    *("nfe_per_image", "nge_per_image", "seconds_per_image"),
    *("defense_nfe_per_image", "defense_seconds_per_image"),
)


def tidy(factors: Sequence[Factor], points: Points, *, seed: int) -> list[dict]:
    """One line for each factor, value (the default's too), attack and protocol.

    difference, low and high of it: of the accuracy here and at the default, paired over the images
    that both have; None where the default has no such row, and 0 at the default itself.
    """
    lines, default = [], points[None]
    for factor in factors:
        for value in factor.values:
            here = points[factor.name, value]
            for row in here.results["rows"]:
                key = row["attack"], protocol_name(row)
                lines.append(
                    {
                        "factor": factor.name,
                        "value": value,
                        "default": value == factor.default,
                        "defense": row["defense"]["name"],
                        "attack": row["attack"],
                        "protocol": key[1],
                        **{field: row[field] for field in KEPT},
                        **_difference(here, default, key, seed=seed),
                        "run": here.folder.name,
                    }
                )
    return lines


def _difference(here: Measured, default: Measured, key: tuple[str, str], *, seed: int) -> dict:
    """Paired, here minus default, in one (attack, protocol)."""
    names = ("difference", "difference_low", "difference_high")
    if here is default:
        return dict.fromkeys(names, 0.0)
    ours, theirs = (measured.values.get(key, {}) for measured in (here, default))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return dict.fromkeys(names)
    paired = paired_difference(*([side[i] for i in common] for side in (ours, theirs)), seed=seed)
    return dict(zip(names, (paired.value, paired.low, paired.high), strict=True))


def write(config, store: Store, factors: Sequence[Factor], points: Points, settings: dict) -> None:
    """Write ablation.csv, results.json and the figure; print the table and the paths."""
    folder, lines = store.folder, tidy(factors, points, seed=config.seed)
    evaluations = {measured.folder: measured for measured in points.values()}
    signatures: list[dict] = []
    for measured in evaluations.values():
        own = measured.results["computed_by"]
        signatures += [signature for signature in own if signature not in signatures]
    default = points[None].results
    results = {
        "title": _title(config, default),
        "rows": lines,
        **settings,
        **signatures[-1],
        "computed_by": signatures,
        "stopped": store.stopped,
        "weights": default["weights"],
        "trained": default["trained"],
        "config": config.to_dict(),
    }
    write_text(folder / "ablation.csv", _csv(lines))
    tell(SHOWN, folder, results, lambda: [folder / "ablation.csv"])


def _csv(lines: list[dict]) -> str:
    """With a header; '' where there is no number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _title(config, default: dict) -> str:
    """What is ablated, and the default with its attacks as its own table has them; the first line
    of that as the purifiers of all points have it."""
    compared = config.ablate.factors.to_dict()
    named = [
        value
        for name in config.ablate.names
        if "defense.purifier" in compared[name]["fields"]
        for value in compared[name]["at"]
    ]
    options = shared_options(config, [config.defense.purifier, *named], config.eval.num_draws)
    lines = [
        f"one factor at a time around {config.defense.purifier}",
        f"{config.data.name} {config.data.test_split}{options}",
        *default["title"].splitlines()[1:],
    ]
    return "\n".join([*lines, *variant_lines(config, dict.fromkeys(named))])


def draw_figures(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    """Draw the main protocol's rows of results.json, as files of that suffix; their paths."""
    shown = [line for line in results["rows"] if line["protocol"] in MAIN]
    return drawn(folder / f"ablation{suffix}", lambda path: plots.ablation_panels(path, shown))


def results_table(results: Mapping) -> Table:
    """The main protocol's rows of results.json: a line for each value, a column for each attack."""
    lines = [line for line in results["rows"] if line["protocol"] in MAIN]
    attacks = list(dict.fromkeys(line["attack"] for line in lines))
    columns = [Column("factor"), Column("value")]
    columns += [Column(name, numeric=True) for name in (*attacks, "nfe", "s/draw")]
    drawn_lines = []
    for key in dict.fromkeys((line["factor"], line["value"]) for line in lines):
        here = {line["attack"]: line for line in lines if (line["factor"], line["value"]) == key}
        any_line = next(iter(here.values()))
        cells: tuple[Cell, ...] = (
            key[0],
            f"{key[1]}{' (default)' if any_line['default'] else ''}",
            *(_cell(here.get(attack)) for attack in attacks),
            f"{any_line['defense_nfe_per_image']:,.0f}",
            f"{any_line['defense_seconds_per_image']:.4f}",
        )
        drawn_lines.append(cells)
    return Table(results["title"], columns, grouped(drawn_lines), CAPTION, merged=True)


CAPTION = """\
mean of draws: share of fresh draws that are right, in %, with its 95 % interval over the images
+, -: higher, lower than at the default on the same images (the paired 95 % interval excludes 0:
  one in twenty does so by chance); paired differences and other protocols are in ablation.csv
nfe, s/draw: network evaluations and median seconds of one draw of the defence, clean"""


def _cell(line: dict | None) -> Cell:
    if line is None:
        return ""
    low, high = line["difference_low"], line["difference_high"]
    mark = " "
    if low is not None:
        mark = "+" if low > 0 else "-" if high < 0 else " "
    return percent(line, "accuracy", after=mark)


FIGURES = {
    "ablation": (
        "Accuracy over each factor, the others at their defaults",
        "A panel for each factor: accuracy at each of its values under each attack, with 95 % "
        "intervals; the numbers are in the table",
    ),
}
SHOWN = Shown(
    "Ablations",
    title_says,
    lambda results: [results_table(results)],
    draw=draw_figures,
    figures=FIGURES,
)
