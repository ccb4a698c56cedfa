"""Folders of results from somebody else: nothing outside them is read, what is not whole is told
with its file, and no text in them is obeyed."""

import json
import os
import re
import xml.dom.minidom
from pathlib import Path

import pytest

from purify.evals import plots
from purify.evals.compare import read_run
from purify.evals.core.result_files import read_results, write_results
from purify.evals.core.tables import Column, Table
from purify.evals.core.terminal import print_table, tell_written
from purify.evals.report import page
from purify.evals.report.blocks import MAX_FIGURE, read_figure
from purify.evals.report.runs import find_runs
from purify.runtime.errors import FileError
from purify.runtime.messages import printable_lines
from purify.saving.jsonl import MAX_DEPTH, parse, read_lines, write_json, write_lines
from purify.saving.settings import read_settings
from tests.written import robust_results, write_evaluation

LATIN = os.fsdecode(b"\xe9")  # of a name that is not UTF-8
HOSTILE = "\x1b[31mred\x07 :skull: [red]x[b] $\\frac{$ _a^b \u202eabc \ud800"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_evaluation(tmp_path / "run" / "eval_robust" / "0123abcd")


def report(folder: Path) -> str:
    path = folder.parent.parent / "report.html"
    page.run(None, None, str(folder), None)
    return path.read_text()


def change(path: Path, change_fn) -> None:
    value = json.loads(path.read_text())
    change_fn(value)
    path.write_text(json.dumps(value))


# What is whole


def test_an_evaluation_is_shown_with_its_images(folder):
    document = report(folder)
    assert document.count('class="card ') == 3 and "Left out" not in document


def test_results_of_all_versions_are_read_but_later_ones(folder):
    assert "version" not in read_results(folder, "eval_robust")
    write_results(folder, robust_results())
    assert read_results(folder, "eval_robust")["version"] == 1
    change(folder / "results.json", lambda results: results.update(version=2))
    with pytest.raises(FileError, match="results.json' is of version 2, but 1 is the latest"):
        report(folder)


def test_without_records_the_numbers_are_shown_and_the_cards_left_out(folder, capsys):
    shown = report(folder)
    (folder / "images.jsonl").rename(folder / "elsewhere")
    document = report(folder)
    assert 'class="card ' in shown and 'class="card ' not in document
    assert f"images of bpda, of which {folder}/images.jsonl has no records" in document
    table = re.search('(?s)<table class="grouped">.*?</table>', shown)[0]
    assert table in document


def test_a_record_of_other_types_is_named_and_costs_its_card_alone(folder, capsys):
    records = read_lines(folder / "images.jsonl")
    records[-1]["correct"] = "yes"
    write_lines(folder / "images.jsonl", records)
    assert report(folder).count('class="card ') == 2
    said = capsys.readouterr().err
    assert "images.jsonl: left out: line 12 (Expected `array`, got `str` - at `$.correct`)" in said


# What is not


def lose(field: str):
    return lambda results: results.pop(field)


def row_of(name: str, value):
    return lambda results: results["rows"][-1].update({name: value})


def without_means(results: dict) -> None:
    results["rows"] = [row for row in results["rows"] if row["protocol"] != "mean"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lose("config"), "missing required field `config`"),
        (lose("headline"), "missing required field `headline`"),
        (lambda r: r["config"]["data"].pop("name"), r"`name` - at `\$.config.data`"),
        (lambda r: r["config"].update(adp=3), r"Expected `object` - at `\$.config.adp`"),
        (lambda r: r["rows"][2].pop("accuracy"), r"`accuracy` - at `\$.rows\[2\]`"),
        (row_of("accuracy", 1.5), r"Expected `float` <= 1.0 - at `\$.rows\[\d+\].accuracy`"),
        (row_of("accuracy", "0.5"), "Expected `float`, got `str`"),
        (row_of("attack", "/../../x"), "Expected a plain name, without '/'"),
        (row_of("protocol", "best"), "Invalid enum value 'best'"),
        (lambda r: r["headline"].update(adp="../x"), "a plain name"),
        (lambda r: r["headline"].update(adp="exact"), "lack the headline of adp, exact"),
        (lambda r: r["config"]["eval"].update(defenses=["adp"]), "lack identity, of which there"),
        (without_means, "lack the mean of draws of identity under clean"),
        (lambda r: r.update(version="1"), "is no number of a version"),
    ],
)
def test_results_of_other_types_or_without_a_row_are_one_line_that_names_the_file(
    folder, changed, said
):
    change(folder / "results.json", changed)
    with pytest.raises(FileError, match=rf"results.json' is damaged \(.*{said}.*move it elsewhere"):
        report(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 99_999, b"9" * 5000, b"null"],
    ids=lambda content: repr(content[:6]),
)
@pytest.mark.parametrize("name", ["results.json", "settings.json"])
def test_files_that_are_no_json_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(FileError, match=f"{name}'? is damaged"):
        report(folder)


def test_values_are_within_each_other_to_a_limit():
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_lost_settings_are_told(folder):
    (folder / "settings.json").unlink()
    with pytest.raises(FileError, match="has lost its settings.json"):
        report(folder)


def test_settings_that_a_comparison_needs_are_asked_for(folder):
    settings = read_settings(folder)
    for field, name in (("seed", "seed"), ("data", "data.name")):
        write_json(folder / "settings.json", {k: v for k, v in settings.items() if k != field})
        with pytest.raises(FileError, match=f"settings.json' lacks {name}: bring it back"):
            read_run(folder)


# What leads elsewhere


@pytest.mark.parametrize(
    "name",
    ["settings.json", "results.json", "images.jsonl", "purified/adp-bpda.npz", "figures/x.png"],
)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_pipes_and_folders_in_the_place_of_files_are_refused(folder, tmp_path, name, kind):
    path = folder / name
    secret = tmp_path / path.name
    if path.exists():
        secret.write_bytes(path.read_bytes())
        path.unlink()
    else:
        secret.write_bytes((folder / "figures" / "training.png").read_bytes())
    {"link": lambda: path.symlink_to(secret), "pipe": lambda: os.mkfifo(path)}.get(
        kind, path.mkdir
    )()
    with pytest.raises((FileError, IsADirectoryError), match=re.escape(path.name)):
        report(folder)
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("name", ["purified", "figures"])
def test_folders_that_are_links_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(FileError, match=f"{name}' is a link"):
        report(folder)


def test_an_evaluation_that_is_a_link_in_a_workdir_is_refused(folder, tmp_path):
    (tmp_path / "other" / "eval_robust").mkdir(parents=True)
    (tmp_path / "other" / "eval_robust" / "01234567").symlink_to(folder)
    with pytest.raises(FileError, match="01234567' is a link"):
        find_runs([tmp_path / "other"])


def test_a_run_of_an_ablation_is_a_name_in_its_workdir(folder):
    ablation = folder.parent.parent / "ablate" / "0123abcd"
    ablation.mkdir(parents=True)
    docs = Path(__file__).parent.parent / "docs" / "digits"
    results = json.loads((docs / "ablation.json").read_text())
    write_json(ablation / "settings.json", {})
    write_json(ablation / "results.json", results)
    assert find_runs([ablation]).points == []
    for run in ("../../other", "..", "/etc"):
        results["rows"][0]["run"] = run
        write_json(ablation / "results.json", results)
        with pytest.raises(FileError, match=r"a plain name, without '/' - at `\$.rows\[0\].run`"):
            find_runs([ablation])


def test_a_report_that_is_a_link_is_replaced_and_not_followed(folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("report.html", "report.html.tmp"):
        (tmp_path / "run" / name).symlink_to(precious)
    assert "<!DOCTYPE html>" in report(folder)
    assert precious.read_text() == "mine" and not (tmp_path / "run" / "report.html").is_symlink()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<svg onload='alert(1)'>", "is no PNG"),
        (b"\x89PNG\r\n\x1a\n", "is no PNG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0" + b"\0" * 20, "65,536 x 65,536 pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * MAX_FIGURE, "has more than 16,777,216 bytes"),
    ],
)
def test_only_figures_are_embedded(folder, content, said):
    path = folder / "figures" / "training.png"
    path.write_bytes(content)
    with pytest.raises(FileError, match=said):
        read_figure(path, alt="", caption="")


# What a terminal, a figure and a page make of names


def test_a_terminal_shows_names_as_they_are(capsys):
    columns = [Column("name", wraps=True), Column(HOSTILE, wraps=True)]
    print_table(Table(HOSTILE, columns, [[("a", HOSTILE)]], HOSTILE))
    tell_written([Path(HOSTILE + "\n"), Path(LATIN)])
    said = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", said)
    assert said.count(":skull: [red]x[b]") >= 3 and "\\x1b[31mred" in said
    assert "\\xe9" in said and "\\n" in said


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_figures_show_names_that_are_no_formulas_and_no_xml(tmp_path, suffix):
    names = [HOSTILE, "$\\frac{$", "_hidden", "a_b^c", "x\x00y]]>--<"]
    rows = [
        row | {"defense": row["defense"] | {"name": name}, "attack": name}
        for name in names
        for row in robust_results()["rows"][:1]
    ]
    for draw in (plots.accuracy_bars, plots.accuracy_by_cost):
        draw(tmp_path / f"x{suffix}", rows)
        if suffix == ".svg":
            document = xml.dom.minidom.parse(str(tmp_path / "x.svg"))
            assert document.documentElement.tagName == "svg"
    plots.accuracy_curves(
        tmp_path / f"x{suffix}", {name: rows[:1] for name in names}, field="seed", axis="$\\frac{$"
    )


def test_a_page_shows_names_as_they_are(folder):
    results = robust_results()
    results["title"] = results["commit"] = f"{HOSTILE}\x00"
    results["class_names"] = [HOSTILE] * 10
    for row in results["rows"]:
        row["attack"] = HOSTILE if row["attack"] == "bpda" else row["attack"]
    results["headline"] = {"adp": HOSTILE}
    write_results(folder, results)
    document = report(folder)
    assert ":skull: [red]x[b] $\\frac{$ _a^b" in document and "\\ud800" in document
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", document)


def test_lines_stay_lines():
    assert printable_lines("a\nb\x1b\n") == "a\nb\\x1b\n" and printable_lines("é") == "é"


def test_a_folder_whose_name_is_no_utf8_is_named(tmp_path, capsys):
    folder = write_evaluation(tmp_path / f"caf{LATIN}" / "eval_robust" / "1")
    document = report(folder)
    assert "caf\\xe9" in document or "caf\\udce9" in document
    assert "caf\\xe9" in capsys.readouterr().out
    (folder / "results.json").write_text("{")
    with pytest.raises(FileError, match=re.escape("caf\\xe9")):
        report(folder)
