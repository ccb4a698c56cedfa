"""Evaluation: what is recorded, that it can be interrupted, and that it can be trusted."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import purifiers
from configs.base import attack, suite, transfer
from purify.data import datasets
from purify.data.image_io import to_uint8
from purify.defense import classify
from purify.evals import robust
from purify.evals.attacked.choosing import highest
from purify.evals.attacked.plan import plan
from purify.evals.attacked.programs import check_in_ball
from purify.evals.attacked.results import (
    comparisons,
    estimate,
    headlines,
    interim_accuracy,
    protocols,
    result_rows,
)
from purify.evals.attacked.strongest import Strongest
from purify.evals.core.engine import Engine
from purify.evals.core.inputs import load_inputs, load_networks, network_runs
from purify.evals.core.stats import bootstrap_mean, proportion
from purify.evals.core.store import Store, read_records
from purify.evals.robust import versions
from purify.evals.robust.versions import read_versions
from purify.random import image_keys
from purify.runtime.errors import FileError
from purify.saving.checkpoint import (
    Checkpoints,
    load_classifier,
    load_defense,
    load_score,
    weight_hash,
)
from purify.saving.files import open_file
from purify.saving.jsonl import read_lines, write_lines
from purify.saving.locking import Lock
from purify.saving.settings import claim, read_settings
from purify.training import train_classifier, train_score
from tests.oracles import near
from tests.test_plan import make

TIMES = ("seconds", "defense_seconds")
COSTS = ("seconds", "nfe", "nge", "defense_seconds", "defense_nfe")
ROW_FIELDS = """defense attack gradient loss norm eps attack_steps eot_samples restarts protocol
num_images num_draws accuracy low high interim_accuracy direction
seconds_per_image nfe_per_image nge_per_image seed""".split()


class Evaluated(NamedTuple):
    """One whole evaluation, a fixed-key attack included, and the programs compiled for it."""

    folder: Path
    results: dict
    records: list[dict]
    compiled: list[str]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    workdir = trained.copied_into(tmp_path_factory.mktemp("evaluated"))
    with compilations() as names:
        robust.run(whole(trained), workdir)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    return Evaluated(folder, results, read_lines(folder / "images.jsonl"), names)


@contextlib.contextmanager
def compilations():
    """A list that receives the name of every jitted function compiled in the block."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Compiling jit\((\w+)\) ", record.getMessage()):
                names.append(match[1])

    handler, logger = Handler(), logging.getLogger("jax")
    jax.clear_caches()  # what other tests compiled would be missing
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)


def whole(trained, **changes):
    config = trained.config(**changes)
    fixed = config.attacks.exact.copy_and_resolve_references()
    fixed.update(fixed_key=True, defenses=("adp",), loss="margin")
    config.attacks.fixed_key = fixed
    config.eval.attacks = (*config.eval.attacks, "fixed_key")
    return config


def untimed(records: list[dict]) -> dict[tuple, dict]:
    """(row, index) -> record, without what no two runs share."""
    return {(r["row"], r["index"]): {k: v for k, v in r.items() if k not in TIMES} for r in records}


def only_folder(workdir):
    (folder,) = (workdir / "eval_robust").iterdir()
    return folder


# What is recorded


def test_the_attack_fools_a_classifier_that_was_right(evaluated):
    """Otherwise nothing in this file could tell a good evaluation from a bad one."""
    accuracy = {
        (row["defense"]["name"], row["attack"]): row["accuracy"]
        for row in evaluated.results["rows"]
        if row["protocol"] == "mean"
    }
    assert accuracy["identity", "clean"] >= 0.7
    assert accuracy["identity", "blind"] <= accuracy["identity", "clean"] - 0.4


def test_every_row_has_the_fields_that_make_the_number(evaluated):
    results = evaluated.results
    assert len(results["rows"]) > 50
    for row in results["rows"]:
        assert set(ROW_FIELDS) <= set(row)
        assert set(row["defense"]) >= {"name", "sigma", "T", "S", "curvature"}
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    protocols_seen = {row["protocol"] for row in results["rows"]}
    assert protocols_seen == {"mean", "ensemble", "vote", "worst_of_n", "fixed_key"}
    adp = next(r for r in results["rows"] if r["defense"]["name"] == "adp")
    assert adp["defense"]["T"] == 3 and adp["defense"]["curvature"] == "jvp"


def test_results_name_config_commit_versions_and_weights(evaluated, trained):
    results = evaluated.results
    assert results["config"]["adp"]["num_steps"] == 3
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", results["commit"])
    assert results["versions"]["jax"] == jax.__version__
    assert results["weights"] == {
        "classifier": weight_hash(load_classifier(trained.workdir).variables),
        "score": weight_hash(load_score(trained.workdir).variables),
    }


def test_every_image_has_one_line_for_each_row(evaluated):
    folder, results, records, _ = evaluated
    lines = [(r["row"], r["index"]) for r in records]
    assert len(lines) == len(set(lines))
    adp = [r for r in records if r["row"] == "adp-exact"]
    assert sorted(r["index"] for r in adp) == list(range(6))
    for record in adp:
        assert len(record["correct"]) == 3 and np.shape(record["predictions"]) == (3, 2)
        assert record["distance"] <= 0.15 + 1e-6 and record["seconds"] > 0
        assert isinstance(record["interim_success"], bool)
        # 3 steps of 2 samples and 4 to rank; (best, last, clean) on 32 selection draws each.
        assert record["queries"] == 3 * (2 + 4) + 3 * 32
        # T 3 with 2 evaluations a step; 3 draws of 2 runs are scored.
        assert 114 * 6 < record["nfe"] <= 114 * 6 + 36 and record["nge"] == 6 * 6
        assert record["defense_nfe"] == pytest.approx((record["nfe"] - 114 * 6) / 3)


def test_logits_of_all_runs_are_stored(evaluated):
    folder, records = evaluated.folder, evaluated.records
    logits = np.load(folder / "arrays" / "adp-bpda.logits.npy")
    assert logits.shape == (10, 3, 2, 10) and np.isfinite(logits).all()
    for record in (r for r in records if r["row"] == "adp-bpda"):
        at = logits[record["index"]]
        assert at.argmax(-1).tolist() == record["predictions"]
        assert (at.mean(1).argmax(-1) == record["label"]).tolist() == record["correct"]


def test_baselines_and_defence_are_scored_on_the_keys_that_the_library_uses(evaluated, trained):
    """A draw's key is folded from seed, stream, dataset index and draw: nothing else."""
    folder = evaluated.folder
    dataset = datasets.load("digits8x8", "test[:10]", data_dir=trained.tfds)
    images = dataset.images.astype(np.float32) / 255
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(image_keys(0, np.arange(10)), 1)
    for name in ("noise_only", "adp"):
        options = {"num_steps": 3} if name == "adp" else {}
        defense = load_defense(trained.workdir, name, num_runs=2, **options)
        stored = np.load(folder / "arrays" / f"{name}-clean.logits.npy")[:, 1].mean(1)
        # Other batch sizes round differently, which an adaptive step amplifies a little.
        np.testing.assert_allclose(classify(defense, keys, images), stored, atol=1e-3)


def test_a_purifier_without_a_score_model_needs_no_checkpoint_of_one(trained, tmp_path):
    shutil.copytree(trained.workdir / "classifier", tmp_path / "classifier")
    for name in ("identity", "noise_only"):
        load_defense(tmp_path, name)
    with pytest.raises(FileNotFoundError, match="no score checkpoint"):
        load_defense(tmp_path, "adp")


def test_figures_and_attacked_images_are_written(evaluated):
    folder = evaluated.folder
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"accuracy.png", "training.png", "adp-bpda.png", "adp-exact.png"} <= figures
    with np.load(folder / "attacked" / "adp-exact.npz", allow_pickle=False) as saved:
        assert saved["images"].shape == (6, 8, 8, 1)
        assert saved["labels"].shape == saved["index"].shape == (6,)


def test_every_version_of_an_image_is_that_of_the_first_run_scored(evaluated):
    for row in ("adp-exact", "adp-bpda"):
        versions = read_versions(evaluated.folder / "purified" / f"{row}.npz")
        records = [r for r in evaluated.records if r["row"] == row]
        assert versions.index.tolist() == [r["index"] for r in records]
        assert versions.labels.tolist() == [r["label"] for r in records]
        with np.load(evaluated.folder / "attacked" / f"{row}.npz") as saved:
            assert np.array_equal(versions.images["attacked"], to_uint8(saved["images"]))
        predicted = [r["predictions"][0][0] for r in records]
        assert versions.answers["purified"].tolist() == predicted
        moved = versions.images["attacked"] - versions.images["clean"].astype(float)
        noise = versions.images["noised"] - versions.images["attacked"].astype(float)
        assert 0 < np.abs(moved).max() <= 255 * 0.15 + 1 < 2 * 255 * 0.15 < np.abs(noise).max()
    names = {path.stem for path in (evaluated.folder / "purified").iterdir()}
    assert names == {f"adp-{name}" for name in ("blind", "bpda", "exact", "fixed_key", "strongest")}


def test_the_table_shows_every_row(trained, workdir, capsys):
    robust.run(trained.config(eval__attacks=("blind",), eval__num_images=4), workdir)
    shown = capsys.readouterr().out
    for name in ("identity", "noise_only", "one_step", "schedule", "adp"):
        assert re.search(rf"^ *{name} +clean +4 ", shown, re.MULTILINE)
    assert len(re.findall(r"^ +blind +4 ", shown, re.MULTILINE)) == 5
    assert (
        "blind: pgd, blind, linf 0.15, cross_entropy, 1 x 5 steps, EOT 1" in shown
        and "S 2, N 3" in shown
    )
    assert "results.json" in shown and "checkpoints" in shown


def test_the_benchmark_of_purifiers_has_a_program_for_each_defence(evaluated):
    """On attacked images, where an adaptive purifier takes the steps that an attack costs."""
    draws = purifiers.programs(evaluated.results, evaluated.folder)
    assert list(draws) == list(evaluated.results["config"]["eval"]["defenses"])
    defense, keys, images = draws["noise_only"].args
    with np.load(min((evaluated.folder / "attacked").iterdir())) as saved:
        np.testing.assert_array_equal(images, saved["images"][: len(images)])
    assert draws["noise_only"]().shape == (len(images), 10) and len(keys) == len(images) > 4


# Protocols, on records made by hand


def row_of(trained, name: str):
    attacked = ("noise_only", "adp")
    config = whole(trained, attacks__bpda__defenses=attacked, attacks__exact__defenses=attacked)
    networks = load_networks(network_runs(config, trained.workdir, config.eval.defenses))
    rows = plan(config, networks, 400)
    return next(row for row in rows if row.name == name)


def test_protocols_by_hand(trained):
    records = [
        {"index": 0, "label": 1, "correct": [True, False], "predictions": [[1, 2], [2, 2]]},
        {"index": 1, "label": 2, "correct": [True, True], "predictions": [[2, 2], [2, 3]]},
        {"index": 2, "label": 3, "correct": [False, True], "predictions": [[4, 3], [3, 3]]},
    ]
    costs = dict.fromkeys((*COSTS, "interim_success", "loss", "start_loss"), 1.0)
    records = [r | costs | {"seconds": s} for r, s in zip(records, (1.0, 2.0, 60.0), strict=True)]
    values = protocols(row_of(trained, "adp-bpda"), records)
    assert values["mean"].tolist() == [0.5, 1.0, 0.5]
    assert values["ensemble"].tolist() == [True, True, False]
    assert values["vote"].tolist() == [True, True, True]  # ties go to the smaller class
    assert values["worst_of_n"].tolist() == [False, True, False]
    assert list(protocols(row_of(trained, "adp-fixed_key"), records)) == ["fixed_key"]
    entries = result_rows(row_of(trained, "adp-bpda"), records, records, seed=0)
    single = next(entry for entry in entries if entry["single_run"])
    assert single["defense"]["S"] == 1 and single["accuracy"] == pytest.approx(7 / 12)
    assert {e["protocol"]: e["clean_accuracy"] for e in entries}["vote"] == 1.0
    assert {e["seconds_per_image"] for e in entries} == {2.0}  # whatever held up the third image


def test_interim_accuracy_counts_what_was_wrong_clean_or_at_any_time(trained):
    """Of four images one is wrong clean, by its first draw, and one was wrong on the way."""
    clean = [{"index": i, "correct": [i != 2, False]} for i in range(4)]
    records = [{"index": i, "interim_success": i == 1} for i in range(4)]
    assert interim_accuracy(row_of(trained, "adp-exact"), records, clean) == 0.5
    assert interim_accuracy(row_of(trained, "adp-exact"), records, []) == 0.75
    for other in ("adp-clean", "adp-blind"):  # no search, and one that asked another function
        assert interim_accuracy(row_of(trained, other), records, clean) is None


def test_intervals_are_exact_only_where_an_image_has_one_outcome():
    outcomes = np.array([True] * 9 + [False])
    exact = estimate(outcomes, one_outcome=True, seed=0)
    assert exact.low == pytest.approx(0.5550, abs=1e-4)
    # Draws that happen to agree are a mean of several all the same.
    assert estimate(outcomes * 1.0, one_outcome=False, seed=0) == bootstrap_mean(outcomes, seed=0)


def test_a_single_draw_has_exact_intervals_but_for_its_single_runs(trained):
    costs = dict.fromkeys((*COSTS, "interim_success", "loss", "start_loss"), 1.0)
    records = [
        {"index": i, "label": 1, "correct": [i < 9], "predictions": [[1, i % 2]]} | costs
        for i in range(10)
    ]
    row = dataclasses.replace(row_of(trained, "adp-bpda"), num_draws=1)
    entries = result_rows(row, records, records, seed=0)
    exact = proportion([True] * 9 + [False])
    lows = {(e["protocol"], e["single_run"]): e["low"] for e in entries}
    assert lows["mean", False] == lows["ensemble", False] == exact.low
    assert lows["mean", True] == bootstrap_mean([0.5, 1.0] * 5, seed=0).low


def test_a_mean_over_draws_that_all_agree_has_a_bootstrap_interval(trained):
    costs = dict.fromkeys((*COSTS, "interim_success", "loss", "start_loss"), 1.0)
    records = [
        {"index": i, "label": 1, "correct": [i < 9] * 2, "predictions": [[i < 9] * 2] * 2} | costs
        for i in range(10)
    ]
    rows = result_rows(row_of(trained, "adp-bpda"), records, [], seed=0)
    entries = {row["protocol"]: row for row in rows if not row["single_run"]}
    exact = proportion([True] * 9 + [False])
    assert entries["ensemble"]["low"] == entries["worst_of_n"]["low"] == exact.low
    assert entries["mean"]["low"] == bootstrap_mean([1.0] * 9 + [0.0], seed=0).low != exact.low


def test_the_headline_is_the_lowest_attacked_mean_on_shared_images(trained):
    def records(correct):
        return [{"index": i, "label": 0, "correct": c} for i, c in enumerate(correct)]

    easy, hard = [True, True], [False, True]
    clean = (row_of(trained, "adp-clean"), records([[False, False]] * 4))
    # On all four images BPDA looks stronger; on the two that both have, exact is.
    bpda = (row_of(trained, "adp-bpda"), records([easy, hard, [False] * 2, [False] * 2]))
    exact = (row_of(trained, "adp-exact"), records([hard, hard]))
    fixed = (row_of(trained, "adp-fixed_key"), records([[False]] * 2))
    noise = (row_of(trained, "noise_only-bpda"), records([easy] * 4))
    assert headlines([clean, bpda, exact, fixed, noise]) == {"adp": "exact", "noise_only": "bpda"}
    elsewhere = dataclasses.replace(exact[0].attack, norm="l2")  # another ball: another question
    far = (dataclasses.replace(exact[0], attack=elsewhere), exact[1])
    assert headlines([clean, bpda, far]) == {"adp": "bpda"}


def test_comparisons_pair_the_same_images(trained):
    def records(correct):
        return [{"index": i, "label": 0, "correct": [c]} for i, c in enumerate(correct)]

    done = [
        (row_of(trained, "adp-bpda"), records([True] * 40 + [False] * 10)),
        (row_of(trained, "noise_only-bpda"), records([True] * 10 + [False] * 40)),
        (row_of(trained, "adp-exact"), records([True] * 39 + [False])),
    ]
    noise, exact = comparisons("adp", done, seed=0)
    assert (noise["a"], noise["b"], noise["beats"]) == ("adp-bpda", "noise_only-bpda", True)
    assert noise["mean_difference"] == pytest.approx(0.6) and noise["mcnemar_p"] < 1e-8
    assert exact["num_images"] == 40 and not exact["beats"]  # only the images that both have


def test_what_the_exact_gradient_leaves_is_a_share_of_what_bpda_leaves():
    """And first draws alone are compared by McNemar's test, whatever the second ones are."""
    config, rows = make("digits")

    def records(first, second):
        return [
            {"index": i, "correct": [i % 40 < first, i % 40 < second]} for i in range(40)
        ]  # draws that are right for the first so many images

    done = [
        (rows["adp-bpda"], records(30, 30)),
        (rows["adp-exact"], records(20, 16)),
    ]
    (entry,) = comparisons("adp", done, seed=0)
    assert (entry["a"], entry["b"]) == ("adp-bpda", "adp-exact")
    assert entry["share"]["value"] == pytest.approx(18 / 30)
    assert entry["mean_difference"] == pytest.approx(12 / 40)
    assert entry["mcnemar_p"] == pytest.approx(2 * 0.5**10)


# What attacks beyond logits_fn are given


def test_directions_and_clean_images_reach_the_attack(trained, workdir):
    """A joint attack, and one that purifies the clean image first, as a whole evaluation."""
    config = trained.config(
        eval__defenses=("adp",), eval__num_images=4, eval__bpda_alone=("adp-full",)
    )
    changes = {
        "full": dict(direction="full"),
        "approximate": dict(gradient="approximate_input"),
    }
    for name, change in changes.items():
        config.attacks[name] = config.attacks.bpda.copy_and_resolve_references()
        config.attacks[name].update(change)
    config.eval.attacks = tuple(changes)
    robust.run(config, workdir)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    rows = {row["attack"]: row for row in results["rows"] if row["protocol"] == "mean"}
    assert {name: rows[name]["direction"] for name in changes} == {
        "full": "full", "approximate": None
    }  # fmt: skip
    assert rows["approximate"]["interim_accuracy"] is None
    attack_lines = {
        (r["row"].removeprefix("attack:adp-"), r["index"]): r
        for r in read_lines(folder / "images.jsonl")
        if r["row"] in ("attack:adp-full", "attack:adp-approximate")
    }
    # 3 steps of 2 samples and 4 to rank, a choice of 3 on 32 draws; 6 evaluations a purification.
    bpda = (3 * (2 + 4) + 3 * 32) * 6
    nfe = {"full": bpda + 3 * 2 * 6, "approximate": 6}
    for (name, _), line in attack_lines.items():
        assert (line["nfe"], line["nge"]) == (nfe[name], 0)
    images = [np.load(folder / "arrays" / f"adp-{name}.npy") for name in changes]
    assert np.abs(images[0] - images[1]).max() > 0.01
    title = results["title"]
    assert "full: pgd, bpda and direction full, linf 0.15" in title
    clean = [r for r in read_lines(folder / "images.jsonl") if r["row"] == "adp-clean"]
    failed = [
        attack_lines["full", r["index"]]["interim_success"] or not r["correct"][0] for r in clean
    ]
    assert rows["full"]["interim_accuracy"] == pytest.approx(1 - np.mean(failed))


# Trust


def test_every_attacked_image_is_in_the_ball_and_the_box(evaluated, trained):
    """Read back from the files, and computed here: nothing of the attack is reused."""
    folder = evaluated.folder
    clean = datasets.load("digits8x8", "test[:10]", data_dir=trained.tfds).images / 255.0
    files = list((folder / "attacked").iterdir())
    assert len(files) == 5
    for file in files:
        with np.load(file, allow_pickle=False) as saved:
            images, index = saved["images"].astype(np.float64), saved["index"]
        assert images.min() >= 0 and images.max() <= 1
        assert np.abs(images - clean[index]).max() <= 0.15 + 1e-6
        assert np.abs(images - clean[index]).max() > 0.05  # something was attacked


@pytest.mark.parametrize("norm, size", [("linf", 0.1), ("l2", 0.8), ("l1", 6.4)])
def test_the_check_finds_images_outside(norm, size):
    clean = np.full((2, 8, 8, 1), 0.5)
    moved = clean + 0.1
    assert check_in_ball(moved, clean, norm, size + 1e-9) == pytest.approx([size, size])
    for bad in (moved + 1e-5, np.where(moved == moved, np.nan, 0), clean + 0.6):
        with pytest.raises(RuntimeError, match="leave the"):
            check_in_ball(bad, clean, norm, size)
    with pytest.raises(RuntimeError, match="2 attacked"):
        check_in_ball(clean + 0.51, clean, norm, 100)


def test_an_attack_that_leaves_the_ball_stops_the_evaluation(trained, workdir, monkeypatch):
    from attacks import norms

    broken = norms.NORMS["linf"]._replace(project=lambda point, center, eps: point)
    monkeypatch.setitem(norms.NORMS, "linf", broken)
    config = trained.config(eval__attacks=("blind",), eval__defenses=("identity",))
    config.attacks.blind.num_steps = 6  # another static value: not the program compiled before
    with pytest.raises(RuntimeError, match="leave the linf ball"):
        robust.run(config, workdir)


def test_attack_and_defence_never_share_a_key():
    indices = np.arange(50)
    attack, defense = (
        jax.random.key_data(image_keys(0, indices, stream=s)) for s in ("attack", "defense")
    )
    assert not {tuple(k) for k in np.asarray(attack)} & {tuple(k) for k in np.asarray(defense)}


def test_a_fixed_key_attack_is_scored_on_the_very_draw_it_attacked(evaluated):
    """Its margin loss is positive exactly where the scored draw is wrong."""
    results, records = evaluated.results, evaluated.records
    fixed = [r for r in records if r["row"] == "adp-fixed_key"]
    assert len(fixed) == 6
    for record in fixed:
        assert len(record["correct"]) == 1
        assert (record["loss"] <= 0) == record["correct"][0]
    (row,) = [r for r in results["rows"] if r["attack"] == "fixed_key"]
    assert row["protocol"] == "fixed_key" and row["eot_samples"] == 1


def test_given_images_are_scored_as_the_attack_scored_them(evaluated, trained, workdir):
    """Same images, same dataset indices, hence same keys: the same outcomes."""
    folder, records = evaluated.folder, evaluated.records
    robust.run(trained.config(), workdir, input=str(folder / "attacked" / "adp-bpda.npz"))
    given = read_lines(only_folder(workdir) / "images.jsonl")
    expected = {r["index"]: r["correct"] for r in records if r["row"] == "adp-bpda"}
    assert {r["index"]: r["correct"] for r in given if r["row"] == "adp-given"} == expected


# The strongest of several attacks


def test_the_strongest_row_takes_each_image_from_the_attack_of_highest_margin(evaluated):
    """By draws that no row is scored on: its outcomes are then those of the row it took."""
    records = untimed(evaluated.records)
    crafted = {"clean": "adp-clean", "blind": "adp-blind"}
    taken = set()
    for index in range(6):
        row = records["adp-strongest", index]
        losses = {
            name: records[f"choice:adp-strongest:{name}", index]["loss"]
            for name in ("clean", "blind", "adp-bpda", "adp-exact")
        }
        assert row["chosen"] == max(losses, key=losses.get) and row["loss"] == max(losses.values())
        assert row["start_loss"] == losses["clean"]
        same = records[crafted.get(row["chosen"], row["chosen"]), index]
        assert row["correct"] == same["correct"]
        attacks = [records[f"attack:{name}", index] for name in ("blind", "adp-bpda", "adp-exact")]
        # 16 draws of S = 2 runs for each candidate, and 3 draws of 2 runs that are scored.
        nfe = sum(attack["nfe"] for attack in attacks) + 4 * 32 * 6 + 3 * row["defense_nfe"]
        assert row["nfe"] == pytest.approx(nfe)
        taken.add(row["chosen"])
    assert len(taken) > 1, taken
    (entry,) = [
        r
        for r in evaluated.results["rows"]
        if r["attack"] == "strongest" and r["protocol"] == "vote"
    ]
    assert entry["num_images"] == 6 and sum(entry["chosen"].values()) == 6


def suite_config(trained, *, survivors: bool):
    """Two attacks on the undefended classifier, the second stronger than the first."""
    config = trained.config(eval__attacks=("both",), eval__defenses=("identity",))
    for name, eps, steps in (("weak", 0.15, 1), ("hard", 0.15, 5)):
        config.attacks[name] = attack("blind", eps=eps, num_steps=steps, random_start=False)
    config.attacks.both = suite("weak", "hard", survivors=survivors)
    return config


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_lucky_draw_settles_nothing(share):
    """Of 32 draws, each wrong with that chance: survivors are all but the always wrong."""

    def logits_fn(key, x):
        wrong = jax.random.bernoulli(key, share)
        return jnp.where(wrong, jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]))

    loss, settled = Strongest(selection_draws=32).measure(
        jax.random.key(0), logits_fn, jnp.zeros((2, 2, 1)), 0
    )
    assert settled == (share == 1)
    assert loss == pytest.approx(2 * share - 1, abs=0.5)  # the mean of margins of 1 and -1


def test_a_suite_attacks_survivors_only_and_finds_as_much(trained, workdir):
    folders = {}
    for survivors in (True, False):
        before = set(workdir.glob("eval_robust/*"))
        robust.run(suite_config(trained, survivors=survivors), workdir)
        (folders[survivors],) = set(workdir.glob("eval_robust/*")) - before
    rows = {key: untimed(read_lines(at / "images.jsonl")) for key, at in folders.items()}
    before = [f"choice:identity-both:{name}" for name in ("clean", "weak")]
    fooled = {i for (name, i), r in rows[True].items() if name in before and r["settled"]}
    assert 0 < len(fooled) < 10
    attacked = {i for name, i in rows[True] if name == "attack:hard"}
    assert attacked == set(range(10)) - fooled
    assert {i for name, i in rows[False] if name == "attack:hard"} == set(range(10))
    for index in range(10):
        ours, theirs = (rows[key]["identity-both", index] for key in (True, False))
        assert ours["correct"] == theirs["correct"]
        assert ours["queries"] < theirs["queries"] or index in attacked


@pytest.mark.slow
def test_an_interrupted_suite_goes_on_exactly(trained, workdir):
    config = suite_config(trained, survivors=True)
    robust.run(config, workdir)
    folder = only_folder(workdir)
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    records = untimed(read_lines(folder / "images.jsonl"))
    for kept in (7, len(lines) // 2, len(lines) - 12):
        (folder / "images.jsonl").write_text("".join(lines[:kept]))
        robust.run(config, workdir)
        assert untimed(read_lines(folder / "images.jsonl")) == near(records)


def test_what_fools_one_defence_is_scored_on_another_and_climbed_from(trained, workdir):
    """Also where the evaluation is interrupted in the middle of it."""
    config = trained.config(eval__defenses=("noise_only", "adp"), eval__num_images=4)
    config.attacks.exact.update(defenses=("noise_only",), num_images=4)
    config.attacks.moved = transfer("noise_only-exact", defenses=("adp",))
    config.attacks.on = config.attacks.exact.copy_and_resolve_references()
    config.attacks.on.update(defenses=("adp",), starts=("blind", "noise_only-exact"))
    config.attacks.again = config.attacks.exact.copy_and_resolve_references()
    config.attacks.again.update(starts=("noise_only-exact",))
    config.eval.attacks = ("blind", "exact", "again", "moved", "on")
    robust.run(config, workdir)
    folder = only_folder(workdir)
    records = untimed(read_lines(folder / "images.jsonl"))
    source = np.load(folder / "arrays" / "noise_only-exact.npy")
    given = workdir / "given.npz"
    clean = datasets.load("digits8x8", "test[:4]", data_dir=trained.tfds)
    np.savez(given, images=source, labels=clean.labels)
    robust.run(trained.config(eval__defenses=("adp",)), workdir, input=str(given))
    (other,) = {at for at in workdir.glob("eval_robust/*")} - {folder}
    expected = untimed(read_lines(other / "images.jsonl"))
    for i in range(4):
        moved, attack = records["adp-moved", i], records["attack:noise_only-exact", i]
        assert moved["correct"] == expected["adp-given", i]["correct"]
        assert moved["distance"] == attack["distance"] and moved["queries"] == attack["queries"]
        # A run from each of three starts: 3 steps of 2 + 4; six candidates and the clean image.
        assert records["attack:adp-on", i]["queries"] == 3 * 3 * (2 + 4) + 7 * 32
        # The same classifier, loss and clean image, but not the draws that chose where it starts.
        again = records["attack:noise_only-again", i]
        assert again["start_loss"] != attack["start_loss"]
        assert again["start_loss"] == pytest.approx(attack["start_loss"], abs=2)
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    (folder / "images.jsonl").write_text("".join(lines[: len(lines) // 2]))
    robust.run(config, workdir)
    assert untimed(read_lines(folder / "images.jsonl")) == near(records)


def test_an_attack_whose_result_is_no_number_is_not_passed_over():
    """As a NaN in a network would be, which the attacks themselves return."""
    tried = {name: {"loss": loss} for name, loss in (("clean", 3.0), ("a", np.nan), ("b", 4.0))}
    assert highest(tried) == "a" and highest(tried | {"a": {"loss": -1.0}}) == "b"


# Interruption


def test_an_interrupted_evaluation_goes_on_exactly(evaluated, trained, workdir):
    """Half the lines, a torn last one, and arrays that were written ahead of their lines."""
    folder, results, records, _ = evaluated
    torn = workdir / "eval_robust" / folder.name
    shutil.copytree(folder, torn)
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(lines[: len(lines) // 2]) + lines[-1][:30]
    (torn / "images.jsonl").write_text(kept)
    (torn / "results.json").unlink()
    robust.run(whole(trained), workdir)
    assert only_folder(workdir) == torn
    again = read_lines(torn / "images.jsonl")
    assert len(again) == len(records)
    assert untimed(again) == untimed(records)
    for array in (folder / "arrays").iterdir():
        np.testing.assert_array_equal(np.load(array), np.load(torn / "arrays" / array.name))
    resumed = json.loads((torn / "results.json").read_text())
    assert len(results["computed_by"]) == 1 and len(resumed["computed_by"]) == 2
    assert resumed["computed_by"][0] == results["computed_by"][0]
    assert results["precision"] == "default"
    assert [r["accuracy"] for r in resumed["rows"]] == [r["accuracy"] for r in results["rows"]]


def test_an_evaluation_of_the_first_images_is_the_beginning_of_the_whole(
    evaluated, trained, workdir, capsys
):
    """In the same folder, and without the limit it goes on to the same records, to the bit where
    batches are of one size with and without it. What it says that it takes at most is what its
    records took, but for images that stopped early."""
    robust.run(whole(trained), workdir, max_images=7)
    folder = only_folder(workdir)
    check_costs(capsys, read_lines(folder / "images.jsonl"))
    signatures = (folder / "provenance.jsonl").read_bytes()
    robust.run(whole(trained), workdir, max_images=7)  # has nothing to do, and does not sign
    assert (folder / "provenance.jsonl").read_bytes() == signatures
    assert folder.name == evaluated.folder.name
    assert "stopped after 7 of 10 images" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert {row["num_images"] for row in results["rows"]} == {6, 7}
    before = (folder / "images.jsonl").read_bytes()
    capsys.readouterr()
    robust.run(whole(trained), workdir)
    assert (folder / "images.jsonl").read_bytes().startswith(before)
    assert untimed(read_lines(folder / "images.jsonl")) == untimed(evaluated.records)
    for path in (folder / "purified").iterdir():
        same = map(read_versions, (path, evaluated.folder / "purified" / path.name))
        assert jax.tree.all(jax.tree.map(np.array_equal, *same))
    left = check_costs(capsys, evaluated.records)
    (runs, nfe, nge), (runs_left, nfe_left, nge_left) = left
    assert runs / 8 < runs_left < runs / 4 and 0 < nfe_left < nfe / 4
    assert nge_left == 0 < nge  # gradients are taken of the first six images alone


def check_costs(capsys, records: list[dict]) -> list[list[int]]:
    """What was printed up front against the records: an upper bound, and not a loose one; and the
    costs that were printed, of all and then of what was left."""
    out = capsys.readouterr().out
    number = r"([\d,]+)"
    words = f"at most {number} runs of the classifier, {number} evaluations and {number} gradients"
    runs, nfe, nge = (int(n.replace(",", "")) for n in re.search(words, out).groups())
    attacks = [r for r in records if r["row"].startswith("attack:")]
    # Of a row the attack's costs are in its own records.
    chosen = [r for r in attacks if "chosen" in r]
    choices = [r for r in records if r["row"].startswith("choice:")]
    scored = sum(r["defense_nfe"] * len(r["correct"]) for r in records if "correct" in r)
    spent = scored + sum(r["nfe"] for r in [*attacks, *choices]) - sum(r["nfe"] for r in chosen)
    assert 0.9 * nfe < spent <= nfe
    assert nge == sum(r["nge"] for r in attacks) - sum(r["nge"] for r in chosen)
    queries = sum(r["queries"] for r in [*attacks, *choices]) - sum(r["queries"] for r in chosen)
    assert runs == queries + sum(np.size(r["predictions"]) for r in records if "correct" in r)
    assert "estimate from the first batch of" in out and "min of computing left in all" in out
    return [[int(n.replace(",", "")) for n in costs] for costs in re.findall(words, out)]


def test_a_finished_evaluation_is_not_run_again(evaluated, trained, workdir, monkeypatch, capsys):
    folder, records = evaluated.folder, evaluated.records
    shutil.copytree(folder, workdir / "eval_robust" / folder.name)
    fail = staticmethod(lambda *_: pytest.fail("computed something again"))
    monkeypatch.setattr(Engine, "timed", fail)
    robust.run(whole(trained), workdir)
    assert read_lines(only_folder(workdir) / "images.jsonl") == records
    (said,) = re.findall(r"^\d+ rows on 10 images: .*", capsys.readouterr().out, re.MULTILINE)
    assert "all of it was done before, nothing is computed" in said and "at most" not in said


@pytest.mark.slow
def test_two_processes_are_not_let_into_one_evaluation(trained, workdir):
    """Nor one that would only read on: repairing a torn line, it would tear the other's."""
    arguments = ("--mode=eval_robust", f"--workdir={workdir}", "--config.eval.attacks=()")
    assert trained.main(*arguments, "--max_images=2").returncode == 0
    folder = only_folder(workdir)
    before = (folder / "images.jsonl").read_bytes()
    lock = Lock(folder)
    refused = trained.main(*arguments)
    assert refused.returncode == 2
    assert f"is being written by another process (process {os.getpid()} on" in refused.stderr
    assert (folder / "images.jsonl").read_bytes() == before
    lock.release()
    assert trained.main(*arguments).returncode == 0


def test_records_are_enough_for_the_table_and_lost_images_are_attacked_again(
    evaluated, trained, workdir, capsys
):
    """Where the attacked images were lost, or left out for their size."""
    copy = workdir / "eval_robust" / evaluated.folder.name
    shutil.copytree(evaluated.folder, copy)
    for folder in ("arrays", "attacked"):
        shutil.rmtree(copy / folder)
    (copy / "results.json").unlink()
    robust.run(whole(trained), workdir)
    results = json.loads((copy / "results.json").read_text())
    assert results["rows"] == evaluated.results["rows"]
    assert not list(copy.glob("attacked/*"))
    lines = (copy / "images.jsonl").read_text().splitlines(keepends=True)
    scored = [line for line in lines if '"row": "adp-exact"' not in line]
    (copy / "images.jsonl").write_text("".join(scored))
    capsys.readouterr()
    robust.run(whole(trained), workdir)
    assert "attack:adp-exact, index 0: arrays/adp-exact.npy lacks its im" in capsys.readouterr().err
    assert untimed(read_lines(copy / "images.jsonl")) == untimed(evaluated.records)
    same = [np.load(at / "arrays/adp-exact.npy")[:6] for at in (copy, evaluated.folder)]
    np.testing.assert_array_equal(*same)


def scored_record(index: int) -> dict:
    record = {"row": "adp-clean", "index": index, "label": 7, "correct": [True], "seconds": 1.0}
    record |= {"predictions": [[7]], "queries": 0, "nfe": 0, "nge": 0}
    return record | {"defense_nfe": 0.0, "defense_seconds": 1.0}


def test_a_record_that_is_none_or_contradicts_another_is_reported(tmp_path):
    file = tmp_path / "images.jsonl"
    record = scored_record(3)
    write_lines(file, [record, record | {"seconds": 2.0}])  # the same, computed twice
    assert read_records(file) == {"adp-clean": {3: record}}
    said = {
        "Object missing required field `index`": {"row": "adp-clean"},
        "Object missing required field `queries`": {"row": "adp-clean", "index": 3},
        "Expected `object`, got `int`": 3,
        "lines 1, 3, of the same row and image, have different values": {
            **record, "label": 6, "correct": [False],
        },
        "all runs of a draw say 7, the label is 7, and 'correct' is False": {
            **record, "index": 4, "correct": [True, False], "predictions": [[7], [7]], "label": 7,
        },
    }  # fmt: skip
    for why, line in said.items():
        write_lines(file, [record, record | {"index": 5}, line])
        damaged = rf"images.jsonl: line [13] is damaged \(.*{re.escape(why)}"
        with pytest.raises(FileError, match=damaged):
            read_records(file)
        assert read_records(file, mend=True)["adp-clean"][5]["index"] == 5
        kept = [r["index"] for r in read_lines(file)]
        assert kept == ([5] if "different values" in why else [3, 5])
        aside = tmp_path / "images.jsonl.damaged"
        assert json.dumps(line) in aside.read_text()
        aside.unlink()


def test_all_lines_of_an_image_go_where_they_contradict_each_other(tmp_path, capsys):
    """Also one that agrees with the first: the image is computed again, and then stands once."""
    record = scored_record(3)
    lines = [record | {"queries": queries} for queries in (1, 2, 1)]
    file = tmp_path / "images.jsonl"
    write_lines(file, [*lines, scored_record(4)])
    assert read_records(file, mend=True) == {"adp-clean": {4: scored_record(4)}}
    assert [line["index"] for line in read_lines(file)] == [4]
    assert len((tmp_path / "images.jsonl.damaged").read_text().splitlines()) == 3


def test_pictures_are_read_from_the_file_that_was_looked_at(tmp_path, monkeypatch):
    """Not by its name again, which may be a link by then."""
    path, theirs = tmp_path / "adp-clean.npz", tmp_path / "theirs.npz"
    integers = {f"{version}_answers": np.zeros(2, int) for version in versions.VERSIONS}
    integers |= {"labels": np.zeros(2, int), "index": np.arange(2)}
    for at, grey in ((path, 0), (theirs, 9)):
        images = np.full((2, 4, 4, 1), grey, np.uint8)
        np.savez(at, **dict.fromkeys(versions.VERSIONS, images), **integers)

    def looked_at(path):
        file = open_file(path)
        path.unlink()
        path.symlink_to(theirs)
        return file

    monkeypatch.setattr(versions, "open_file", looked_at)
    assert not read_versions(path).images["clean"].any()


def test_a_link_in_a_folder_of_results_is_not_cleared(tmp_path):
    """Where it leads is somebody else's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    name = ".file.0123456789abcdef.partial"
    (theirs / name).write_bytes(b"theirs")
    with Store(tmp_path / "run", "eval_robust", {}) as store:
        (store.folder / "arrays").mkdir()
        (store.folder / "arrays" / name).write_bytes(b"half")
        (store.folder / "notes").symlink_to(theirs)
    with Store(tmp_path / "run", "eval_robust", {}):
        assert os.listdir(theirs) == [name] and os.listdir(store.folder / "arrays") == []


def test_an_evaluation_whose_signatures_were_lost_says_that_it_does_not_know(tmp_path):
    with Store(tmp_path, "eval_robust", {}) as store:
        assert [signature["commit"] for signature in store.signatures()] == ["unknown"]


def copied(evaluated, workdir) -> Path:
    """The evaluation, in a workdir of the test's own."""
    copy = workdir / "eval_robust" / evaluated.folder.name
    shutil.copytree(evaluated.folder, copy)
    return copy


def test_a_damaged_record_is_put_aside_and_computed_again(evaluated, trained, workdir, capsys):
    copy = copied(evaluated, workdir)
    lines = (copy / "images.jsonl").read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"row": "adp-clean"' in line)
    lines[at] = lines[at][:20] + "\n"
    (copy / "images.jsonl").write_text("".join(lines))
    robust.run(whole(trained), workdir)
    assert f"images.jsonl: left out: line {at + 1} (no JSON" in capsys.readouterr().err
    assert untimed(read_lines(copy / "images.jsonl")) == untimed(evaluated.records)
    assert (copy / "images.jsonl.damaged").read_text() == lines[at]


def spoil_zero(array):
    array[3] = 0


def spoil_exchange(array):
    array[[0, 1]] = array[[1, 0]]


def spoil_bit(array):
    array.reshape(-1).view(np.uint32)[0] ^= 1


@pytest.mark.parametrize("old", [False, True], ids=["sealed", "of an earlier version"])
@pytest.mark.parametrize("spoil", [spoil_zero, spoil_exchange, spoil_bit])
def test_other_images_than_those_that_were_attacked_are_not_taken_for_them(
    evaluated, trained, workdir, spoil, old
):
    """Neither for more scores nor as files; records of earlier versions have no seals, but the
    distance."""
    if old and spoil is spoil_bit:
        return  # a change within rounding, where nothing else is known
    copy = copied(evaluated, workdir)
    lines = read_lines(copy / "images.jsonl")
    if old:
        lines = [{k: v for k, v in line.items() if k != "arrays"} for line in lines]
        write_lines(copy / "images.jsonl", lines)
    path = copy / "arrays/adp-exact.npy"
    array = np.load(path)
    spoil(array)
    np.save(path, array)
    before = (copy / "attacked/adp-exact.npz").read_bytes()
    with pytest.raises(FileError, match=r"arrays/adp-exact.npy is damaged.*move it away"):
        robust.run(whole(trained), workdir)
    assert (copy / "attacked/adp-exact.npz").read_bytes() == before
    path.unlink()
    write_lines(copy / "images.jsonl", [line for line in lines if line["row"] != "adp-exact"])
    robust.run(whole(trained), workdir)
    assert untimed(read_lines(copy / "images.jsonl")).keys() == untimed(evaluated.records).keys()


def test_what_was_computed_of_other_attacked_images_is_computed_again(
    evaluated, trained, workdir, capsys
):
    """Where an image is lost and attacked again, as with other rounding: the scores of what it was
    go with it in the same run, and so do measurements that a choice is made by, and the file of
    what the defence makes of it."""
    copy = copied(evaluated, workdir)
    other, lost = "0" * 16, ("attack:adp-exact", "attack:adp-strongest")
    records = [dict(r) for r in evaluated.records if r["index"] or r["row"] not in lost]
    for record in records:
        of_one = record["row"] == "choice:adp-strongest:adp-exact" and not record["index"]
        if record["row"] == "adp-exact" or of_one:
            record["arrays"] = record["arrays"] | {"adp-exact": other}
    write_lines(copy / "images.jsonl", records)
    array = np.load(copy / "arrays/adp-exact.npy")
    array[:] = np.where(np.arange(len(array))[:, None, None, None] == 0, np.nan, array)
    np.save(copy / "arrays/adp-exact.npy", array)
    versions = dict(np.load(copy / "purified/adp-exact.npz"))
    versions["attacked"][0] ^= 1
    np.savez(copy / "purified/adp-exact.npz", **versions)
    robust.run(whole(trained), workdir)
    assert "it is of another image than the one that is there" in capsys.readouterr().err
    found = untimed(read_lines(copy / "images.jsonl"))
    assert found.keys() == untimed(evaluated.records).keys()
    assert not any(other in record.get("arrays", {}).values() for record in found.values())
    ours, theirs = (np.load(f / "purified/adp-exact.npz") for f in (copy, evaluated.folder))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_answers_that_the_logits_do_not_give_are_no_answers(evaluated, trained, workdir):
    copy = copied(evaluated, workdir)
    lines = read_lines(copy / "images.jsonl")
    for line in lines:
        if line["row"] == "adp-clean":
            line.pop("arrays")
            line["predictions"] = [
                [(label + 1) % 10 for label in runs] for runs in line["predictions"]
            ]
            line["correct"] = [
                (runs[0] == line["label"]) if len(set(runs)) == 1 else correct
                for runs, correct in zip(line["predictions"], line["correct"], strict=True)
            ]
    write_lines(copy / "images.jsonl", lines)
    with pytest.raises(FileError, match="arrays of adp-clean, index 0, do not agree: the predict"):
        robust.run(whole(trained), workdir)


def test_labels_that_are_not_those_of_the_images_are_named(evaluated, trained, workdir):
    copy = copied(evaluated, workdir)
    lines = read_lines(copy / "images.jsonl")
    for line in lines:
        if line["row"] == "adp-clean":
            line["correct"] = [not any(c) for c in zip(line["correct"], strict=True)]
            line["label"] = (line["label"] + 1) % 10
            for at, runs in enumerate(line["predictions"]):
                if len(set(runs)) == 1:
                    line["correct"][at] = runs[0] == line["label"]
    write_lines(copy / "images.jsonl", lines)
    with pytest.raises(FileError, match="adp-clean, index 0, do not agree: label"):
        robust.run(whole(trained), workdir)


def test_the_images_of_an_evaluation_are_all_of_the_split_needed_or_not(trained):
    """Their hash names its folder: that of an earlier version is found again."""
    config = trained.config(eval__num_images=5)
    inputs = load_inputs(config, trained.workdir, config.eval.defenses)
    task = robust.prepare(config, inputs)
    assert len(task.inputs.labels) == 5 < len(inputs.labels)
    assert task.settings["images"] == inputs.settings(config)["images"]


def test_other_settings_get_another_folder_and_batch_size_does_not(trained, tmp_path):
    def folder(config, **score):
        inputs = load_inputs(config, trained.workdir, config.eval.defenses)
        networks = inputs.networks | {"score": inputs.score.replace(**score)}
        inputs = dataclasses.replace(inputs, networks=networks)
        settings = robust.prepare(config, inputs).settings
        with Store(tmp_path, "eval_robust", settings) as store:
            return store.folder

    base = folder(trained.config())
    assert folder(trained.config(eval__batch_size=7)) == base
    assert folder(trained.config(check__num_images=7)) == base  # of another mode
    assert folder(trained.config(variants__adp_s0__sigma=0.05)) == base  # evaluated by another
    assert folder(trained.config(adp__sigma=0.1)) != base
    assert folder(trained.config(attacks__bpda__eot_samples=3)) != base
    assert folder(trained.config(seed=1)) != base
    coupled = [
        trained.config(
            eval__defenses=("identity", "noise_only", "adp_reference"),
            eval__attacks=(),
            eval__batch_size=size,
        )
        for size in (5, 7)
    ]
    assert folder(coupled[0]) != folder(coupled[1])
    assert folder(trained.config(), head="denoiser") != base


def save_classifier(folder, variables, settings: dict) -> None:
    """A checkpoint as --mode=import_weights writes it."""
    claim(folder / "classifier", settings)
    with Checkpoints(folder / "classifier", training=True) as checkpoints:
        checkpoints.save(0, {"ema": variables})


def test_a_variant_is_attacked_and_scored_with_the_classifier_of_another_workdir(
    trained, workdir, tmp_path, capsys
):
    """Whose last layer is negated here: it answers what is least likely."""
    settings = read_settings(workdir / "classifier")
    variables = dict(load_classifier(workdir).variables)
    last = {name: -array for name, array in variables["params"]["Dense_0"].items()}
    variables["params"] = variables["params"] | {"Dense_0": last}
    save_classifier(tmp_path / "other", variables, settings)
    changes = {
        "variants.other": dict(purifier="identity", classifier=str(tmp_path / "other")),
        "eval.defenses": ("identity", "other"),
        "eval.attacks": ("blind",),
        "eval.num_images": 4,
    }
    robust.run(trained.config(**changes), workdir)
    out = capsys.readouterr().out
    assert all(f"{kind}: 0 network evaluations and" in out for kind in ("scoring", "attacking"))
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    run = f"{tmp_path}/other/classifier"
    assert results["weights"][run] == weight_hash(variables) != results["weights"]["classifier"]
    assert (
        results["trained"][run] == settings
    )  # and no step, as of all that was imported without one
    assert (
        json.loads((folder / "settings.json").read_text())["networks"][run] == (settings["network"])
    )
    ours, theirs = (
        np.load(folder / "arrays" / f"{name}-clean.logits.npy") for name in ("identity", "other")
    )
    np.testing.assert_allclose(theirs, -ours, atol=1e-5)
    blind, other = (
        np.load(folder / "attacked" / f"{name}.npz")["images"] for name in ("blind", "other-blind")
    )
    assert np.abs(blind - other).max() > 0.1
    records = {r["row"]: r for r in read_lines(folder / "images.jsonl") if r["index"] == 0}
    assert records["other-blind"]["loss"] == records["attack:other-blind"]["loss"]
    assert records["other-blind"]["loss"] != records["identity-blind"]["loss"]


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("image_shape", [4, 4, 1], "of shape (4, 4, 1), the classifier for (8, 8, 1)"),
        ("num_classes", 7, "in 7 classes, the evaluation's own classifier for images in 10"),
    ],
)
def test_a_classifier_of_other_images_or_classes_is_refused(
    trained, workdir, tmp_path, field, value, said
):
    settings = read_settings(workdir / "classifier")
    if field in settings["network"]:
        settings["network"][field] = value
        settings["class_names"] = settings["class_names"][:value]
    else:
        settings[field] = value
    save_classifier(tmp_path / "other", load_classifier(workdir).variables, settings)
    variant = dict(purifier="identity", classifier=str(tmp_path / "other"))
    config = trained.config(eval__defenses=("other",), **{"variants.other": variant})
    with pytest.raises(ValueError, match=re.escape(f"other/classifier is for images {said}")):
        robust.run(config, workdir)


def test_where_a_batch_decides_together_a_resumed_one_is_computed_whole(trained, workdir):
    """The published loop: while an image of the batch moves, those that stopped are stretched."""
    config = trained.config(
        eval__defenses=("identity", "noise_only", "adp_reference"),
        eval__attacks=("blind",),
        eval__num_images=7,
        eval__batch_size=4,
        adp_reference__tau=0.02,
    )
    with pytest.raises(ValueError, match="max_images=3 must be a multiple of"):
        robust.run(config, workdir, max_images=3)
    robust.run(config, workdir)
    folder = only_folder(workdir)
    records = read_lines(folder / "images.jsonl")
    left = [r for r in records if r["index"] not in (1, 5)]
    (folder / "images.jsonl").write_text("".join(json.dumps(record) + "\n" for record in left))
    robust.run(config, workdir)
    again = read_lines(only_folder(workdir) / "images.jsonl")
    assert untimed(again) == untimed(records) and len(again) == len(records)
    steps = {r["defense_nfe"] for r in records if r["row"] == "adp_reference-clean"}
    assert len(steps) > 1, steps  # images stop at different steps


def test_a_result_depends_on_no_neighbour(evaluated, trained, workdir):
    """Seven images instead of ten: other batches, other padding, the same bits."""
    records = evaluated.records
    robust.run(whole(trained, eval__num_images=7, attacks__exact__num_images=5), workdir)
    fewer = untimed(read_lines(only_folder(workdir) / "images.jsonl"))
    expected = untimed(records)
    shared = fewer.keys() & expected.keys()
    assert len(shared) > 7 * 12
    assert {key: fewer[key] for key in shared} == {key: expected[key] for key in shared}


@pytest.mark.slow
def test_devices_and_batch_size_change_rounding_only(evaluated, trained, workdir):
    """Four devices in batches of 8 go on where one in batches of 4 stopped: no image is lost or
    doubled. An attacked pixel may differ where its gradient is 0 but for rounding, and the sign
    with it; few do."""
    robust.run(trained.config(eval__attacks=("blind",)), workdir, max_images=2)
    arguments = ("--mode=eval_robust", "--config.eval.attacks=('blind',)", f"--workdir={workdir}")
    result = trained.main(*arguments, "--config.eval.batch_size=8", devices=4)
    assert result.returncode == 0, result.stderr
    lines = [(r["row"], r["index"]) for r in read_lines(only_folder(workdir) / "images.jsonl")]
    assert len(lines) == len(set(lines)) == 5 * 10 * 2 + 10
    folder, arrays = evaluated.folder, only_folder(workdir) / "arrays"
    for name in ("identity-clean", "adp-clean", "schedule-clean"):
        one = np.load(folder / "arrays" / f"{name}.logits.npy")
        four = np.load(arrays / f"{name}.logits.npy")
        assert np.abs(one - four).max() < 1e-3, name
    one, four = (np.load(at / "blind.npy") for at in (folder / "arrays", arrays))
    assert np.mean(np.abs(one - four) > 1e-5) < 0.01


def test_a_killed_evaluation_goes_on_where_it_stopped(trained, workdir):
    """kill -9 in the middle, in a process of its own; then the same command finishes."""
    arguments = ("--mode=eval_robust", f"--workdir={workdir}", "--config.eval.attacks=('blind',)")
    process = trained.start(*arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = list(workdir.glob("eval_robust/*/images.jsonl"))
        if files and files[0].read_bytes().count(b"\n") >= 12:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = files[0].read_bytes()
    assert before.count(b"\n") < 60, "it was over before it could be killed"
    result = trained.main(*arguments)
    assert result.returncode == 0, result.stderr
    after = read_lines(files[0])
    assert files[0].read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(after) == len({(r["row"], r["index"]) for r in after}) == 5 * 10 * 2 + 10


# Compilation


def test_every_program_of_an_evaluation_is_compiled_once_for_each_shape(evaluated):
    # Every attacked function: identity's, blind; adp's, bpda, exact and with fixed keys.
    # Every defence; adp also on fewer images, in smaller batches, and with the one draw of fixed
    # keys. Images of the headline defence, in batches of both sizes.
    counts = {name: evaluated.compiled.count(name) for name in ("craft", "score", "_versions")}
    assert counts == {"craft": 4, "score": 7, "_versions": 2}


def test_every_network_has_one_training_program(trained, workdir):
    for role in ("classifier", "score"):
        shutil.rmtree(workdir / role)
    config = trained.config()
    config.classifier.train.num_steps = config.score.train.num_steps = 30
    with compilations() as names:
        train_classifier.run(config, workdir)
        train_score.run(config, workdir)
    assert names.count("train_step") == 2
