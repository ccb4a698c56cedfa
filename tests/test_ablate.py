"""--mode=ablate: each point is one evaluation of eval_robust, done once; what the tidy file has."""

import csv
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from purify.evals import ablate, robust
from purify.evals.ablate import plan
from purify.evals.core.engine import Engine
from purify.evals.core.inputs import load_inputs
from purify.evals.core.stats import paired_difference
from purify.evals.core.store import folder_of
from purify.saving.jsonl import read_lines
from tests.test_robust import untimed

CHANGES = {
    "attacks.exact.num_images": 0,
    "ablate.attacks": ("exact",),
    "ablate.num_images": 6,
    "ablate.names": ("sigma", "purifier"),
    "ablate.factors.sigma.at": (0.1,),
    "ablate.factors.purifier.at": ("one_step",),
}
ATTACKS = ("clean", "exact")


class Ablated(NamedTuple):
    """One whole ablation, and how many batches it computed."""

    workdir: Path
    folder: Path
    results: dict
    printed: str
    batches: int


def only_folder(workdir):
    (folder,) = (workdir / "ablate").iterdir()
    return folder


def count_batches(monkeypatch, at_most: int | None = None) -> list:
    """A list that grows with every batch that is computed; beyond at_most of them, a kill."""
    calls, timed = [], Engine.timed

    def counted(program, *args):
        if len(calls) == at_most:
            raise KeyboardInterrupt
        calls.append(program)
        return timed(program, *args)

    monkeypatch.setattr(Engine, "timed", staticmethod(counted))
    return calls


@pytest.fixture(scope="module")
def ablated(trained, tmp_path_factory):
    workdir = trained.copied_into(tmp_path_factory.mktemp("ablated"))
    with pytest.MonkeyPatch.context() as patch:
        calls = count_batches(patch)
        with pytest.MonkeyPatch.context() as quiet:
            printed: list[str] = []
            quiet.setattr("builtins.print", lambda *line: printed.extend(map(str, line)))
            ablate.run(trained.config(**CHANGES), workdir)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    return Ablated(workdir, folder, results, "\n".join(printed), len(calls))


def lines_of(ablated, **wanted) -> list[dict]:
    rows = ablated.results["rows"]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def records_of(ablated, line: dict) -> dict[int, dict]:
    records = read_lines(ablated.workdir / "eval_robust" / line["run"] / "images.jsonl")
    row = f"{line['defense']}-{line['attack']}"
    return {record["index"]: record for record in records if record["row"] == row}


def test_the_tidy_file_has_every_value_under_every_attack(ablated):
    with open(ablated.folder / "ablation.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    points = {(r["factor"], r["value"], r["defense"], r["default"], r["attack"]) for r in lines}
    values = {
        "sigma": {"0.1": "adp", "0.25": "adp"},
        "purifier": {"adp": "adp", "one_step": "one_step"},
    }
    defaults = {"0.25", "adp"}
    assert points == {
        (factor, value, defense, str(value in defaults), attack)
        for factor, defenses in values.items()
        for value, defense in defenses.items()
        for attack in ATTACKS
    }
    assert len(lines) == len({tuple(row.values())[:6] for row in lines})
    for line, row in zip(lines, ablated.results["rows"], strict=True):
        assert list(line) == list(row)
        for name, text in line.items():
            assert text == ("" if row[name] is None else str(row[name]))
        assert row["num_images"] == 6 and 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    found = {row["protocol"] for row in lines}
    assert found == {"mean", "ensemble", "vote", "worst_of_n", "S=1"}


def test_its_numbers_are_those_of_its_records(ablated):
    """The means and paired differences, from images.jsonl of the two evaluations."""
    (default,) = lines_of(ablated, factor="sigma", default=True, attack="exact", protocol="mean")
    theirs = records_of(ablated, default)
    differing = 0
    for line in lines_of(ablated, attack="exact", protocol="mean"):
        ours = records_of(ablated, line)
        assert sorted(ours) == list(range(6))
        means, other = ([np.mean(r[i]["correct"]) for i in range(6)] for r in (ours, theirs))
        assert line["accuracy"] == pytest.approx(np.mean(means))
        assert line["nfe_per_image"] == pytest.approx(np.mean([r["nfe"] for r in ours.values()]))
        if line["default"]:
            continue
        expected = paired_difference(means, other, seed=0)
        found = [line[name] for name in ("difference", "difference_low", "difference_high")]
        assert found == pytest.approx([expected.value, expected.low, expected.high])
        differing += expected.value != 0
    assert differing  # else nothing here could fail


def test_the_default_is_evaluated_once_and_differs_from_itself_by_nothing(ablated):
    defaults = lines_of(ablated, default=True)
    assert len({line["run"] for line in defaults}) == 1
    for line in defaults:
        assert [line[f"difference{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert len(list((ablated.workdir / "eval_robust").iterdir())) == 3
    said = re.findall(r"^(\d) of 3: (.+), into .*/([0-9a-f]{8})$", ablated.printed, re.MULTILINE)
    assert [title for _, title, _ in said] == ["the default", "sigma 0.1", "purifier one_step"]
    assert {run for *_, run in said} == {row["run"] for row in ablated.results["rows"]}
    nfe = int(re.search(r"([\d,]+) evaluations and", ablated.printed)[1].replace(",", ""))
    each = {
        (line["run"], line["attack"]): line["nfe_per_image"] for line in ablated.results["rows"]
    }
    spent = 6 * sum(each.values())
    assert 0.8 * nfe < spent <= nfe


def of_eval_robust(trained, **changes):
    """The config that --mode=eval_robust has for the default, but for these changes."""
    shared = {"eval.defenses": ("adp",), "eval.attacks": ("exact",), "eval.num_images": 6}
    return trained.config(**{"attacks.exact.num_images": 0}, **shared | changes)


def test_eval_robust_finds_a_point_done_and_reports_the_same_numbers(ablated, trained, monkeypatch):
    calls = count_batches(monkeypatch)
    robust.run(of_eval_robust(trained), ablated.workdir)
    assert not calls and len(list((ablated.workdir / "eval_robust").iterdir())) == 3
    ours = lines_of(ablated, factor="sigma", default=True)
    folder = ablated.workdir / "eval_robust" / ours[0]["run"]
    theirs = json.loads((folder / "results.json").read_text())["rows"]
    assert (folder / "figures" / "adp-exact.png").exists() and len(theirs) == len(ours) == 10
    for row, own in zip(theirs, ours, strict=True):
        shared = row.keys() & own.keys() - {"defense", "protocol"}
        assert {name: row[name] for name in shared} == {name: own[name] for name in shared}


@pytest.mark.parametrize(
    ("factor", "value", "changes"),
    [
        ("sigma", 0.1, {"adp.sigma": 0.1}),
        (
            *("purifier", "one_step"),
            {
                "defense.purifier": "one_step",
                "eval.defenses": ("one_step",),
                # An attack that is meant for others is meant for what is ablated, too.
                "attacks.exact.defenses": ("adp", "one_step"),
            },
        ),
    ],
)
def test_every_point_is_the_evaluation_of_these_settings(ablated, trained, factor, value, changes):
    config = of_eval_robust(trained, **changes)
    inputs = load_inputs(config, ablated.workdir, config.eval.defenses)
    settings = robust.prepare(config, inputs).settings
    (run,) = {line["run"] for line in lines_of(ablated, factor=factor, value=value)}
    assert folder_of(ablated.workdir, "eval_robust", settings).name == run


def test_what_is_done_is_not_done_again(ablated, trained, monkeypatch, capsys):
    calls = count_batches(monkeypatch)
    before = (ablated.folder / "ablation.csv").read_bytes()
    ablate.run(trained.config(**CHANGES), ablated.workdir)
    assert not calls and (ablated.folder / "ablation.csv").read_bytes() == before
    out = capsys.readouterr().out
    for factor, value in (("sigma", "0.1"), ("", "0.25 (default)"), ("purifier", "adp (default)")):
        assert re.search(rf"^ {factor} +{re.escape(value)} .*\d\]", out, re.MULTILINE), out
    assert "one factor at a time around adp" in out and str(ablated.folder) in out
    assert "2 factors: all of it was done before, nothing is computed; in " in out
    assert "at most" not in out and len(re.findall(r"\d of 3: .*, done before, in", out)) == 3
    assert (ablated.folder / "figures" / "ablation.png").stat().st_size > 20_000


def test_a_damaged_line_of_a_point_blocks_nothing(ablated, trained, workdir, capsys):
    """It is put aside, and its image is computed again, by the ablation itself."""
    shutil.copytree(ablated.workdir / "eval_robust", workdir / "eval_robust")
    path = min((workdir / "eval_robust").glob("*/images.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{\n", *lines[4:]]))
    ablate.run(trained.config(**CHANGES), workdir)
    assert "left out: line 4 (no JSON" in capsys.readouterr().err
    assert len(read_lines(path)) == len(lines)
    assert path.with_name("images.jsonl.damaged").read_bytes() == b"{\n"


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(ablated, trained, workdir, monkeypatch):
    config = trained.config(**CHANGES)
    with pytest.MonkeyPatch.context() as patch:
        calls = count_batches(patch, at_most=ablated.batches // 2)
        with pytest.raises(KeyboardInterrupt):
            ablate.run(config, workdir)
    assert not list((workdir / "ablate").glob("*/ablation.csv"))
    rest = count_batches(monkeypatch)
    ablate.run(config, workdir)
    assert len(calls) + len(rest) == ablated.batches
    for folder in (workdir / "eval_robust").iterdir():
        ours, theirs = (
            untimed(read_lines(root / "eval_robust" / folder.name / "images.jsonl"))
            for root in (workdir, ablated.workdir)
        )
        assert ours == theirs


@pytest.mark.slow
def test_overrides_on_the_command_line(ablated, trained):
    """Of points that are done, and of fewer images: the other process computes nothing."""
    given = CHANGES | {"ablate.names": ("sigma",), "ablate.factors.sigma.at": (0.1, 0.25)}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    before = {p: p.read_bytes() for p in ablated.workdir.glob("eval_robust/*/images.jsonl")}
    arguments = ("--mode=ablate", "--max_images=4", f"--workdir={ablated.workdir}", *flags)
    result = trained.main(*arguments)
    assert result.returncode == 0, result.stderr
    assert "stopped after 4 of 6 images" in result.stdout
    after = {p: p.read_bytes() for p in ablated.workdir.glob("eval_robust/*/images.jsonl")}
    assert after == before
    (folder,) = (f for f in (ablated.workdir / "ablate").iterdir() if f != ablated.folder)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert {(row["value"], row["num_images"]) for row in rows} == {(0.25, 4), (0.1, 4)}
    wrong = trained.main("--mode=ablate", "--config.ablate.names=('sgima',)")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: config.ablate.names entry 'sgima' is unknown; known: S")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ("wall",)}, "config.ablate.names entry 'wall' is unknown; known: S, T, cur"),
        ({"names": ()}, "config.ablate.names is empty; name at least one of config.ablate.fac"),
        ({"attacks": ("gun",)}, "config.ablate.attacks entry 'gun' is unknown; known: apgd"),
        ({"attacks": ()}, "config.ablate.attacks is empty"),
        ({"attacks": ("bpda",)}, "the default: config.eval.attacks has BPDA on 'adp'"),
        ({"num_images": 0}, "config.ablate.num_images=0 must be from 1 to"),
        ({"factors.sigma.at": ()}, "config.ablate.factors.sigma.at must be a tuple that"),
        ({"factors.sigma.at": ((1, 2),)}, "factors.sigma.at must be numbers or names"),
        ({"factors.eps.times": ("a",)}, "config.ablate.factors.eps.times must be numbers"),
        ({"factors.eps.times": ()}, "config.ablate.factors.eps.at must be a tuple that"),
        (
            {"factors.eps.fields": ("adp.curvature",)},
            "factors.eps: the default 'jvp' is no number, so it has no multiples (times)",
        ),
        ({"factors.sigma.at": (0.1, "a")}, "factors.sigma: config.adp.sigma='a' does not fit"),
        ({"factors.sigma.at": (0.1, -0.1)}, "sigma -0.1: sigma=-0.1 must be at least 0 and finite"),
        ({"factors.T.at": (2, 1.5)}, "factors.T: config.adp.num_steps=1.5 does not fit"),
        ({"factors.T.at": (0,)}, "T 0: num_steps=0 must be at least 1"),
        ({"factors.purifier.at": ("wall",)}, "purifier wall: defence 'wall' is unknown"),
        ({"factors.curvature.at": ("hessian",)}, "curvature hessian: curvature='hessian'"),
        ({"factors.S.fields": ("defense.runs",)}, "config.defense has no field 'runs'; known: "),
        ({"factors.S.fields": ("adp.tau.x",)}, "config.adp.tau has no field 'x'; known: nothing"),
        ({"factors.S.fields": ("data.name",)}, "factors.S: data.name cannot be a factor"),
        (
            {"factors.lam.fields": ("adp.lam", "adp.tau")},
            "have different values in the config: adp.lam 0.05, adp.tau 0.001",
        ),
        (
            {"factors.T.fields": ("schedule.num_steps",)},
            "config.ablate.factors.T changes nothing of what is evaluated (adp under blind, exact)",
        ),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    trained, workdir, monkeypatch, changes, said
):
    calls = count_batches(monkeypatch)
    given = {"ablate.attacks": ("blind", "exact"), "ablate.num_images": 6}
    given |= {f"ablate.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        ablate.run(trained.config(**given), workdir)
    assert not calls and sorted(p.name for p in workdir.iterdir()) == ["classifier", "score"]


def test_the_factors_of_digits_are_evaluations_of_their_own(trained, workdir):
    """Planned only. One for each value, all but the default's seven different ones."""
    factors, points = plan.plan_points(trained.config(), workdir)
    folders = {key: folder_of(workdir, "eval_robust", p.settings) for key, p in points.items()}
    assert [factor.name for factor in factors] == [
        *("sigma", "lam", "T", "S", "curvature", "eps", "eot", "purifier")
    ]
    assert len(points) == 1 + sum(len(factor.values) for factor in factors)
    assert len(set(folders.values())) == len(points) - len(factors)
    purifiers = {
        value: points["purifier", value].rows[0].defense.purifier
        for value in next(factor.values for factor in factors if factor.name == "purifier")
    }
    assert type(purifiers["two_levels"]) is type(purifiers["adp"])
    assert purifiers["two_levels"].second_sigma == 0.1
    for row in points["eps", 0.3].rows:  # steps follow the radius
        if row.attack_name in ("blind", "exact"):
            assert (row.attack.eps, row.attack.step_size) == pytest.approx((0.3, 0.075))
    for row in points["eot", 16].rows:
        if row.attack_name in ("bpda", "exact"):
            assert row.attack.eot_samples == 16
    # The field that all purifiers refer to: one step at the factor's sigma, as by the flag.
    one_step = plan.changed(trained.config(), {"adp.sigma": 0.1}).one_step.sigma
    assert one_step == 0.1 and trained.config().one_step.sigma == 0.25


@pytest.mark.parametrize(
    "name",
    """cifar10 cifar10.resnet20 cifar10.reference cifar10.strong digits.full digits.detect mnist
    svhn""".split(),
)
def test_every_config_has_the_fields_of_its_factors(name):
    module, _, variant = name.partition(".")
    config = importlib.import_module(f"configs.{module}").get_config(*filter(None, [variant]))
    assert len(config.ablate.names) >= 6
    assert set(config.ablate.attacks) <= set(config.attacks)
    for factor in plan.factors_of(config):
        assert set(factor.values) - {factor.default}
        for value in factor.values:
            point = plan.changed(config, dict.fromkeys(factor.fields, value))
            for field in factor.fields:
                assert plan.field_of(point, field) == value
