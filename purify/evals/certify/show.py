"""Tables and the figure of certificates, from results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from purify.evals import plots
from purify.evals.core.figures import drawn
from purify.evals.core.show import Shown
from purify.evals.core.tables import Cell, Column, Interval, Table


def tables(results: Mapping) -> list[Table]:
    """The rows, and the differences where there are any."""
    return [results_table(results), *filter(None, [differences_table(results)])]


def says(results: Mapping) -> str:
    """The average radii, on one line."""
    return "average certified radius: " + ", ".join(
        f"{row['defense']['name']} {row['average_certified_radius']:.3f} at sigma "
        f"{row['defense']['sigma']:g}"
        for row in results["rows"]
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


CAPTION = """\
ACR: average certified radius, L2 in pixel units of [0, 1], 0 where wrong or abstained (bootstrap)
abstains: no radius is certified; right: the smoothed classifier answers, and rightly; in %
r: certified accuracy there, right with a larger radius than that, % [95 %, exact]
nfe: network evaluations of an image, at most: as if no run stopped early, with those begun in vain
a certificate is of the smoothed majority classifier, under L2, at its sigma, of nothing else"""
DIFFERENCES_CAPTION = """\
the defence less plain smoothing at its sigma with as many samples, paired on the images that both
  have [95 %]; r in points"""


FIGURES = {
    "certified": (
        "Certified accuracy over the radius",
        "Certified accuracy over the L2 radius, a falling curve for each defence",
    ),
}
SHOWN = Shown("Certified radii", says, tables, draw=draw_figures, figures=FIGURES)
