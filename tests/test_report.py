"""The report: its numbers are those of results.json, it loads nothing, and a browser shows it."""

import base64
import copy
import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from purify.evals import robust
from purify.evals.attacked.results import protocol_name
from purify.evals.core import tables
from purify.evals.core.tables import Column, Interval, Table, all_columns, grouped
from purify.evals.report import page
from purify.evals.report.images import OUTCOMES, image_blocks
from purify.evals.report.runs import Run, find_runs
from purify.evals.report.summary import summary
from purify.evals.report.sweeps import Curve, sweeps
from purify.saving.checkpoint import NeedsMode
from purify.saving.jsonl import read_lines, write_json, write_lines
from tests.command import ROOT, main

SMALL = {
    "defense.purifier": "one_step",
    "eval.defenses": ("identity", "one_step"),
    "eval.attacks": ("blind", "wide"),
    "eval.num_images": 30,
    "eval.batch_size": 30,
}
CHECKS = {
    "title": "gradients of one_step",
    "checks": [
        {"check": "blind", "verdict": "PASS", "p": 0.5, "numbers": {"blind": 0.5, "exact": 0.25}},
        {"check": "a<b", "verdict": "FAIL: masked or under-optimised", "p": 1e-4, "numbers": {}},
    ],
    "time": "2026-01-01T00:00:00+00:00",
    "computed_by": [],
    "config": {"data": {"name": "digits8x8", "test_split": "test"}},
}
# Of a mode without a table of its own.
SAMPLED = {
    "samples": {"num_images": 64},
    "meaning": "Said of samples.",
    "paths": [
        {"defense": {"name": "adp", "T": 2}, "index": 5, "steps": 2, "seed": 7, "sizes": [1, 2]},
        {"defense": {"name": "adp", "T": 2}, "index": 6, "steps": None, "seed": 7, "sizes": []},
    ],
    "config": CHECKS["config"],
}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A workdir with a small evaluation under attack."""
    workdir = trained.copied_into(tmp_path_factory.mktemp("evaluated"))
    robust.run(small(trained), workdir)
    return workdir


def small(trained):
    """Two attacks that know the classifier alone, in two balls, one of them on fewer images."""
    config = trained.config(**SMALL)
    wide = config.attacks.blind.copy_and_resolve_references()
    wide.update(eps=0.3, step_size=0.3 / 4, defenses=("one_step",), num_images=12)
    config.attacks.wide = wide
    return config


@pytest.fixture(scope="module")
def workdir(evaluated, tmp_path_factory):
    """The same with outcomes and losses of every kind, and with results of other modes."""
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(evaluated, workdir, symlinks=True)
    folder = only(workdir, "eval_robust")
    records = read_lines(folder / "images.jsonl")
    for record in records:
        if record["row"].startswith("one_step-"):
            record["correct"] = [record["index"] % 3 > at % 2 for at in range(3)]
            for runs, right in zip(record["predictions"], record["correct"], strict=True):
                runs[0] = record["label"] if right else (record["label"] + 1) % 10
            record["loss"] = float(record["index"] * 7 % 30 - 10)
    beyond = [r | {"index": 30} for r in records if (r["row"], r["index"]) == ("one_step-blind", 0)]
    write_lines(folder / "images.jsonl", records + beyond)  # of an evaluation that was cut off
    add(workdir, "check_gradients", CHECKS)
    add(workdir, "certify", json.loads((ROOT / "docs" / "digits" / "certify.json").read_text()))
    figure = add(workdir, "sample", SAMPLED) / "figures" / "samples.png"
    figure.parent.mkdir()
    shutil.copy(folder / "figures" / "cost.png", figure)
    return workdir


def only(workdir: Path, mode: str) -> Path:
    (folder,) = (workdir / mode).iterdir()
    return folder


def add(workdir: Path, mode: str, results: dict, name: str = "0123abcd") -> Path:
    """A finished evaluation in the form that Store leaves."""
    folder = workdir / mode / name
    folder.mkdir(parents=True)
    write_json(folder / "settings.json", {"seed": 0})
    write_json(folder / "results.json", results)
    return folder


def results_of(workdir: Path, mode: str) -> dict:
    return json.loads((only(workdir, mode) / "results.json").read_text())


class Tables(html.parser.HTMLParser):
    """tables: of each <table> its class and its rows of texts; text: all that a reader sees."""

    def __init__(self, document: str):
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.text, self._hidden, self._cell = "", False, False
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append((dict(attributes).get("class", ""), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append("")
            self._cell = True
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("th", "td")
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text += data
            if self._cell:
                self.tables[-1][1][-1][-1] += data

    def rows(self, kind: str = "", *, has: str) -> list[list[str]]:
        """Of the one table of that class whose head has that column."""
        (rows,) = (rows for name, rows in self.tables if name == kind and has in rows[0])
        return [[" ".join(cell.split()) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def written(workdir):
    """The page, as the command writes it."""
    page.run(None, workdir, None, None)
    return workdir / "report.html"


def percent(row: dict, digits: int) -> str:
    return f"{100 * row['accuracy']:.{digits}f}"


# What it says


def test_an_interval_stays_on_one_line():
    assert Interval(37.0, 30.0, 45.0).unbroken == "37.0 [30,\u00a045]"


def test_every_number_of_the_summary_is_that_of_results_json(workdir, written):
    results = results_of(workdir, "eval_robust")
    rows = {(r["defense"]["name"], r["attack"], protocol_name(r)): r for r in results["rows"]}
    shown = Tables(written.read_text()).rows("summary", has="clean")
    assert [row[0] for row in shown[1:]] == ["identityundefended", "one_step"]
    for name, *cells in shown[1:]:
        name = name.removesuffix("undefended")
        attack = results["headline"][name]
        clean, lowest, worst = (
            rows[name, a, p]
            for a, p in (("clean", "mean"), (attack, "mean"), (attack, "worst_of_n"))
        )
        for cell, row in zip(cells, (clean, lowest, worst), strict=False):
            low, high = (f"{100 * row[end]:.0f}" for end in ("low", "high"))
            assert cell.startswith(f"{percent(row, 1)} % [{low}, {high}]")
        assert f"{attack}, n {lowest['num_images']}" in cells[1]
        assert cells[3] == f"{clean['defense_nfe_per_image']:,.0f}"


def test_every_row_is_in_the_table_of_all_rows(workdir, written):
    results = results_of(workdir, "eval_robust")
    shown = Tables(written.read_text()).rows("grouped", has="mean of draws [95 %]")
    means = [r for r in results["rows"] if protocol_name(r) == "mean"]
    assert len(shown) == 1 + len(means) == 1 + 2 + 3
    defense, found = "", {}
    for cells in shown[1:]:
        if len(cells) == len(shown[0]):  # the defence reaches over the lines below
            defense = cells.pop(0)
        found[defense, cells[0]] = cells
    for row in means:
        cells = found[row["defense"]["name"], row["attack"]]
        assert cells[1] == str(row["num_images"])
        assert cells[2].startswith(f"{percent(row, 1)} [{100 * row['low']:.0f}, ")


def test_each_mode_has_its_section(workdir, written):
    tables = Tables(written.read_text())
    rows = results_of(workdir, "certify")["rows"]
    for row, cells in zip(rows, tables.rows(has="abstains")[1:], strict=True):
        assert f"{row['average_certified_radius']:.3f}" in cells[4]
    differences = results_of(workdir, "certify")["differences"]
    for entry, cells in zip(differences, tables.rows(has="less")[1:], strict=True):
        assert cells[:2] == [entry["defense"], entry["against"]]
        assert cells[5].startswith(f"{entry['average_certified_radius']:+.3f}")
    assert "FAIL: a<b" in tables.text
    verdicts = tables.rows(has="verdict")
    assert verdicts[1] == ["blind", "PASS", "0.5", "blind 0.5, exact 0.25"]
    assert verdicts[2][:3] == ["a<b", "FAIL: masked or under-optimised", "0.0001"]
    assert "Said of samples." in tables.text and "64 samples, the paths of 2" in tables.text
    assert tables.rows(has="steps") == [["index", "steps"], ["5", "2"], ["6", ""]]
    assert "the same in all rows: defense name adp, defense T 2, seed 7" in tables.text
    results = results_of(workdir, "eval_robust")
    for value in (results["commit"], *results["weights"].values(), results["versions"]["jax"]):
        assert value in tables.text


def test_strips_and_cards_show_what_was_recorded(workdir):
    run = Run(only(workdir, "eval_robust"), {}, results_of(workdir, "eval_robust"))
    _, strips, browser = image_blocks(run)
    headline = run.results["headline"]["one_step"]
    assert [row.attack for row in browser.rows][0] == browser.chosen == headline
    shown = {row.attack: len(row.cards) for row in browser.rows}
    assert shown == {"blind": 30, "wide": 12}
    for row in browser.rows:
        assert [card.number for card in row.strip] == list(range(10))
        records = run.records[f"one_step-{row.attack}"]
        counts = dict.fromkeys(OUTCOMES, 0)
        for number in range(row.num_images):
            right = sum(records[number]["correct"])
            counts["right" if right == 3 else "some" if right else "wrong"] += 1
        assert row.counts == counts and min(counts.values()) > 0
        assert row.num_images == row.row["num_images"]
        for card in row.cards:
            record = records[card.number]
            assert (card.draws, card.loss) == (record["correct"], record["loss"])
            assert sum(times for _, times in card.runs) == 3 * 2
            assert [picture.version for picture in card.pictures] == list(strips.versions)


def test_cards_name_classes_as_the_data_set_does(workdir):
    results = results_of(workdir, "eval_robust")
    assert results["class_names"] == [str(digit) for digit in range(10)]
    named = [f"name of {digit}" for digit in range(9)]  # one less than there are answers
    of = {}
    for names in ([], named):
        run = Run(only(workdir, "eval_robust"), {}, results | {"class_names": names})
        _, _, browser = image_blocks(run)
        cards = browser.rows[0].cards
        of[bool(names)] = [
            (card.label, [p.answer for p in card.pictures], [name for name, _ in card.runs])
            for card in cards
        ]
    expected = str.maketrans({str(digit): name for digit, name in enumerate(named)})
    translated = [
        (label.translate(expected), *([a.translate(expected) for a in each] for each in answers))
        for label, *answers in of[False]
    ]
    assert of[True] == translated and len({label for label, *_ in translated}) > 5


def test_images_are_as_many_as_the_page_has_room_for(workdir):
    run = Run(only(workdir, "eval_robust"), {}, results_of(workdir, "eval_robust"))
    notes, _, browser = image_blocks(run, budget=2 * 15 * 4 * 220)
    shown = {row.attack: len(row.cards) for row in browser.rows}
    assert 10 < shown["blind"] < 25 and shown["wide"] >= 10
    assert f"blind: {shown['blind']}" in notes.lines[0]
    assert [row.num_images for row in browser.rows if row.attack == "blind"] == [30]


def test_a_report_without_the_images_says_so(workdir, tmp_path):
    folder = tmp_path / "eval_robust" / "01234567"
    shutil.copytree(only(workdir, "eval_robust"), folder)
    (folder / "purified" / "one_step-wide.npz").unlink()
    page.run(None, tmp_path, None, None)
    text = Tables((tmp_path / "report.html").read_text()).text
    assert "Not kept: the images of wide." in text
    (folder / "purified" / "one_step-blind.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="one_step-blind.npz' is no .npz archive"):
        page.run(None, tmp_path, None, None)


def test_evaluations_of_one_mode_are_told_apart(workdir, tmp_path):
    """One of them with another budget, the other without attacks."""
    results = results_of(workdir, "eval_robust")
    add(tmp_path, "eval_robust", results, "00000001")
    clean = [row for row in results["rows"] if row["method"] is None]
    nothing = results | {"rows": clean, "headline": {}, "comparisons": []}
    add(tmp_path, "eval_robust", nothing, "00000002")
    document = page.render(find_runs([tmp_path]).runs)
    ids, targets = (
        re.findall(pattern, document) for pattern in (r" id=\"([^\"]+)", r"href=\"#([^\"]+)")
    )
    assert len(set(ids)) == len(ids) and set(targets) == set(ids)
    for name in ("00000001", "00000002"):
        assert f"<h2>Accuracy under attack: {name}</h2>" in document
    assert "not measured" in document and "Not kept: the images of blind, wide." in document


def test_what_tells_evaluations_apart_is_said(workdir, tmp_path):
    """Their workdirs, data and settings, and what else there is when these are the same."""
    results = results_of(workdir, "eval_robust")
    settings = {
        "seed": 0,
        "weights": {"score": "12ab"},
        "data": {"name": "digits8x8"},
        "adp": {"sigma": 0.25},
        "one_step": {"sigma": 0.25},
        "attacks": {"blind": {"eps": 8 / 255}, "wide": {"eps": 0.3}},
        "eval": {"attacks": ["blind", "wide"]},
    }
    changes = {"one_step": {"sigma": 0.1}, "adp": {"sigma": 0.1}, "weights": {"score": "34cd"}}
    changes["attacks"] = {"blind": {"eps": 0.1}}
    for workdir, name, changed in (
        ("digits", "00000001", {}),
        ("digits", "00000002", changes),
        ("cifar", "00000003", {"data": {"name": "cifar10"}, "eval": {"attacks": ["blind"]}}),
    ):
        folder = add(tmp_path / workdir, "eval_robust", results, name)
        write_json(folder / "settings.json", settings | changed)

    def headings(*workdirs: str) -> list[str]:
        document = page.render(find_runs([tmp_path / workdir for workdir in workdirs]).runs)
        return re.findall("<h2>Accuracy under attack(.*)</h2>", document)

    assert headings("cifar") == [""]
    assert headings("digits") == [
        ": sigma 0.25, eps 0.03137 (00000001)",
        ": sigma 0.1, eps 0.1 (00000002)",
    ]
    assert headings("digits", "cifar") == [
        ": digits, digits8x8, sigma 0.25, eps 0.03137, ... (00000001)",
        ": digits, digits8x8, sigma 0.1, eps 0.1, ... (00000002)",
        ": cifar, cifar10, sigma 0.25, eps 0.03137, ... (00000003)",
    ]


def test_an_evaluation_that_was_stopped_early_says_so(trained, evaluated, tmp_path, capsys):
    """What --max_images left for later is not taken for the whole, in the summary nor below."""
    workdir = trained.copied_into(tmp_path)
    robust.run(small(trained), workdir, max_images=8)
    words = "stopped after 8 of 30 images"
    assert f"{words} (--max_images=8); the same command" in capsys.readouterr().out
    document = page.render(find_runs([workdir]).runs)
    assert document.count(words) >= 2 and words not in page.render(find_runs([evaluated]).runs)


SHARES = ((dict(value=0.095, low=0.06, high=0.14), "*"), (dict(value=1.0, low=0.96, high=1.0), ""))


def test_a_table_names_a_group_once_and_pads_intervals_for_a_terminal_alone():
    low, high = (tables.percent(share, after=mark) for share, mark in SHARES)
    lines = [("a", "x", low), ("a", "y", high), ("b", "x", "<b>")]
    columns = [Column("name"), Column("attack"), Column("mean", numeric=True)]
    caption = "one: first\n  and more\ntwo: second"
    table = Table("title", columns, grouped(lines), caption, merged=True)
    assert [[(line.span, *map(str, line.cells)) for line in group] for group in table.spanned] == [
        [(2, "a", "x", "9.5 [6, 14]*"), (0, "a", "y", "100.0 [96, 100]")],
        [(1, "b", "x", "<b>")],
    ]
    assert [low.padded(), high.padded()] == ["9.5 [  6,  14]*", "100.0 [ 96, 100]"]
    assert table.notes == ["one: first and more", "two: second"]


def test_a_table_of_all_columns_of_no_rows_is_empty():
    assert all_columns([], "caption").groups == []


# Curves


def swept(results: dict, **changes) -> dict:
    """The same results, with the wide attack on as many images as the other and these changes."""
    other = copy.deepcopy(results)
    for row in other["rows"]:
        if row["attack"] == "wide":
            row |= {"num_images": 30} | changes
    return other


def curves_of(results: list[dict], field: str) -> list[Curve]:
    return sweeps((("run", each) for each in results), field)


def test_rows_that_differ_in_one_number_make_a_curve(workdir):
    results = results_of(workdir, "eval_robust")
    wider = swept(results, eps=0.45, step_size=0.45 / 4, accuracy=0.25)
    (curve,) = curves_of([wider, swept(results)], "eps")
    assert [row["eps"] for row in curve.points] == [0, 0.15, 0.3, 0.45]
    assert [row["attack"] for row in curve.points] == ["clean", "blind", "wide", "wide"]
    assert curve.points[3]["accuracy"] == 0.25
    assert (curve.norm, curve.label) == ("linf", "one_step, blind")
    assert curves_of([wider], "eot_samples") == []
    (curve,) = curves_of(
        [swept(results, eps=0.15, step_size=0.15 / 4, eot_samples=8)], "eot_samples"
    )
    assert [row["eot_samples"] for row in curve.points] == [1, 8]


@pytest.mark.parametrize(
    "changes",
    [{"step_size": 0.15 / 4}, {"loss": "margin"}, {"num_images": 12}, {"gradient": "bpda"}],
)
def test_rows_that_differ_in_more_do_not(workdir, changes):
    assert not curves_of([swept(results_of(workdir, "eval_robust"), **changes)], "eps")


@pytest.mark.parametrize(
    ("field", "value"), [("weights", {"classifier": "0"}), ("config", {"one_step": {"sigma": 1}})]
)
def test_neither_do_those_of_other_networks_or_purifiers(workdir, field, value):
    one = swept(results_of(workdir, "eval_robust"))
    other = copy.deepcopy(one)
    for results, attack in ((one, "blind"), (other, "wide")):
        results["rows"] = [row for row in results["rows"] if row["attack"] == attack]
    assert curves_of([one, other], "eps")
    other[field] = other[field] | value
    assert not curves_of([one, other], "eps")


def test_points_of_an_ablation_are_shown_as_curves_only(workdir, tmp_path):
    results = results_of(workdir, "eval_robust")
    names = {samples: f"0000000{samples}" for samples in (2, 4, 8)}
    lines = []
    for samples, name in names.items():
        point = swept(results, eps=0.15, step_size=0.15 / 4, eot_samples=samples)
        add(tmp_path, "eval_robust", point, name)
        line = next(row for row in point["rows"] if row["attack"] == "wide")
        line |= {"factor": "EOT", "value": samples, "default": samples == 2, "run": name}
        lines.append(line | {"difference_low": 0.1, "difference_high": 0.2})
    add(tmp_path, "ablate", {"title": "EOT", "rows": lines, "config": results["config"]})
    found = find_runs([tmp_path])
    assert [run.mode for run in found.runs] == ["ablate"] and len(found.points) == 3
    document = page.render(found.runs, found.points)
    assert document.count("Accuracy over samples per gradient (EOT)") == 2  # caption and label
    assert not summary(found.runs[0].results) and 'class="summary"' not in document
    shown = Tables(document).rows("grouped", has="factor")
    assert [row[-4] for row in shown[1:]] == ["2 (default)", "4", "8"]
    one = tmp_path / "eval_robust" / names[4]
    assert [run.folder for run in find_runs([tmp_path, one]).runs][0] == one
    # Named by its folder it has them as well, those that are there.
    shutil.rmtree(one)
    found = find_runs([tmp_path / "ablate" / "0123abcd"])
    assert [run.mode for run in found.runs] == ["ablate"]
    assert {run.folder.name for run in found.points} == {names[2], names[8]}
    assert "Accuracy over samples per gradient (EOT)" in page.render(found.runs, found.points)


def test_curves_of_two_workdirs_are_both_there(workdir, tmp_path):
    """Of other networks, and in all else the same."""
    results = swept(results_of(workdir, "eval_robust"))
    add(tmp_path / "one", "eval_robust", results)
    add(tmp_path / "other", "eval_robust", results | {"weights": {"classifier": "0", "score": "1"}})
    document = page.render(find_runs([tmp_path / "one", tmp_path / "other"]).runs)
    for name in ("one", "other"):
        assert f"one_step, blind, workdir {name}: 0: " in document


# What it must not do


def test_it_names_nothing_that_a_browser_would_load(written):
    document = written.read_text()
    addresses = re.findall(r"\b(?:src|href)=\"([^\"]*)", document)
    assert {re.match(r"#|data:[a-z/+]*|.*", address)[0] for address in addresses} == {
        "#",
        "data:",
        "data:image/png",
        "data:image/svg+xml",
    }
    assert not re.search(r"url\(|@import|srcset|<(?:iframe|object|embed|link rel=.style)", document)
    drawings = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", document)
    assert len(drawings) == 3  # accuracy, cost, certified
    for drawing in map(base64.b64decode, drawings):
        assert not re.search(rb"href=\"(?!#)|url\((?!#)", drawing)
    assert "default-src 'none'" in document and len(document) < 3_000_000


def test_texts_of_the_evaluations_are_shown_and_not_run(workdir, tmp_path):
    bad = "<script>alert(1)<script>"  # that closes itself with a '/' is no name of an attack
    results = results_of(workdir, "eval_robust")
    results["title"] = f"{bad}\n'\"><img src=x onerror=alert(1)>"
    results["config"]["data"]["name"] = results["commit"] = bad
    for row in results["rows"]:
        if row["attack"] == "blind":
            row["attack"] = bad
    results["headline"] = dict.fromkeys(results["headline"], bad)
    add(tmp_path, "eval_robust", results)
    add(tmp_path, "sample", SAMPLED | {"meaning": bad, "paths": [{bad: bad, "index": 1}]})
    page.run(None, tmp_path, None, None)
    document = (tmp_path / "report.html").read_text()
    assert document.count("<script") == 1 and "<img src=x" not in document
    text = Tables(document).text
    assert text.count(bad) >= 6 and "'\"><img src=x onerror=alert(1)>" in text


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (dict(input=None, workdir=None), ValueError, "needs --input=RUN[,RUN...]"),
        (dict(input="{}/nowhere"), ValueError, "nowhere' does not exist"),
        (dict(input="{}/empty"), NeedsMode, "there is no evaluation in "),
        (dict(input="{}/certify/00000000"), NeedsMode, "is not finished: it has no results.json"),
        (dict(input="{}/waiting"), NeedsMode, "is not finished: it has no results.json"),
        (dict(input="{}/classifier/00000000"), ValueError, "in the folder 'classifier', which is"),
        (dict(input="{}/sample/damaged"), ValueError, "results.json is damaged"),
        (dict(output="{}/report.txt"), ValueError, "must end in .html"),
        (dict(output="{}/there.html"), ValueError, "exists already"),
        (dict(output="{}/no/report.html"), ValueError, "needs a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_reported_is_refused(tmp_path, arguments, error, said):
    add(tmp_path, "check_gradients", CHECKS)
    for name in ("certify/00000000", "waiting/certify/00000000", "classifier/00000000"):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "settings.json", {})
    (tmp_path / "empty").mkdir()
    (add(tmp_path, "sample", SAMPLED, "damaged") / "results.json").write_text("{")
    (tmp_path / "there.html").touch()
    given = dict(input=f"{tmp_path}/check_gradients/0123abcd", output=None, workdir=tmp_path)
    given |= {name: value and value.format(tmp_path) for name, value in arguments.items()}
    with pytest.raises(error, match=re.escape(said)):
        page.run(None, given.pop("workdir"), **given)
    assert not list(tmp_path.rglob("report.html"))


def test_the_command_needs_no_config_and_names_the_one_that_goes_on(tmp_path):
    folder = add(tmp_path / "digits", "check_gradients", CHECKS)
    (tmp_path / "digits" / "certify" / "00000000").mkdir(parents=True)
    unfinished = tmp_path / "digits" / "certify" / "00000000"
    write_json(unfinished / "settings.json", {})
    result = main("--mode=report", f"--input={tmp_path}/digits")
    assert result.returncode == 0, result.stderr
    assert f"left out, not finished: {unfinished}" in result.stdout
    assert f"read: {folder}" in result.stdout and "report.html" in result.stdout
    result = main("--mode=report", f"--input={unfinished}")
    assert result.returncode == 2
    command = f"--config=configs/digits.py --mode=certify --workdir={tmp_path}/digits"
    assert result.stderr.splitlines()[-1] == f"run: python main.py {command}"


# In a browser

PATIENCE = 180_000  # milliseconds, on a machine that does much else
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    options = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=options, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, written):
    """The page at 1200 pixels; at the end nothing may have been said on the console or loaded."""
    said, loaded = [], []
    view = browser.new_page(viewport={"width": 1200, "height": 900})
    view.set_default_timeout(PATIENCE)
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: loaded.append(request.url))
    view.goto(written.as_uri())
    yield view
    view.close()
    assert not said
    assert {url.partition(",")[0].partition(";")[0] for url in loaded} <= {
        written.as_uri(),
        "data:",
        "data:image/png",
        "data:image/svg+xml",
    }


def cards(view) -> list[dict]:
    return view.eval_on_selector_all(".card", "cards => cards.map(card => ({...card.dataset}))")


def show(view, *outcomes: str, attack: str = "blind", sort: str = "high") -> list[dict]:
    """Set the filters as a reader would, and return the cards that are shown."""
    view.check(f"input[value={attack}]")
    for outcome in OUTCOMES:
        view.set_checked(f"input[value={outcome}]", outcome in outcomes)
    view.select_option("select", sort)
    if view.is_visible(".more"):
        view.click(".more")
    return cards(view)


def test_filters_show_the_images_of_an_outcome_and_of_an_attack(opened, workdir):
    records = read_lines(only(workdir, "eval_robust") / "images.jsonl")
    assert len(cards(opened)) < 30  # until all are asked for
    for attack in ("blind", "wide"):
        own = [r for r in records if r["row"] == f"one_step-{attack}" and r["index"] < 30]
        outcomes = {r["index"]: sum(r["correct"]) for r in own}
        for name, numbers in (("right", {3}), ("some", {1, 2}), ("wrong", {0})):
            expected = {index for index, right in outcomes.items() if right in numbers}
            shown = show(opened, name, attack=attack)
            assert {int(card["index"]) for card in shown} == expected != set()
            assert f"{len(expected)} of {len(own)} images" in opened.inner_text(".status")
        assert len(show(opened, *OUTCOMES, attack=attack)) == len(own)
    assert show(opened) == []


def test_images_are_sorted_by_loss(opened):
    for order, sign in (("high", -1), ("low", 1)):
        losses = [float(card["loss"]) for card in show(opened, *OUTCOMES, sort=order)]
        assert len(set(losses)) == 30 and losses == sorted(losses, key=lambda loss: sign * loss)
    places = [int(card["index"]) for card in show(opened, *OUTCOMES, sort="index")]
    assert places == list(range(30))


def test_filters_work_by_keys(opened):
    before = len(show(opened, *OUTCOMES))
    opened.focus("input[value=wrong]")
    opened.keyboard.press("Space")
    assert 0 < len(cards(opened)) < before


def test_every_image_shows(opened):
    show(opened, *OUTCOMES)
    opened.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    widths = opened.evaluate(
        """Promise.all([...document.images].map(image => image.decode().then(
            () => [image.naturalWidth, image.getBoundingClientRect().width, image.alt])))"""
    )
    assert len(widths) > 4 * 30
    for natural, shown, alt in widths:
        assert natural > 0 and shown > 0 and alt


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    boxes = opened.eval_on_selector_all(
        ".wide", "boxes => boxes.map(box => [box.scrollWidth > box.clientWidth, box.tabIndex])"
    )
    assert any(scrolls for scrolls, _ in boxes) == (width == 360)
    assert all(tab == 0 for scrolls, tab in boxes if scrolls)  # keys reach it


NAMES = """pullover|T-shirt/top|Ankle boot|automobile|airplane|Sneaker|horse
Donaudampfschifffahrtsgesellschaftskapit|Rhabarberbarbara Straßenbahnhaltestelle
American alligator, Alligator mississipp""".replace("\n", "|").split("|")
# Of every answer below an image: by how much it leaves its place, and over how many lines each of
# its words goes.
ANSWERS = """selector => [...document.querySelectorAll(selector)].map(place => {
  const {left, right, bottom} = place.getBoundingClientRect();
  const text = place.querySelector('span.right, span.wrong').lastChild;
  const range = document.createRange();
  const words = [...text.textContent.matchAll(/[^ \\n\u2009]+/g)].map(word => {
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    const tops = [...range.getClientRects()].map(box => Math.round(box.top));
    return [word[0], new Set(tops).size];
  });
  range.selectNodeContents(text);
  const box = range.getBoundingClientRect();
  return [Math.max(left - box.left, box.right - right, box.bottom - bottom), words];
})"""


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_names_of_classes_do_not_overlap(browser, workdir, tmp_path, width):
    """Short words are not broken either; in cards and in the strip of first images."""
    folder = tmp_path / "eval_robust" / "01234567"
    shutil.copytree(only(workdir, "eval_robust"), folder)
    write_json(folder / "results.json", results_of(workdir, "eval_robust") | {"class_names": NAMES})
    page.run(None, tmp_path, None, None)
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.set_default_timeout(PATIENCE)
    view.goto((tmp_path / "report.html").as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".card:not([hidden]) .versions figure", "table.images tbody td:has(img)"):
        found = view.evaluate(f"({ANSWERS})({selector!r})")
        assert len(found) >= 40
        assert max(beyond for beyond, _ in found) < 1
        words = {word: lines for _, words in found for word, lines in words}
        assert {word for word, lines in words.items() if lines > 1 and len(word) <= 10} == set()
        assert any(len(word) > 20 for word in words)
    for box in view.eval_on_selector_all(
        ".card", "all => all.map(c => [c.scrollWidth, c.clientWidth])"
    ):
        assert box[0] <= box[1]
    view.close()


def test_scripts_of_others_would_not_run(browser, written):
    """The page allows its own script alone, by its hash."""
    view = browser.new_page()
    view.set_default_timeout(PATIENCE)
    view.goto(written.as_uri())
    add_script = (
        "text => document.body.append(Object.assign(document.createElement('script'), {text}))"
    )
    view.evaluate(add_script, "window.ran = true")
    assert view.evaluate("window.ran") is None
    view.close()
