"""What a page says of each evaluation: its numbers, figures, images, and where they come from."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from purify.evals import plots, robust
from purify.evals.attacked.results import accuracy_text, mean_rows
from purify.evals.core.figures import drawn
from purify.evals.core.tables import Column, Table, scalar
from purify.evals.report.blocks import (
    Block,
    Details,
    Figure,
    Heading,
    Notes,
    Pairs,
    Prose,
    Section,
    Text,
    read_figure,
)
from purify.evals.report.images import BUDGET, image_blocks
from purify.evals.report.modes import MODES
from purify.evals.report.runs import Run
from purify.evals.report.sweeps import sweeps

COST = "cost"  # the figure that stands with that table
SWEEPS = {
    "eps": ("Accuracy over the radius of the attack", "eps, {norm}, in pixel units of [0, 1]"),
    "eot_samples": ("Accuracy over samples per gradient (EOT)", "EOT samples"),
}


def sections(runs: Sequence[Run], points: Sequence[Run]) -> list[Section]:
    """Of each run, its numbers; curves over several rows or runs, the points among them; of each
    run, its images."""
    attacked = [run for run in runs if run.mode == "eval_robust"]
    images = [
        Section(_heading("Images", run, attacked), "", blocks)
        for run in attacked
        if (blocks := image_blocks(run, budget=BUDGET // len(attacked)))
    ]
    return [*(_numbers(run, runs) for run in runs), *_curves([*points, *attacked]), *images]


def _heading(text: str, run: Run, runs: Sequence[Run]) -> str:
    """With what tells the run apart where others of these are of the same mode."""
    return ": ".join(filter(None, (text, run.told_apart(runs))))


def _numbers(run: Run, runs: Sequence[Run]) -> Section:
    shown, results = MODES[run.mode], run.results
    title = str(results.get("title", "")).splitlines()
    blocks: list[Block | Table] = [Prose(title[:1]), Notes(title[1:])]
    tables = list(shown.tables(results))
    if tables:  # whose title stands above
        tables[0] = dataclasses.replace(tables[0], title=f"{shown.title}: all rows")
    meaning = [results[name] for name in ("stopped", "meaning", "note") if results.get(name)]
    blocks += [Prose(meaning)] if meaning else []
    blocks += tables
    if run.mode == "eval_robust" and results["comparisons"]:
        lines = robust.show.comparison_lines(results)
        blocks.append(Details("Paired comparisons on the same images", [Notes(lines)]))
    drawn = _drawn(run)
    blocks += [figure for figure in drawn if figure.name != COST]
    if run.mode == "eval_robust":
        of_cost = [figure for figure in drawn if figure.name == COST]
        blocks += [Heading("Cost"), cost_table(results), *of_cost]
    blocks += _written(run, without={figure.name for figure in drawn})
    stopped = results.get("stopped", "").partition(" (")[0]
    says = "; ".join(filter(None, (shown.says(results), stopped)))
    return Section(_heading(shown.title, run, runs), says, blocks)


def _drawn(run: Run) -> list[Figure]:
    """Drawn anew: sharp at any size."""
    with tempfile.TemporaryDirectory() as folder:
        paths = MODES[run.mode].draw(Path(folder), run.results, ".svg")
        return [_figure(path, run.mode) for path in paths]


def _written(run: Run, *, without: set[str]) -> list[Figure]:
    """Others as the mode wrote them, but for those of images that have a section of their own."""
    without = without | {path.stem for path in run.files("purified", "*.npz")}
    figures = run.files("figures", "*.png")
    return [_figure(path, run.mode) for path in figures if path.stem not in without]


def _figure(path: Path, mode: str) -> Figure:
    name = path.stem.replace("-", ": ", 1).replace("_", " ")
    caption, alt = MODES[mode].figures.get(path.stem, (name, name))
    return read_figure(path, alt=alt, caption=caption)


def _curves(runs: Sequence[Run]) -> list[Section]:
    """Accuracy over eps, a figure for each norm, and over EOT samples, where rows differ in it."""
    found = []
    for field, (caption, label) in SWEEPS.items():
        named = ((run.workdir.absolute().name, run.results) for run in runs)
        curves = sweeps(named, field)
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
            draw = functools.partial(plots.accuracy_curves, curves=own, field=field, axis=label)
            if not drawn(path, draw):
                continue
            alt = "; ".join(
                f"{name}: {', '.join(f'{row[field]:g}: {accuracy_text(row)}' for row in points)}"
                for name, points in own.items()
            )
            caption = f"{caption}; whiskers: 95 % interval"
            figures.append(read_figure(path, alt=alt, caption=caption))
    return [Section("Curves", "", figures)] if figures else []


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
        lines.append((name, *draw, *each))
    caption = (
        "nfe: score-network forwards; a draw: S purifications of one image\n"
        "s/image: attack and scoring of one image, median, without compiling"
    )
    return Table("Cost by defence and attack", columns, [lines], caption)


def _seconds(row: Mapping, prefix: str = "") -> str:
    return f"{row[f'{prefix}seconds_per_image']:.4f}"


def provenance(run: Run) -> list[Block | Table]:
    """What computed a run, from what: commits, versions, machine, weights, settings, config."""
    results = run.results
    signatures = results.get("computed_by", [])
    known = ("time", "commit", "machine", "precision", "python", "devices", "batch_size", "chunk")
    names = [name for name in known if any(name in signature for signature in signatures)]
    lines = [[scalar(signature.get(n)) for n in names] for signature in signatures]
    columns = [Column(name.replace("_", " ")) for name in names]
    versions = results.get("versions", {})
    pairs = {"folder": str(run.folder)}
    pairs |= {f"weights of {name}": value for name, value in results.get("weights", {}).items()}
    pairs["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    blocks: list[Block | Table] = [Table("Computed by", columns, [lines]), Pairs(pairs)]
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
