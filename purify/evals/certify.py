"""--mode=certify: L2 certificates of "purify, then classify", by randomised smoothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from purify.evals import plots, smoothing
from purify.evals.certification import Certification, SmoothedRow, smoothed
from purify.evals.defenses import purifier_options, purifier_settings
from purify.evals.inputs import Inputs, load_inputs
from purify.evals.results import purifier_fields
from purify.evals.stats import bootstrap_mean, proportion
from purify.evals.store import Store
from purify.evals.terminal import empty_table, print_wide, tell_stopped, tell_written
from purify.jsonl import write_json


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Certify, print a table, and write results.json and the curves.

    max_images: stop after so many images of each row; a later run, with more of them or without a
        limit, goes on from there.
    """
    cfg = config.certify
    inputs = load_inputs(config, workdir, cfg.defenses)
    rows = _plan(config, inputs)
    needed = max(row.num_images for row in rows)
    inputs = inputs.first(needed)
    settings = _settings(config, rows) | inputs.settings(config)
    if max_images:
        rows = [dataclasses.replace(r, num_images=min(r.num_images, max_images)) for r in rows]
    with Store(workdir, "certify", settings) as store:
        options = {field: cfg[field] for field in ("num_selection", "alpha", "chunk")}
        options |= dict(seed=config.seed, num_classes=inputs.num_classes)
        arrays = inputs.images, inputs.labels, inputs.indices
        Certification(store, *arrays, **options).run(rows)
        results = {
            "title": _title(config),
            "rows": [_result(row, store, cfg, seed=config.seed) for row in rows],
            "meaning": MEANING,
            **settings,
            **store.computed_by(),
            "config": config.to_dict(),
        }
        paths = [store.folder / "results.json", store.folder / "images.jsonl"]
        write_json(paths[0], results)
        (store.folder / "figures").mkdir(exist_ok=True)
        paths += draw_figures(store.folder / "figures", results)
        print_wide(results_table(results))
        tell_written(paths)
    tell_stopped(max(row.num_images for row in rows), needed, max_images)


def _plan(config, inputs: Inputs) -> list[SmoothedRow]:
    """The rows of config.certify; ValueError names what is wrong before anything is computed."""
    cfg, rows = config.certify, []
    if not cfg.defenses or not cfg.sigmas:
        raise ValueError("config.certify.defenses and config.certify.sigmas must name at least one")
    if cfg.chunk < 1:
        raise ValueError(f"config.certify.chunk={cfg.chunk} must be at least 1")
    for name in cfg.defenses:
        purifier_options(config, name, field="config.certify.defenses")
        budget = {"num_images": cfg.num_images, "num_samples": cfg.num_samples}
        fewer = cfg.budgets.to_dict().get(name, {})
        if unknown := fewer.keys() - budget.keys():
            raise ValueError(
                f"config.certify.budgets.{name} has no {', '.join(sorted(unknown))}; known: "
                f"{', '.join(budget)}"
            )
        budget |= fewer
        if budget["num_images"] < 1:
            raise ValueError(
                f"config.certify: num_images={budget['num_images']} must be at least 1"
            )
        budget["num_images"] = min(budget["num_images"], len(inputs.labels))
        defense = inputs.defense(config, name)
        for sigma in cfg.sigmas:
            smoothing.check(
                sigma=sigma,
                num_selection=cfg.num_selection,
                num_samples=budget["num_samples"],
                alpha=cfg.alpha,
            )
            rows.append(SmoothedRow(name, smoothed(defense, sigma, name), sigma, **budget))
    return rows


def _settings(config, rows: list[SmoothedRow]) -> dict:
    """Everything that decides the certificates, but for networks and images."""
    cfg = config.certify
    return {
        "num_selection": cfg.num_selection,
        "alpha": cfg.alpha,
        "smoothed": {
            row.name: purifier_settings(config, row.defense_name)
            | {"sigma": row.sigma, "num_samples": row.num_samples}
            for row in rows
        },
    }


def _result(row: SmoothedRow, store: Store, cfg, *, seed: int) -> dict:
    """The entry of results.json for one row."""
    records = [record for _, record in sorted(store.records(row.name).items())]
    right = np.array([r["top"] == r["label"] for r in records])
    radii = np.where(right, [r["radius"] for r in records], -np.inf)
    answers = np.array([r["answer"] for r in records])
    abstained = proportion([r["radius"] == 0 for r in records])
    largest = smoothing.largest_radius(row.num_samples, cfg.alpha, row.sigma)
    average = bootstrap_mean(np.maximum(radii, 0.0), seed=seed, bounds=(0.0, largest))
    return {
        "defense": {"name": row.defense_name, **purifier_fields(row.defense.purifier)},
        "num_images": len(records),
        "num_samples": row.num_samples,
        "num_selection": cfg.num_selection,
        "alpha": cfg.alpha,
        "average_certified_radius": average.value,
        "low": average.low,
        "high": average.high,
        "largest_radius": largest,
        "abstained": abstained.value,
        "accuracy": float(np.mean([r["answer"] == r["label"] for r in records])),
        "no_answer": float(np.mean(answers == smoothing.ABSTAIN)),
        "certified_radii": [float(max(r, 0.0)) for r in radii],
        "certified": [{"radius": float(r), **proportion(radii > r)._asdict()} for r in cfg.radii],
        "nfe_per_image": float(np.mean([r["nfe"] for r in records])),
        "seconds_per_image": float(np.median([r["seconds"] for r in records])),
        "seed": seed,
    }


def _title(config) -> str:
    cfg = config.certify
    return (
        f"{config.data.name} {config.data.test_split}: certified L2 radii, alpha {cfg.alpha:g}, "
        f"{cfg.num_selection} samples to select the class"
    )


def draw_figures(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    """Draw what the rows of results.json say, as files of that suffix; their paths."""
    path = folder / f"certified{suffix}"
    plots.certified_curves(path, results["rows"])
    return [path]


def results_table(results: Mapping) -> Table:
    """The rows of results.json."""
    table = empty_table(results["title"], CAPTION)
    names = ("defence", "sigma", "n", "samples", "ACR [95 %]", "abstains", "answers right")
    radii = [f"r {at['radius']:g}" for at in results["rows"][0]["certified"]]
    for column in (*names, *radii, "nfe", "s/image"):
        table.add_column(column, justify="left" if column == "defence" else "right", no_wrap=True)
    for row in results["rows"]:
        average, low, high = (row[k] for k in ("average_certified_radius", "low", "high"))
        table.add_row(
            row["defense"]["name"],
            f"{row['defense']['sigma']:g}",
            str(row["num_images"]),
            f"{row['num_samples']:,}",
            f"{average:.3f} [{low:.3f}, {high:.3f}]",
            *(f"{100 * row[share]:.0f}" for share in ("abstained", "accuracy")),
            *(f"{100 * at['value']:.0f}" for at in row["certified"]),
            f"{row['nfe_per_image']:,.0f}",
            f"{row['seconds_per_image']:.2f}",
        )
    return table


MEANING = (
    "Each radius holds for the smoothed classifier, the majority over noise of the given sigma, "
    "under L2, with confidence 1 - alpha for each image; not for one run of the defence, for "
    "another sigma, or in another norm."
)
CAPTION = """\
ACR: average certified radius, L2 in pixel units of [0, 1], 0 where wrong or abstained (bootstrap)
abstains: no radius is certified; answers right: of the smoothed classifier, if it answers; in %
r: certified accuracy there, right with a larger radius than that, %
a certificate is of the smoothed majority classifier, under L2, at its sigma, of nothing else"""
