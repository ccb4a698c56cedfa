"""What an evaluation leaves: results.json, images, figures, the table on the terminal."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from purify.data.image_io import to_float
from purify.evals import plots
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.results import (
    MAIN,
    SINGLE_RUN,
    accuracy_text,
    mean_rows,
    protocol_name,
)
from purify.evals.attacked.rows import Row, crafting
from purify.evals.core.engine import there
from purify.evals.core.figures import attempted, drawn
from purify.evals.core.inputs import Inputs
from purify.evals.core.show import Shown
from purify.evals.core.tables import Cell, Column, Table, grouped, percent
from purify.evals.core.terminal import (
    perturbation_lines,
    shared_options,
    variant_lines,
    verdict,
)
from purify.evals.robust.versions import read_versions, save_versions, versions_path
from purify.runtime.messages import counted
from purify.saving import schema
from purify.saving.checkpoint import ROLES
from purify.saving.files import subfolder, writing
from purify.saving.jsonl import read_lines

FIGURE_IMAGES = 10


def results_table(results: Mapping) -> Table:
    """The rows of results.json; '*' marks the lowest attacked mean of each defence, '!' attacks
    whose loss did not move."""
    still = [row for row in results["rows"] if "unmoved" in row and protocol_name(row) in MAIN]
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in results["rows"]:
        key = row["defense"]["name"], row["attack"]
        groups.setdefault(key, {})[protocol_name(row)] = row
    names = list(results["config"]["eval"]["defenses"])
    lines = []
    for key in sorted(groups, key=lambda key: names.index(key[0])):  # attacks: as they were run
        defense, attack = key
        main = groups[key].get("mean") or groups[key]["fixed_key"]
        mark = "*" if results["headline"].get(defense) == attack else " "
        mark = "?" if main["exact_beside"] is False else mark
        if still:
            mark += "!" if "unmoved" in main else " "
        clean = main["clean_accuracy"]
        cells: tuple[Cell, ...] = (
            defense,
            attack,
            str(main["num_images"]),
            percent(main, "accuracy", after=mark),
            "" if clean is None else f"{100 * clean:.1f}",
            *(_percent(groups[key].get(p)) for p in ("ensemble", "vote", SINGLE_RUN)),
            _worst(groups[key].get("worst_of_n")),
            *(f"{main[f'{name}_per_image']:,.0f}" for name in ("nfe", "nge")),
            f"{main['seconds_per_image']:.3f}",
        )
        lines.append(cells)
    caption = "\n".join([CAPTION, *_unmoved(still)])
    return Table(results["title"], COLUMNS, grouped(lines), caption, merged=True)


NUMBERS = (
    *("n", "mean of draws [95 %]", "clean", "1 draw", "vote", "S=1", "worst [95 %] clean"),
    *("nfe", "nge", "s/image"),
)
COLUMNS = (Column("defence"), Column("attack"), *(Column(name, numeric=True) for name in NUMBERS))
CAPTION = """\
mean of draws: share of fresh S-run draws that are right, in %, over n images (bootstrap over
  images, exact where every image has one outcome); identity: the undefended classifier
1 draw: a single S-run draw; vote: majority of its runs; S=1: single runs; worst: right in all N
  draws (resubmission); clean: of the same images unattacked, the mean of draws and the worst
nfe, nge: score-network forwards and gradients per image, attack and scoring
s/image: median over images, without compiling
*: a defence's lowest mean under attack on the images its attacks share: its headline
?: no attack with the exact gradient in this ball was tried: no evidence of robustness"""


def _unmoved(rows: list[Mapping]) -> list[str]:
    """What '!' says, if there is one."""
    if not rows:
        return []
    told = "; ".join(
        f"{row['defense']['name']} under {row['attack']}: on {row['unmoved']:,} of "
        f"{counted(row['num_images'], 'image')}"
        for row in rows
    )
    return [f"!: the attack's loss did not move, so it shows nothing. {told}"]


def says(results: Mapping) -> str:
    """The headline defence, clean and under the attack that leaves it least."""
    name = results["config"]["defense"]["purifier"]
    attack = results["headline"].get(name)
    rows = {row["attack"]: row for row in mean_rows(results) if row["defense"]["name"] == name}
    said = [f"{accuracy_text(rows['clean'])} clean"] if "clean" in rows else []
    said += [f"{accuracy_text(rows[attack])} under {attack}"] if attack in rows else []
    return f"{name}: {', '.join(said)}" if said else ""


def _percent(row: dict | None) -> str:
    return "" if row is None else f"{100 * row['accuracy']:.1f}"


def _worst(row: dict | None) -> Cell:
    if row is None:
        return ""
    clean = row["clean_accuracy"]
    return percent(row, "accuracy", after=" " if clean is None else f" {100 * clean:5.1f}")


def comparison_lines(results: Mapping) -> list[str]:
    """The paired comparisons of results.json as sentences."""
    lines = []
    for entry in results["comparisons"]:
        found = verdict(entry["low"], entry["high"])
        line = (
            f"{entry['a']} {found} {entry['b']}: {100 * entry['mean_difference']:+.1f} points "
            f"[{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}], n {entry['num_images']}"
        )
        if share := entry.get("share"):
            low, value, high = (100 * share[end] for end in ("low", "value", "high"))
            left = f"{value:.0f} % [{low:.0f}, {high:.0f}]"
            line += f"; the latter leaves {left} of what the former leaves"
        lines.append(line)
    return lines


def title(config, rows: list[Row], settings: Mapping) -> str:
    """The settings that the whole table shares, and the budget of each attack."""
    # Of the last defence, the headline as a rule: one that draws nothing needs no samples.
    attacks: dict[str, Row] = {row.attack_name: row for row in rows if row.attack}
    budgets = []
    for name, row in attacks.items():
        attack, gradient = row.attack, row.options["gradient"]
        if direction := row.options.get("direction"):
            gradient += f" and direction {direction}"
        if penalty := row.options.get("penalty"):
            gradient += f" less {penalty:g} x (score norm above its threshold)"
        budgets.append(
            f"{name}: {row.options['attack']}, {gradient}, {attack.norm} {attack.eps:.3g}, "
            f"{attack.budget}"
        )
    options = shared_options(config, config.eval.defenses, config.eval.num_draws)
    shared = f"{config.data.name} {config.data.test_split}{options}"
    variants = variant_lines(config, config.eval.defenses)
    return "\n".join([shared, *variants, *perturbation_lines(settings), *budgets])


def _has_images(evaluation, row: Row) -> bool:
    return there(evaluation.attacked_images(row)[: row.num_images])


def _save_attacked(evaluation, row: Row) -> Path:
    """<crafted>.npz with images, labels and index: what --mode=eval_robust --input reads."""
    engine = evaluation.engine
    path = subfolder(engine.store.folder, "attacked") / f"{row.crafted}.npz"
    n = row.num_images
    with writing(path) as file:
        np.savez_compressed(
            file,
            images=evaluation.attacked_images(row)[:n],
            labels=engine.labels[:n],
            index=engine.indices[:n],
        )
    return path


def draw_figures(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    """Draw what the rows of results.json say, as files of that suffix; their paths."""
    shown = [e for e in results["rows"] if protocol_name(e) in MAIN]
    return [
        *drawn(folder / f"accuracy{suffix}", lambda path: plots.accuracy_bars(path, shown)),
        *drawn(folder / f"cost{suffix}", lambda path: plots.accuracy_by_cost(path, shown)),
    ]


def write_images(
    evaluation: Evaluation, rows: list[Row], headline: str, inputs: Inputs
) -> list[Path]:
    """Write the attacked images (.npz), how the networks learnt, and what purification by the
    headline defence does to images; the paths."""
    folder = evaluation.engine.store.folder / "figures"
    # Records may outlive the images, which are a hundred times as large.
    kept = {row.crafted for row in crafting(rows) if _has_images(evaluation, row)}
    paths = [_save_attacked(evaluation, row) for row in crafting(rows) if row.crafted in kept]
    curves = attempted(folder / "training.png", lambda: _training_metrics(inputs.runs))
    if curves:
        draw = functools.partial(plots.training_curves, curves=curves)
        paths += drawn(folder / "training.png", draw)
    for row in rows:
        if not row.attack or row.defense_name != headline or not _has_images(evaluation, row):
            continue
        path = versions_path(evaluation.engine, row)
        save = functools.partial(save_versions, evaluation, row)
        if saved := attempted(path, save):
            draw = functools.partial(_image_figure, saved=saved, class_names=inputs.class_names)
            paths += [saved, *drawn(folder / f"{row.name}.png", draw)]
    return paths


def _training_metrics(runs: Mapping[str, Path]) -> dict[str, list[dict]]:
    """role -> what its training told, of the roles whose training is known."""
    found = {
        role: read_lines(runs[role] / "metrics.jsonl", schema.metrics)
        for role in ROLES
        if role in runs
    }
    return {role: lines for role, lines in found.items() if lines}


def _image_figure(path: Path, saved: Path, class_names: Sequence[str]) -> None:
    """Clean, attacked, noised and purified versions of the first images, with predictions."""
    versions, n = read_versions(saved), FIGURE_IMAGES
    labels = versions.labels[:n]
    captions = {
        name: [(class_names[a], bool(a == y)) for a, y in zip(answers[:n], labels, strict=True)]
        for name, answers in versions.answers.items()
    }
    shown = {name: to_float(images[:n]) for name, images in versions.images.items()}
    plots.image_rows(path, shown, captions)


FIGURES = {
    "accuracy": (
        "Accuracy by defence and attack",
        "Bars of the accuracy of each defence under each attack, with 95 % intervals; the "
        "numbers are in the table",
    ),
    "cost": (
        "Accuracy over what a draw of the defence costs",
        "Accuracy of each defence over the network evaluations of a draw, a panel for each attack",
    ),
    "training": (
        "How the networks were trained",
        "Losses and accuracies over the training steps of each network",
    ),
}
SHOWN = Shown(
    "Accuracy under attack",
    says,
    lambda results: [results_table(results)],
    comparison_lines,
    draw_figures,
    FIGURES,
)
