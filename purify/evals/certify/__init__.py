"""--mode=certify: L2 certificates of "purify, then classify", by randomised smoothing."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from purify.evals import plots
from purify.evals.attacked.results import purifier_fields
from purify.evals.certify import smoothing
from purify.evals.certify.measure import Certification, SmoothedRow, smoothed
from purify.evals.core.defenses import defense_settings, purifier_options
from purify.evals.core.figures import drawn
from purify.evals.core.inputs import Inputs, load_inputs, tell_seen
from purify.evals.core.result_files import write_results
from purify.evals.core.stats import bootstrap_mean, paired_difference, proportion
from purify.evals.core.store import Store
from purify.evals.core.tables import Cell, Column, Interval, Table
from purify.evals.core.terminal import (
    print_reservations,
    print_table,
    stopped_early,
    tell_written,
)
from purify.runtime.messages import counted


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
    taken = max(row.num_images for row in rows)
    stopped = stopped_early(taken, needed, max_images)
    with Store(workdir, "certify", settings, stopped=stopped) as store:
        tell_seen(config.data, inputs, range(taken))
        options = {field: cfg[field] for field in ("num_selection", "alpha", "chunk")}
        options |= dict(seed=config.seed, num_classes=inputs.num_classes)
        arrays = inputs.images, inputs.labels, inputs.indices
        Certification(store, *arrays, **options).run(rows)
        done = []
        for row in rows:
            records, indices = store.records(row.name), inputs.indices[: row.num_images]
            done.append((row, [records[int(index)] for index in indices]))
        results = {
            "title": inputs.titled(_title(config)),
            "rows": [_result(*each, cfg, seed=config.seed) for each in done],
            "differences": _differences(done, cfg, seed=config.seed),
            "meaning": MEANING,
            **settings,
            **store.computed_by(),
            "trained": inputs.trained(),
            "config": config.to_dict(),
        }
        paths = [write_results(store.folder, results), store.folder / "images.jsonl"]
        print_table(results_table(results))
        if differences := differences_table(results):
            print_table(differences)
        print_reservations(results)
        tell_written([*paths, *draw_figures(store.folder / "figures", results)])


def _plan(config, inputs: Inputs) -> list[SmoothedRow]:
    """The rows of config.certify; ValueError names what is wrong before anything is computed."""
    cfg, rows, available = config.certify, [], len(inputs.labels)
    if not cfg.defenses or not cfg.sigmas:
        raise ValueError("config.certify.defenses and config.certify.sigmas must name at least one")
    if not all(0 <= radius < math.inf for radius in cfg.radii):
        raise ValueError(
            f"config.certify.radii={tuple(cfg.radii)} must all be finite and at least 0"
        )
    if cfg.chunk < 1:
        raise ValueError(f"config.certify.chunk={cfg.chunk} must be at least 1")
    shared = {"num_images": cfg.num_images, "num_samples": cfg.num_samples}
    budgets = cfg.budgets.to_dict()
    for name, own in budgets.items():
        purifier_options(config, name, field="config.certify.budgets entry")
        if unknown := own.keys() - shared.keys():
            raise ValueError(
                f"config.certify.budgets.{name} has no {', '.join(sorted(unknown))}; known: "
                f"{', '.join(shared)}"
            )
    for name in cfg.defenses:
        purifier_options(config, name, field="config.certify.defenses")
        budget = shared | budgets.get(name, {})
        if not 1 <= budget["num_images"] <= available:
            raise ValueError(
                f"config.certify: num_images={budget['num_images']} of {name} must be from 1 to "
                f"{available}"
            )
        defense = inputs.defense(config, name)
        for sigma in cfg.sigmas:
            smoothing.check(
                sigma=sigma,
                num_selection=cfg.num_selection,
                num_samples=budget["num_samples"],
                alpha=cfg.alpha,
            )
            rows.append(SmoothedRow(name, smoothed(defense, sigma, name), sigma, **budget))
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(
            f"config.certify: two of the defenses {tuple(cfg.defenses)} at the sigmas "
            f"{tuple(cfg.sigmas)} have the same name, to six digits of sigma"
        )
    return rows


def _settings(config, rows: Sequence[SmoothedRow]) -> dict:
    """Everything that decides the certificates, but for networks and images."""
    cfg = config.certify
    return {
        "num_selection": cfg.num_selection,
        "alpha": cfg.alpha,
        "smoothed": {
            row.name: defense_settings(config, row.defense_name)
            | {"sigma": row.sigma, "num_samples": row.num_samples}
            for row in rows
        },
    }


def _radii(records: Sequence[Mapping]) -> np.ndarray:
    """The certified radius of each image, 0 where it is wrong or there is none: [n]."""
    return np.array([r["radius"] if r["top"] == r["label"] else 0.0 for r in records])


def _result(row: SmoothedRow, records: Sequence[Mapping], cfg, *, seed: int) -> dict:
    """The entry of results.json for one row."""
    radii = _radii(records)
    shares = {
        "abstained": proportion([r["radius"] == 0 for r in records]),
        "accuracy": proportion([r["answer"] == r["label"] for r in records]),
        "no_answer": proportion([r["answer"] == smoothing.ABSTAIN for r in records]),
    }
    largest = smoothing.largest_radius(row.num_samples, cfg.alpha, row.sigma)
    average = bootstrap_mean(radii, seed=seed, bounds=(0.0, largest))
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
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: [share.low, share.high] for name, share in shares.items()},
        "certified_radii": radii.tolist(),
        "certified": [{"radius": float(r), **proportion(radii > r)._asdict()} for r in cfg.radii],
        "nfe_per_image": float(np.mean([r["nfe"] for r in records])),
        "seconds_per_image": float(np.median([r["seconds"] for r in records])),
        "seed": seed,
    }


def _differences(done: Sequence[tuple], cfg, *, seed: int) -> list[dict]:
    """For each row the paired differences from plain smoothing at its sigma with as many samples,
    on the images that both have; none of a row without one to compare with.

    done: (row, its records) of all rows.
    """
    plain = {(r.sigma, r.num_samples): (r, records) for r, records in reversed(done) if r.is_plain}
    entries = []
    for row, records in done:
        baseline, its_records = plain.get((row.sigma, row.num_samples), (row, records))
        if baseline is row:
            continue
        both = min(len(records), len(its_records))  # each has the first ones
        radii, its_radii = (_radii(side[:both]) for side in (records, its_records))
        largest = smoothing.largest_radius(row.num_samples, cfg.alpha, row.sigma)
        # As shares of it: radii that are all 0 would pass for outcomes, whose largest is 1.
        average = paired_difference(radii / largest, its_radii / largest, seed=seed)
        entries.append(
            {
                "defense": row.defense_name,
                "against": baseline.defense_name,
                "sigma": row.sigma,
                "num_images": both,
                "num_samples": row.num_samples,
                "average_certified_radius": largest * average.value,
                "low": largest * average.low,
                "high": largest * average.high,
                "certified": [
                    {"radius": float(r), **paired_difference(radii > r, its_radii > r)._asdict()}
                    for r in cfg.radii
                ],
                "seed": seed,
            }
        )
    return entries


def _title(config) -> str:
    cfg = config.certify
    return (
        f"{config.data.name} {config.data.test_split}: certified L2 radii, alpha {cfg.alpha:g}, "
        f"{counted(cfg.num_selection, 'sample')} to select the class"
    )


def draw_figures(folder: Path, results: Mapping, suffix: str = ".png") -> list[Path]:
    """Draw what the rows of results.json say, as files of that suffix; their paths."""
    return drawn(
        folder / f"certified{suffix}", lambda path: plots.certified_curves(path, results["rows"])
    )


def results_table(results: Mapping) -> Table:
    """The rows of results.json."""
    columns = ("sigma", "n", "samples", "ACR [95 %]", "abstains", "right")
    lines = [
        (
            row["defense"]["name"],
            f"{row['defense']['sigma']:g}",
            str(row["num_images"]),
            f"{row['num_samples']:,}",
            _average(row),
            *(f"{100 * row[share]:.0f}" for share in ("abstained", "accuracy")),
            *(_percent(at) for at in row["certified"]),
            f"{row['nfe_per_image']:,.0f}",
            f"{row['seconds_per_image']:.2f}",
        )
        for row in results["rows"]
    ]
    return _table(results, results["title"], CAPTION, columns, lines, ("nfe", "s/image"))


def differences_table(results: Mapping) -> Table | None:
    """The differences of results.json, and which rows have none; None where all smooth plainly, or
    where results have none, as earlier versions wrote them."""
    if "differences" not in results or not any(row["defense"]["T"] for row in results["rows"]):
        return None
    compared = [(entry["defense"], entry["sigma"]) for entry in results["differences"]]
    purified = [row["defense"] for row in results["rows"] if row["defense"]["T"]]
    names = [(defense["name"], defense["sigma"]) for defense in purified]
    alone = [f"{name} at sigma {sigma:g}" for name, sigma in names if (name, sigma) not in compared]
    caption = DIFFERENCES_CAPTION
    if alone:
        caption += f"\nnot compared, for want of one with as many samples: {', '.join(alone)}"
    columns = ("less", "sigma", "n", "samples", "ACR [95 %]")
    lines = [
        (
            *(entry[side] for side in ("defense", "against")),
            f"{entry['sigma']:g}",
            str(entry["num_images"]),
            f"{entry['num_samples']:,}",
            _average(entry, signed=True),
            *(_percent(at, signed=True) for at in entry["certified"]),
        )
        for entry in results["differences"]
    ]
    return _table(results, "Differences from plain smoothing", caption, columns, lines)


def _table(
    results: Mapping,
    title: str,
    caption: str,
    columns: Sequence[str],
    lines: Sequence[Sequence[Cell]],
    last: Sequence[str] = (),
) -> Table:
    """With a column of defences, these columns, one of each radius, and the last ones."""
    radii = [f"r {at['radius']:g}" for at in results["rows"][0]["certified"]]
    return Table(
        title,
        [
            # Where room is short the intervals wrap, rather than all columns losing letters.
            Column(name, numeric=name not in ("defence", "less"), wraps=name in radii)
            for name in ("defence", *columns, *radii, *last)
        ],
        [lines] if lines else [],
        caption,
    )


def _average(row: Mapping, *, signed: bool = False) -> Interval:
    average, low, high = (row[name] for name in ("average_certified_radius", "low", "high"))
    return Interval(average, low, high, digits=3, end_digits=3, signed=signed)


def _percent(share: Mapping, *, signed: bool = False) -> Interval:
    value, low, high = (100 * share[name] for name in ("value", "low", "high"))
    return Interval(value, low, high, digits=0, signed=signed)


MEANING = (
    "Each radius holds for the smoothed classifier, the majority over noise of the given sigma, "
    "under L2, with confidence 1 - alpha for each image; not for one run of the defence, for "
    "another sigma, or in another norm."
)
CAPTION = """\
ACR: average certified radius, L2 in pixel units of [0, 1], 0 where wrong or abstained (bootstrap)
abstains: no radius is certified; right: the smoothed classifier answers, and rightly; in %
r: certified accuracy there, right with a larger radius than that, % [95 %, exact]
nfe: network evaluations of an image, at most: as if no run stopped early, with those begun in vain
a certificate is of the smoothed majority classifier, under L2, at its sigma, of nothing else"""
DIFFERENCES_CAPTION = """\
the defence less plain smoothing at its sigma with as many samples, paired on the images that both
  have [95 %]; r in points"""
