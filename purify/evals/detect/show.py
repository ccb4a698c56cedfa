"""The table and the figures of detectors."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from purify.evals import plots
from purify.evals.attacked.rows import Row
from purify.evals.core.figures import attempted, drawn
from purify.evals.core.show import Shown, title_says
from purify.evals.core.tables import Cell, Column, Interval, Table, grouped, percent
from purify.evals.core.terminal import (
    variant_lines,
)
from purify.evals.detect.measure import JOINT, RATE, UNKNOWING
from purify.evals.detect.numbers import (
    ATTACKED,
    STRONGEST,
    Values,
    fools,
    kind_of,
    scored_draws,
)
from purify.evals.detect.roc import curve
from purify.runtime.messages import counted


def draw_curves(
    folder: Path, results: Mapping, values: Values, right: Mapping[str, np.ndarray]
) -> list[Path]:
    """Draw the curves and the ranges of what was scored; their paths."""
    num_draws = results["config"]["detect"]["num_draws"]
    values = {
        images: {name: scored_draws(drawn, num_draws) for name, drawn in of.items()}
        for images, of in values.items()
    }
    right = {name: scored_draws(drawn, num_draws) for name, drawn in right.items()}
    paths = []
    roc, ranges = folder / "roc.png", folder / "statistics.png"
    if panels := attempted(roc, lambda: _panels(values, right, results["rows"])):
        paths += drawn(roc, lambda path: plots.roc_curves(path, panels, rate=RATE))
    return paths + drawn(
        ranges,
        lambda path: plots.statistic_ranges(
            path, _by_statistic(values, right), results["statistics"]
        ),
    )


def seen_note(seen: Sequence[str]) -> str:
    if not seen:
        return ""
    return f"calibrated on images that a network has seen, or may have: {', '.join(seen)}"


def _panels(values: Values, right: Mapping[str, np.ndarray], entries: list[dict]) -> dict:
    """title -> curves, for the attackers who do not know the detector, and for the attack on each
    statistic that leaves least."""
    panels: dict[str, list[dict]] = {
        "unknowing attackers": [],
        "knowing attackers, by the attack that leaves least": [],
    }
    for statistic in values["calibration"]:
        for title, kind in zip(panels, ATTACKED, strict=True):
            own = [e for e in entries if e["statistic"] == statistic and e["kind"] == kind]
            if not (own := [entry for entry in own if entry["auroc"]]):
                continue
            entry = min(own, key=lambda entry: entry["left"]["value"])
            name = entry["images"]
            fooled = values[name][statistic][fools(right[name])]
            false, true = curve(values["clean"][statistic], fooled)
            panels[title].append(
                {"name": statistic, "false": false, "true": true, **entry["auroc"]}
            )
    return {title: curves for title, curves in panels.items() if curves}


def _by_statistic(values: Values, right: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """statistic -> images -> values, without attacks on other statistics."""
    return {
        statistic: {
            readable(name, statistic): found[statistic].ravel()
            for name, found in values.items()
            if kind_of(name, statistic, right)
        }
        for statistic in values["clean"]
    }


def title(config, rows: Mapping[str, Row], natural: int) -> str:
    """What all results share, and the attacks; natural: how many images set the thresholds."""
    cfg, row = config.detect, rows[UNKNOWING]
    first = (
        f"{config.data.name} {config.data.test_split}: detecting attacks on {cfg.defense}, "
        f"thresholds from {counted(natural, 'image')} of {cfg.calibration_split}"
    )
    ball = f"{row.attack.norm} {row.attack.eps:.3g}"
    told = f"{row.options['attack']}, {row.options['gradient']}, {ball}, "
    knowing = [known for name, known in rows.items() if known.penalty]
    budgets = " or ".join(dict.fromkeys(known.attack.budget for known in knowing))
    joint = [known for name, known in rows.items() if name.endswith(f"_{JOINT}")]
    return "\n".join(
        [
            first,
            *variant_lines(config, dict.fromkeys((cfg.defense, cfg.purifier))),
            f"unknowing: {told}{row.attack.budget}",
            f"knowing: apgd, exact, {ball}, {budgets}, from the unknowing images too;",
            "  margin - c x (excess of the statistic over its threshold, in standard deviations);",
            "  of what they find they take what fools and passes most often",
            *(
                f"joint: apgd on the classifier of the image, and often of the purified image, "
                f"{known.attack.budget}; attacks by c start there, too"
                for known in joint
            ),
        ]
    )


def results_table(results: Mapping) -> Table:
    """The rows of results.json."""
    small = any(row["flagged_small"] for row in results["rows"])
    numbers = ["n", "of", "AUROC [95 %]", "flagged at 5 % [95 %]", *(["at 1 %"] if small else [])]
    columns = [Column("statistic"), Column("images")]
    columns += [Column(name, numeric=True) for name in (*numbers, "left [95 %]")]
    lines = [
        (
            row["statistic"],
            readable(row["images"], row["statistic"]),
            "" if row["num_positives"] is None else str(row["num_positives"]),
            str(row["num_images"]),
            _area(row["auroc"]),
            _percent(row["flagged"]),
            *([_percent(row["flagged_small"])] if small else []),
            _percent(row["left"]),
        )
        for row in results["rows"]
    ]
    return Table(results["title"], columns, grouped(lines), CAPTION, merged=True)


def says(results: Mapping) -> str:
    """What each statistic leaves under all attacks."""
    strongest = [row for row in results["rows"] if row["kind"] == STRONGEST]
    said = (f"{row['statistic']} {100 * row['left']['value']:.1f} %" for row in strongest)
    return f"left under all attacks: {', '.join(said)}" if strongest else title_says(results)


def readable(images: str, statistic: str) -> str:
    """Of attackers who know the statistic, how they weigh it."""
    own = images.removeprefix(f"{statistic}_")
    return (f"c {own}" if re.match(r"\d", own) else own).replace("_", " ")


def _area(area: Mapping | None) -> Cell:
    if area is None:
        return ""
    return Interval(area["value"], area["low"], area["high"], digits=3, end_digits=3)


def _percent(share: Mapping | None) -> Cell:
    return "" if share is None else percent(share)


CAPTION = """\
n: natural images, or of the attacked ones those that fool the defence behind the detector
AUROC: the chance that one of these is above a clean image (bootstrap over images)
flagged: share of these above the threshold that 5 % of natural images exceed, in %: of clean images
  the realised false-positive rate
left: clean images that are right and not flagged; attacked ones that are flagged or do not fool;
  where anything draws, the mean over fresh draws
strongest: of each image the attack above that leaves least, by draws that are not scored
c: how attackers who know the statistic weigh an excess"""
FIGURES = {
    "roc": (
        "Receiver operating characteristics (ROC)",
        "True positives over false positives of each detector, a panel for each kind of "
        "attacker; the areas are in the table",
    ),
    "statistics": (
        "What the detectors see",
        "Ranges of each detector's statistic over clean, natural and attacked images",
    ),
}
SHOWN = Shown(
    "Detection of attacks",
    says,
    lambda results: [results_table(results)],
    lambda results: [results["note"]] if results["note"] else [],
    figures=FIGURES,
)
