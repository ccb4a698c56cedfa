"""How the results of each mode are shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from purify.evals import ablate, certify, corruptions, detect, gradients, robust
from purify.evals.core.tables import Table
from purify.evals.report.summary import mean_rows, percent
from purify.runtime.messages import counted

Draw = Callable[..., list[Path]]


class Shown(NamedTuple):
    """How the results of a mode are shown.

    says: results -> the line that stands for them in the summary. table, draw: the mode's own, of
    its module; None for a table of all columns, and for the figures that the mode wrote.
    differences: another table, of paired differences; None where there can be none.
    """

    title: str
    says: Callable[[Mapping], str]
    table: Callable[[Mapping], Table] | None = None
    draw: Draw | None = None
    differences: Callable[[Mapping], Table | None] = lambda results: None


def _headline_says(results: Mapping) -> str:
    name = results["config"]["defense"]["purifier"]
    attack = results["headline"].get(name)
    rows = {row["attack"]: row for row in mean_rows(results) if row["defense"]["name"] == name}
    said = [f"{percent(rows['clean'])} clean"] if "clean" in rows else []
    said += [f"{percent(rows[attack])} under {attack}"] if attack in rows else []
    return f"{name}: {', '.join(said)}" if said else ""


def _radii_say(results: Mapping) -> str:
    return "average certified radius: " + ", ".join(
        f"{row['defense']['name']} {row['average_certified_radius']:.3f} at sigma "
        f"{row['defense']['sigma']:g}"
        for row in results["rows"]
    )


def _errors_say(results: Mapping) -> str:
    means = [e for e in results["means"] if e["corruption"] == corruptions.show.MEAN]
    errors = (f"{e['defense']['name']} {100 * (1 - e['accuracy']):.1f} %" for e in means)
    return f"mean error: {', '.join(errors)}" if means else ""


def _detectors_say(results: Mapping) -> str:
    left = {
        row["statistic"]: row["left"]
        for row in results["rows"]
        if row["kind"] == detect.numbers.STRONGEST
    }
    said = (f"{name} {100 * share['value']:.1f} %" for name, share in left.items())
    return f"left under all attacks: {', '.join(said)}" if left else _title_says(results)


def _title_says(results: Mapping) -> str:
    return str(results["title"]).partition("\n")[0]


def _samples_say(results: Mapping) -> str:
    samples = results.get("samples")
    said = [counted(samples["num_images"], "sample")] if samples else []
    images = len({entry["index"] for entry in results["paths"]})
    return ", ".join([*said, *([f"the paths of {counted(images, 'image')}"] if images else [])])


# Those that a report shows, in its order.
MODES = {
    "eval_robust": Shown(
        "Accuracy under attack",
        _headline_says,
        robust.show.results_table,
        robust.show.draw_figures,
    ),
    "check_gradients": Shown(
        "Whether attacks see the gradient",
        gradients.conclusion,
        gradients.results_table,
    ),
    "certify": Shown(
        "Certified radii",
        _radii_say,
        certify.results_table,
        certify.draw_figures,
        certify.differences_table,
    ),
    "eval_corruptions": Shown(
        "Common corruptions",
        _errors_say,
        corruptions.show.results_table,
        corruptions.show.draw_figures,
    ),
    "detect": Shown("Detection of attacks", _detectors_say, detect.show.results_table),
    "ablate": Shown("Ablations", _title_says, ablate.show.results_table, ablate.show.draw_figures),
    "sample": Shown("Samples and paths", _samples_say),
}
# Figures by name: the caption, and what they show for who cannot see them.
FIGURES = {
    "accuracy": (
        "Accuracy by defence and attack",
        "Bars of the accuracy of each defence under each attack, with 95 % intervals; the numbers "
        "are in the table",
    ),
    "cost": (
        "Accuracy over what a draw of the defence costs",
        "Accuracy of each defence over the network evaluations of a draw, a panel for each attack",
    ),
    "certified": (
        "Certified accuracy over the radius",
        "Certified accuracy over the L2 radius, a falling curve for each defence",
    ),
    "corruptions": (
        "Accuracy by corruption and defence",
        "Accuracy of each defence on each corruption, with 95 % intervals; the numbers are in the "
        "table",
    ),
    "ablation": (
        "Accuracy over each factor, the others at their defaults",
        "A panel for each factor: accuracy at each of its values under each attack, with 95 % "
        "intervals; the numbers are in the table",
    ),
    "samples": ("Samples of the score model", "A grid of images drawn from the score model"),
    "starts": (
        "What samples started from",
        "Rows of images, of those images noised, and of the samples that were drawn from there",
    ),
    "training": (
        "How the networks were trained",
        "Losses and accuracies over the training steps of each network",
    ),
    "roc": (
        "Receiver operating characteristics (ROC)",
        "True positives over false positives of each detector, a panel for each kind of attacker; "
        "the areas are in the table",
    ),
    "statistics": (
        "What the detectors see",
        "Ranges of each detector's statistic over clean, natural and attacked images",
    ),
}
# How verdicts on gradients are marked, by how they begin.
TONES = {
    gradients.checks.PASS: "pass",
    gradients.checks.FAIL: "fail",
    gradients.checks.NOT_INFORMATIVE: "neutral",
}


def tone(text: str) -> str:
    """How a cell of a table is marked, '' for not at all."""
    return next((tone for verdict, tone in TONES.items() if text.startswith(verdict)), "")
