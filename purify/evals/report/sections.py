"""What a page says of each evaluation: its numbers, figures, images, and where they come from."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table as Terminal

from purify.evals import (
    certify,
    corruption_report,
    gradient_checks,
    gradient_health,
    plots,
    robust_report,
)
from purify.evals.report.blocks import (
    Block,
    Column,
    Details,
    Figure,
    Heading,
    Line,
    Notes,
    Pairs,
    Prose,
    Section,
    Table,
    Text,
    from_terminal,
    read_figure,
)
from purify.evals.report.images import BUDGET, Strips, image_blocks
from purify.evals.report.runs import Run
from purify.evals.results import protocol_name
from purify.evals.sweeps import sweeps

Draw = Callable[..., list[Path]]


class Shown(NamedTuple):
    """How the results of a mode are shown.

    says: results -> the line that stands for them in the summary. table, draw: the mode's own, of
    its module; None for a table of all columns, and for the figures that the mode wrote.
    """

    title: str
    says: Callable[[Mapping], str]
    table: Callable[[Mapping], Terminal] | None = None
    draw: Draw | None = None


def _headline_says(results: Mapping) -> str:
    name = results["config"]["defense"]["purifier"]
    attack = results["headline"].get(name)
    rows = {row["attack"]: row for row in mean_rows(results) if row["defense"]["name"] == name}
    said = [f"{percent(rows['clean'])} clean"] if "clean" in rows else []
    said += [f"{percent(rows[attack])} under {attack}"] if attack else []
    return f"{name}: {', '.join(said)}" if said else ""


def _radii_say(results: Mapping) -> str:
    return "average certified radius: " + ", ".join(
        f"{row['defense']['name']} {row['average_certified_radius']:.3f} at sigma "
        f"{row['defense']['sigma']:g}"
        for row in results["rows"]
    )


def _errors_say(results: Mapping) -> str:
    means = [e for e in results["means"] if e["corruption"] == corruption_report.MEAN]
    errors = (f"{e['defense']['name']} {100 * (1 - e['accuracy']):.1f} %" for e in means)
    return f"mean error: {', '.join(errors)}" if means else ""


def _nothing(results: Mapping) -> str:
    return ""


MODES = {
    "eval_robust": Shown(
        "Accuracy under attack",
        _headline_says,
        robust_report.results_table,
        robust_report.draw_figures,
    ),
    "check_gradients": Shown(
        "Whether attacks see the gradient",
        gradient_health.conclusion,
        gradient_health.results_table,
    ),
    "certify": Shown("Certified radii", _radii_say, certify.results_table, certify.draw_figures),
    "eval_corruptions": Shown(
        "Common corruptions",
        _errors_say,
        corruption_report.results_table,
        corruption_report.draw_figures,
    ),
    "detect": Shown("Detection", _nothing),
    "ablate": Shown("Ablations", _nothing),
    "sample": Shown("Samples", _nothing),
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
    "training": (
        "How the networks were trained",
        "Losses and accuracies over the training steps of each network",
    ),
    "roc": (
        "Receiver operating characteristic",
        "True positives over false positives of each detector",
    ),
}
# How verdicts on gradients are marked, by how they begin.
TONES = {
    gradient_checks.PASS: "pass",
    gradient_checks.FAIL: "fail",
    gradient_checks.NOT_INFORMATIVE: "neutral",
}
SWEEPS = {
    "eps": ("Accuracy over the radius of the attack", "eps, {norm}, in pixel units of [0, 1]"),
    "eot_samples": ("Accuracy over samples per gradient (EOT)", "EOT samples"),
}


class Share(NamedTuple):
    """An accuracy and its 95 % interval, in %, of so many images."""

    value: float
    low: float
    high: float
    num_images: int


class Defended(NamedTuple):
    """One defence in the summary: clean, under the attack that leaves it least, and that attack's
    worst of all draws. unproven: no exact gradient stands beside that attack."""

    name: str
    clean: Share | None
    attack: str
    attacked: Share | None
    worst: Share | None
    unproven: bool
    nfe: float


def summary(run: Run) -> list[Defended]:
    """Of an evaluation under attack, each defence at a glance; none of another mode's."""
    if run.mode != "eval_robust":
        return []
    rows: dict[str, dict[tuple[str, str], Mapping]] = {}
    for row in run.results["rows"]:
        named = rows.setdefault(row["defense"]["name"], {})
        named[row["attack"], protocol_name(row)] = row
    found = []
    for name, own in rows.items():
        attack = run.results["headline"].get(name, "given")  # images attacked elsewhere
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
                next(iter(own.values()))["defense_nfe_per_image"],
            )
        )
    return found


def _share(row: Mapping | None) -> Share | None:
    if row is None:
        return None
    value, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    return Share(value, low, high, row["num_images"])


def tone(text: str) -> str:
    """How a cell of a table is marked, '' for not at all."""
    return next((tone for verdict, tone in TONES.items() if text.startswith(verdict)), "")


def percent(row: Mapping) -> str:
    """'37.0 % [30, 45]', of the accuracy of a row and its 95 % interval."""
    value, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    return f"{value:.1f} % [{low:.0f}, {high:.0f}]"


def mean_rows(results: Mapping) -> list[Mapping]:
    """Of results.json of eval_robust, the rows whose protocol is the mean of draws."""
    return [row for row in results["rows"] if protocol_name(row) == "mean"]


def sections(runs: Sequence[Run], points: Sequence[Run]) -> list[Section]:
    """Of each run, its numbers; curves over several rows or runs, the points among them; of each
    run, its images."""
    own = [_numbers(run) for run in runs]
    attacked = [run for run in runs if run.mode == "eval_robust"]
    images = []
    for run in attacked:
        if blocks := image_blocks(run, budget=BUDGET // len(attacked)):
            says = "" if any(isinstance(block, Strips) for block in blocks) else "not kept"
            heading = f"Images of {run.folder.name}" if len(attacked) > 1 else "Images"
            images.append(Section(f"{run.name}-shown", heading, says, blocks))
    return [*own, *_curves([*points, *attacked]), *images]


def _numbers(run: Run) -> Section:
    shown, results = MODES[run.mode], run.results
    first, *settings = str(results["title"]).splitlines()
    blocks: list[Block] = [Prose([first])]
    blocks += [Notes(settings)] if settings else []
    caption = f"{shown.title}: all rows"
    if shown.table:
        rows = from_terminal(shown.table(results), caption)
    else:
        rows = all_columns(results.get("rows", []), caption)
    meaning = [results[name] for name in ("meaning", "note") if results.get(name)]
    blocks += [Prose(meaning)] if meaning else []
    blocks += [rows] if rows.groups else []
    if results.get("comparisons"):
        lines = robust_report.comparison_lines(results)
        blocks.append(Details("Paired comparisons on the same images", [Notes(lines)]))
    blocks += _figures(run, shown.draw)
    if run.mode == "eval_robust":
        blocks += [Heading("Cost"), cost_table(results)]
    return Section(run.name, shown.title, shown.says(results), blocks)


def _figures(run: Run, draw: Draw | None) -> list[Block]:
    """Drawn anew where they can be, sharp at any size; the others as the mode wrote them, but for
    those of images, which have a section of their own."""
    figures: list[Block] = []
    drawn = set()
    if draw:
        with tempfile.TemporaryDirectory() as folder:
            for path in draw(Path(folder), run.results, ".svg"):
                drawn.add(path.stem)
                figures.append(_figure(path))
    kept = {path.stem for path in run.folder.glob("purified/*.npz")}
    written = sorted((run.folder / "figures").glob("*.png"))
    return figures + [_figure(path) for path in written if path.stem not in drawn | kept]


def _figure(path: Path) -> Figure:
    name = path.stem.replace("_", " ")
    caption, alt = FIGURES.get(path.stem, (name, name))
    return read_figure(path, alt=alt, caption=caption)


def _curves(runs: Sequence[Run]) -> list[Section]:
    """Accuracy over eps, a figure for each norm, and over EOT samples, where rows differ in it."""
    found = []
    for field, (caption, label) in SWEEPS.items():
        curves = sweeps((run.results for run in runs), field)
        norms = dict.fromkeys(curve.norm for curve in curves) if field == "eps" else {None: None}
        for norm in norms:
            own = {c.label: c.points for c in curves if norm in (None, c.norm)}
            if own:
                found.append((field, caption, label.format(norm=norm), own))
    if not found:
        return []
    figures: list[Block] = []
    with tempfile.TemporaryDirectory() as folder:
        for field, caption, label, own in found:
            path = Path(folder) / f"{field}-{len(figures)}.svg"
            plots.accuracy_curves(path, own, field, label)
            alt = "; ".join(
                f"{name}: {', '.join(f'{row[field]:g}: {percent(row)}' for row in points)}"
                for name, points in own.items()
            )
            caption = f"{caption}; whiskers: 95 % interval"
            figures.append(read_figure(path, alt=alt, caption=caption))
    return [Section("curves", "Curves", "", figures)]


def cost_table(results: Mapping) -> Table:
    """What a draw of each defence takes, and what each attack on an image took."""
    attacks = list(dict.fromkeys(row["attack"] for row in mean_rows(results)))
    by_name: dict[str, dict[str, Mapping]] = {}
    for row in mean_rows(results):
        by_name.setdefault(row["defense"]["name"], {})[row["attack"]] = row
    columns = [Column("defence"), Column("nfe a draw", True), Column("s a draw", True)]
    columns += [Column(f"{attack}, s/image", True) for attack in attacks]
    lines = []
    for name, rows in by_name.items():
        any_row = next(iter(rows.values()))
        draw = (f"{any_row['defense_nfe_per_image']:,.0f}", _seconds(any_row, "defense_"))
        each = (_seconds(rows[a]) if a in rows else "" for a in attacks)
        lines.append(Line((name, *draw, *each)))
    notes = (
        "nfe: score-network forwards; a draw: S purifications of one image",
        "s/image: attack and scoring of one image, median, without compiling",
    )
    return Table("Cost by defence and attack", columns, [lines], notes)


def _seconds(row: Mapping, prefix: str = "") -> str:
    return f"{row[f'{prefix}seconds_per_image']:.4f}"


def all_columns(rows: Iterable[Mapping], caption: str) -> Table:
    """Whatever the rows hold that is one number, word or truth value; what is the same in all of
    them is a note."""
    flat = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    same = {n for n in names if len(flat) > 1 and len({str(row.get(n)) for row in flat}) == 1}
    varying = [name for name in names if name not in same]
    columns = [
        Column(name, all(isinstance(row.get(name), int | float | None) for row in flat))
        for name in varying
    ]
    lines = [Line([_scalar(row.get(name)) for name in varying]) for row in flat]
    told = [f"{n} {_scalar(flat[0][n])}" for n in names if n in same and flat[0][n] is not None]
    notes = [f"the same in all rows: {', '.join(told)}"] if told else []
    return Table(caption, columns, [lines] if lines else [], notes)


def _flat(row: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value is None or isinstance(value, str | int | float):
            yield f"{prefix}{name}", value


def _scalar(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def provenance(run: Run) -> list[Block]:
    """What computed a run, from what: commits, versions, machine, weights, settings, config."""
    results = run.results
    signatures = results.get("computed_by", [])
    known = ("time", "commit", "machine", "python", "devices", "batch_size", "chunk")
    names = [name for name in known if any(name in signature for signature in signatures)]
    lines = [Line([_scalar(signature.get(n)) for n in names]) for signature in signatures]
    columns = [Column(name.replace("_", " ")) for name in names]
    versions = results.get("versions", {})
    pairs = {"folder": str(run.folder)}
    pairs |= {f"weights of {name}": value for name, value in results.get("weights", {}).items()}
    pairs["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks: list[Block] = [Table("Computed by", columns, [lines]), Pairs(pairs)]
    parts = {
        "Settings that name the folder": run.settings,
        "How the networks were trained": results.get("trained"),
        "Config": results["config"],
    }
    blocks += [
        Details(summary, [Text(json.dumps(value, indent=1))])
        for summary, value in parts.items()
        if value
    ]
    return blocks
