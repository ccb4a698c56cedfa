"""--mode=detect: what is measured and told, that it can be interrupted, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import flax.struct
import jax
import numpy as np
import pytest

from attacks.norms import NORMS
from purify.data import datasets
from purify.data.corruptions import CORRUPTIONS
from purify.data.image_io import to_float
from purify.defense import classify
from purify.detectors import Passes, Penalty, ScoreNorm, build_statistic
from purify.evals import detect
from purify.evals.core.inputs import seen
from purify.evals.core.stats import bootstrap_mean, proportion
from purify.evals.detect.measure import (
    UNKNOWING,
    Calibrated,
    attack_rows,
    calibrate,
    measure,
    noisy,
)
from purify.evals.detect.numbers import result_rows
from purify.evals.detect.roc import threshold
from purify.evals.detect.show import results_table
from purify.purifiers.detect_then_purify import score_norm
from purify.random import image_keys
from purify.saving.checkpoint import load_classifier, load_defense, load_score
from purify.saving.jsonl import read_lines
from tests.oracles import near
from tests.test_plan import make

BUDGET = {
    "detect.statistics": ("score_norm", "prediction_change"),
    "detect.calibration_split": "validation[:40]",
    "detect.num_images": 12,
    "detect.weights": (0.1, 100.0),
    "detect.eot_samples": 2,
    "detect.num_draws": 2,
    "detect.corruptions": ("contrast",),
    "attacks.blind.num_steps": 10,
    "attacks.blind.eps": 0.3,
    "attacks.blind.step_size": 0.1,
}
ATTACKS = (
    *("unknowing", "prediction_change_joint"),
    *(f"{s}_{c}" for s in BUDGET["detect.statistics"] for c in ("0.1", "100")),
)


def only_folder(workdir):
    (folder,) = (workdir / "detect").iterdir()
    return folder


def records_of(folder) -> dict:
    lines = read_lines(folder / "images.jsonl")
    untimed = [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in lines]
    return {(r["row"], r["index"]): r for r in untimed}


@pytest.fixture(scope="module")
def detected(trained, tmp_path_factory):
    """(folder, results, what was printed is not kept) of one whole run."""
    workdir = trained.copied_into(tmp_path_factory.mktemp("detect"))
    detect.run(trained.config(**BUDGET), workdir)
    folder = only_folder(workdir)
    return folder, json.loads((folder / "results.json").read_text())


def test_the_threshold_is_the_calibration_images(trained, detected):
    _, results = detected
    natural = datasets.load("digits8x8", "validation[:40]", data_dir=trained.tfds)
    score = load_score(trained.workdir)
    norms = jax.jit(jax.vmap(lambda image: score_norm(score, image)))(to_float(natural.images))
    found = results["statistics"]["score_norm"]
    assert found["threshold"] == pytest.approx(threshold(norms, 0.05), rel=1e-4)
    assert found["standard_deviation"] == pytest.approx(float(np.std(norms)), rel=1e-3)
    assert found["num_calibration"] == 40 and results["calibration_seen_by"] == []


def test_positives_are_the_attacked_images_that_fool_the_classifier(trained, detected):
    """Of a statistic that draws the last two draws of four are scored; of the area all pairs."""
    folder, results = detected
    clean = datasets.load("digits8x8", "test[:12]", data_dir=trained.tfds)
    classify = jax.jit(jax.vmap(load_classifier(trained.workdir)))
    records = records_of(folder)
    assert {name for name, _ in records if name.startswith("identity-")} == {
        f"identity-{name}" for name in ("clean", *ATTACKS)
    }
    for row in (row for row in results["rows"] if row["images"] in ATTACKS):
        name, statistic = row["images"], row["statistic"]
        stem = name if name == "unknowing" else f"identity-{name}"
        images = np.load(folder / "arrays" / f"{stem}.npy")
        wrong = np.asarray(classify(images)).argmax(-1) != clean.labels
        assert row["num_positives"] == wrong.sum()
        limit = results["statistics"][statistic]["threshold"]
        values = scored(records, name, statistic)
        stopped = ~wrong[:, None] | (values > limit)
        assert row["left"] == near(mean_of(stopped))
        assert row["left_worst"] == near(proportion(stopped.all(1))._asdict())
        if wrong.any():
            assert row["flagged"] == near(mean_of(values[wrong] > limit))
            above = values[wrong].reshape(-1, 1) - scored(records, "clean", statistic).ravel()
            area = np.mean((above > 0) + (above == 0) / 2)
            assert row["auroc"]["value"] == pytest.approx(area)
    assert any(row["kind"] == "unknowing" and row["num_positives"] > 5 for row in results["rows"])


def scored(records, name: str, statistic: str) -> np.ndarray:
    values = np.array([records[f"statistics:{name}", i][statistic] for i in range(12)])
    assert values.shape == (12, {"score_norm": 1, "prediction_change": 4}[statistic])
    return values[:, -2:]


def mean_of(outcomes: np.ndarray) -> dict:
    if outcomes.shape[1] == 1:
        return proportion(outcomes[:, 0])._asdict()
    return bootstrap_mean(outcomes.mean(1), seed=0)._asdict()


def test_a_rejected_clean_image_is_an_error_and_a_rejected_attacked_one_is_stopped(
    trained, detected
):
    folder, results = detected
    natural = datasets.load("digits8x8", "test[:12]", data_dir=trained.tfds)
    right = np.asarray(
        jax.jit(jax.vmap(load_classifier(trained.workdir)))(to_float(natural.images))
    )
    right = right.argmax(-1) == natural.labels
    records = records_of(folder)
    by_kind = {(row["statistic"], row["images"]): row for row in results["rows"]}
    for statistic in BUDGET["detect.statistics"]:
        clean = by_kind[statistic, "clean"]
        limit = results["statistics"][statistic]["threshold"]
        above = scored(records, "clean", statistic) > limit
        assert clean["flagged"] == near(mean_of(above))
        assert clean["left"] == near(mean_of(right[:, None] & ~above))
        knowing = [by_kind[statistic, n] for n in ATTACKS if n.startswith((statistic, "unk"))]
        assert all(row["left"]["value"] >= row["accuracy"]["value"] for row in knowing)
        assert by_kind[statistic, "contrast"]["kind"] == "natural"
        assert by_kind[statistic, "noise"]["left"] is None
    assert ("score_norm", "prediction_change_100") not in by_kind


def test_the_strongest_attack_is_chosen_on_draws_that_are_not_scored():
    """Two attacks that differ by chance only: chosen on what is scored, less would seem left."""
    rng = np.random.default_rng(0)
    stopped = rng.random((2, 4000, 6)) < 0.5  # by attack, image and draw
    values = {name: {"s": s.astype(float)} for name, s in zip(ROWS, stopped, strict=True)}
    values |= {name: {"s": np.zeros((4000, 6))} for name in ("calibration", "clean")}
    right = {name: np.zeros((4000, 1), bool) for name in (*ROWS, "clean")}
    entries = result_rows(*(values, right, {"s": {"threshold": 0.5}}, {}), num_draws=3, seed=0)
    strongest = entries[-1]
    assert strongest["images"] == "strongest"
    assert strongest["left"]["low"] < 0.5 < strongest["left"]["high"]
    assert strongest["left"]["value"] - np.minimum(*stopped[..., 3:].mean(-1)).mean() > 0.1
    chosen = stopped[:, :, :3].mean(-1).argmin(0)
    kept = stopped[chosen, np.arange(4000), 3:]
    assert strongest["left"]["value"] == pytest.approx(kept.mean())
    assert strongest["left_worst"]["value"] == pytest.approx(kept.all(1).mean())


ROWS = ("unknowing", "s_1")


def test_who_knows_the_detector_looks_more_natural(detected):
    """Whatever the weight, for of what such an attack finds it takes what passes most often."""
    records = records_of(detected[0])
    mean = {
        name: np.mean([records[f"statistics:{name}", i]["score_norm"] for i in range(12)])
        for name in ("clean", "unknowing", "score_norm_0.1", "score_norm_100")
    }
    assert mean["score_norm_100"] < mean["score_norm_0.1"] < 0.6 * mean["unknowing"], mean


def test_a_joint_attack_fools_the_classifier_and_what_it_says_of_the_purified_image(
    trained, detected
):
    """An attacker who does not know of the purifier fools the classifier of the image alone."""
    folder, results = detected
    labels = datasets.load("digits8x8", "test[:12]", data_dir=trained.tfds).labels
    defense = load_defense(trained.workdir, "one_step", num_runs=8, sigma=0.25)

    def agree(name):
        images = np.load(folder / "arrays" / f"{name}.npy")
        seen = np.asarray(jax.jit(jax.vmap(defense.classifier))(images)).argmax(-1)
        purified = np.asarray(classify(defense, image_keys(5, np.arange(12)), images)).argmax(-1)
        return np.mean((seen == purified) & (seen != labels))

    assert agree("identity-prediction_change_joint") >= agree("unknowing") + 0.2
    row = next(r for r in results["rows"] if r["images"] == "prediction_change_joint")
    assert row["kind"] == "knowing" and row["targets"] == 9


@pytest.mark.parametrize("n", [999, 1000])
def test_the_small_rate_waits_for_a_thousand_images(n):
    """Natural values are 1 to n: 1 % of them lie above the 990th or 991st of a thousand."""
    natural = np.arange(1.0, n + 1)[:, None]
    values = {"calibration": {"s": natural}, "clean": {"s": natural}, "unknowing": {"s": natural}}
    right = {"clean": np.ones((n, 1), bool), "unknowing": np.zeros((n, 1), bool)}
    clean, unknowing = result_rows(
        *(values, right, {"s": {"threshold": 950.0}}, {}), num_draws=1, seed=0
    )
    assert clean["flagged"]["value"] == pytest.approx((n - 950) / n)
    if n < 1000:
        assert clean["flagged_small"] is None is unknowing["flagged_small"]
    else:
        assert (
            clean["flagged_small"]
            == unknowing["flagged_small"]
            == near(proportion(natural[:, 0] > 991)._asdict())
        )
    shown = results_table({"title": "", "rows": [clean, unknowing]})
    headers = [column.name for column in shown.columns]
    assert ("at 1 %" in headers) == (n == 1000)


def test_the_small_rate_needs_as_many_images_that_it_judges():
    values = {"calibration": {"s": np.arange(1000.0)[:, None]}}
    values["clean"] = {"s": values["calibration"]["s"][:999]}
    right = {"clean": np.ones((999, 1), bool)}
    (clean,) = result_rows(*(values, right, {"s": {"threshold": 950.0}}, {}), num_draws=1, seed=0)
    assert clean["flagged_small"] is None


def test_what_is_left_by_hand():
    """Four images, two draws that choose and two that are scored; a value at the threshold passes,
    and an image that fools in half of its draws does not fool."""
    found = np.array([[9, 9, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 2, 0]], float)
    right = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    values = {name: {"s": found} for name in ("clean", "unknowing")}
    values["calibration"] = {"s": np.ones((30, 1))}
    clean, attacked = result_rows(
        *(values, {"clean": right, "unknowing": right}, {"s": {"threshold": 1.0}}, {}),
        num_draws=2,
        seed=0,
    )
    # Clean: right, and not above 1; attacked: right, or above 1.
    assert clean["left"]["value"] == pytest.approx(np.mean([0, 1 / 2, 0, 0]))
    assert attacked["left"]["value"] == pytest.approx(np.mean([0, 1 / 2, 1, 1 / 2]))
    assert attacked["left_worst"]["value"] == pytest.approx(1 / 4)
    assert (clean["num_positives"], attacked["num_positives"]) == (4, 3)
    assert clean["flagged"]["value"] == pytest.approx(np.mean([0, 0, 1, 1 / 2]))


@flax.struct.dataclass
class KeyOnly:
    """A statistic that is a number of its key."""

    stochastic = True

    def __call__(self, key, image):
        return jax.random.uniform(key) + 0.0 * image.sum()


def test_every_draw_of_a_statistic_has_a_key_of_its_own():
    keys, numbers = jax.random.split(jax.random.key(0), 2), np.array([0, 3])
    found = measure({"s": KeyOnly()}, keys, np.zeros((2, 1, 1, 1), np.float32), numbers)["s"]
    expected = [[jax.random.uniform(jax.random.fold_in(k, i)) for i in numbers] for k in keys]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_attacker_weighs_an_excess_by_the_standard_deviation_of_natural_values():
    values = {"s": np.array([[1.0, 9.0], [3.0, 9.0], *[[2.0, 9.0]] * 18])}
    (calibrated,) = calibrate({"s": None}, values).values()
    assert calibrated.scale == pytest.approx(np.std(values["s"][:, 0]))
    config, rows = make("digits")
    defense, options = rows["identity-clean"].defense, config.attacks.blind.to_dict()
    score = ScoreNorm(rows["adp-clean"].defense.purifier.score)
    planned = attack_rows(
        *("identity", defense, "blind", options, {"s": Calibrated(score, 0.2, 4.0)}),
        weights=(2.0,),
        eot_samples=3,
        num_images=5,
        num_draws=2,
    )
    assert planned["s_2"].penalty == Penalty(score, 0.2, 0.5)
    assert planned["s_2"].passes == Passes(score, 0.2)


def test_noise_shares_no_key_with_a_corruption():
    images, indices = np.full((2, 4, 4, 1), 0.5, np.float32), np.arange(2)
    found = noisy(0, images, indices, "linf", 0.1)
    keys = image_keys(0, indices, stream="corruption")
    for number in range(len(CORRUPTIONS)):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        drawn = jax.vmap(lambda key, x: NORMS["linf"].random(key, x, 0.1))(folded, images)
        assert np.abs(found - drawn).max((1, 2, 3)).min() > 0.01


def test_statistics_are_drawn_by_their_own_keys_and_calibrated_by_others(trained, detected):
    """Not by the attacker's; and image 3 of the one split does not share noise with image 3 of the
    other."""
    folder, _ = detected
    defense = load_defense(trained.workdir, "one_step", num_runs=2, sigma=0.25)
    statistic = build_statistic("prediction_change", defense, load_score(trained.workdir))
    records = records_of(folder)
    for name, split, stream in (
        ("clean", "test[:12]", "detection"),
        ("calibration", "validation[:12]", "calibration"),
    ):
        images = to_float(datasets.load("digits8x8", split, data_dir=trained.tfds).images)
        keys = image_keys(0, np.arange(12), stream=stream)
        drawn = jax.jit(jax.vmap(lambda key, x: statistic(jax.random.fold_in(key, 2), x)))
        stored = [records[f"statistics:{name}", i]["prediction_change"][2] for i in range(12)]
        np.testing.assert_allclose(drawn(keys, images), stored, atol=1e-4)


def test_noise_as_large_as_the_attack_is_in_its_ball(trained):
    images = to_float(datasets.load("digits8x8", "test[:5]", data_dir=trained.tfds).images)
    noise = noisy(0, images, np.arange(5), "linf", 0.1) - images
    assert 0.05 < np.abs(noise).max() <= 0.1 + 1e-6
    np.testing.assert_array_equal(noise, noisy(0, images, np.arange(5), "linf", 0.1) - images)
    apart = noisy(0, images, np.arange(1, 6), "linf", 0.1) - images
    assert np.abs(noise - apart).max(axis=(1, 2, 3)).min() > 0.02


def test_a_random_defence_and_a_purifier_that_loops_can_be_attacked(trained, workdir, capsys):
    """ADP stops early in a while loop, which has no gradient."""
    changes = {"detect.purifier": "adp", "detect.defense": "one_step", "detect.num_images": 2}
    changes |= {"detect.weights": (1.0,), "detect.statistics": ("reconstruction_error",)}
    changes |= {"attacks.blind.num_steps": 1, "detect.corruptions": ()}
    detect.run(trained.config(**BUDGET | changes), workdir)
    (row,) = (
        r
        for r in json.loads((only_folder(workdir) / "results.json").read_text())["rows"]
        if r["kind"] == "knowing"
    )
    assert row["gradient"] == "exact" and row["method"] == "apgd" and row["norm"] == "linf"
    assert row["nge_per_image"] > 0 and row["eot_samples"] == 2
    correct = [records_of(only_folder(workdir))["one_step-clean", i]["correct"] for i in range(2)]
    assert np.shape(correct) == (2, 4)
    out = capsys.readouterr().out
    assert "unknowing: pgd, blind, linf 0.3" in out and "knowing: apgd, exact, linf 0.3" in out


def cut_draws(record: dict) -> None:
    record["prediction_change"].pop()


def test_it_prints_a_table_and_goes_on_where_it_stopped(trained, workdir, detected, capsys):
    config = trained.config(**BUDGET)
    detect.run(config, workdir, max_images=5)
    out = capsys.readouterr().out
    assert "stopped after 5 of 12 images" in out
    assert "prediction_change" in out and "c 0.1" in out and "strongest" in out
    assert "joint: apgd on the classifier" in out and " joint " in out
    folder = only_folder(workdir)
    assert (folder / "figures" / "statistics.png").stat().st_size > 10_000
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    measured = [at for at, line in enumerate(lines[:-3]) if '"row": "statistics:clean"' in line]
    for at, change in zip(measured, (lambda r: r.pop("score_norm"), cut_draws), strict=False):
        change(record := json.loads(lines[at]))
        lines[at] = json.dumps(record) + "\n"
    (folder / "images.jsonl").write_text("".join(lines[:-3]))  # a kill
    detect.run(config, workdir)
    assert len(read_lines(folder / "images.jsonl.damaged")) == 2
    assert folder.name == detected[0].name
    again, whole = records_of(folder), records_of(detected[0])
    assert again.keys() == whole.keys()
    for (row, index), record in whole.items():
        # A weight of 100 on an excess multiplies its rounding.
        rel = 1e-3 if row.endswith("_100") else 1e-5
        assert again[row, index] == near(record, rel)
    before = (folder / "provenance.jsonl").read_text()
    assert "all of it was done before" not in capsys.readouterr().out
    detect.run(config, workdir)  # has nothing to do, and does not sign
    assert (folder / "provenance.jsonl").read_text() == before
    assert "all of it was done before, nothing is computed" in capsys.readouterr().out
    assert (folder / "figures" / "roc.png").stat().st_size > 10_000


def test_statistics_of_other_images_than_those_that_are_there_are_measured_again(
    trained, workdir, detected, capsys
):
    folder, results = detected
    copy = workdir / "detect" / folder.name
    shutil.copytree(folder, copy)
    lines = read_lines(copy / "images.jsonl")
    line = next(line for line in lines if line["row"] == f"statistics:{UNKNOWING}")
    line["score_norm"], line["arrays"] = [100.0], {UNKNOWING: "0" * 16}
    (copy / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    detect.run(trained.config(**BUDGET), workdir)
    assert "it is of another image than the one that is there" in capsys.readouterr().err
    again = json.loads((copy / "results.json").read_text())
    assert again["rows"] == near(results["rows"], 1e-5)


def test_it_says_that_the_classifier_has_seen_the_calibration_images(trained, workdir, capsys):
    changes = {"detect.calibration_split": "train[:30]", "detect.num_images": 2}
    changes |= {"detect.weights": (1.0,), "detect.statistics": ("score_norm",)}
    detect.run(trained.config(**BUDGET | changes), workdir)
    out = capsys.readouterr().out
    assert "was trained on 30 of images of 'train[:30]'" in out
    assert "calibrated on images that a network has seen, or may have: classifier, score" in out


def test_of_weights_from_elsewhere_it_is_said_that_nobody_knows(trained, tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    data_config = trained.config().data
    inputs = SimpleNamespace(runs={"classifier": tmp_path}, notes=(), unfinished=list)
    (note,), by = seen(data_config, inputs, range(2))
    assert by == ["classifier (unknown)"] and "what it has seen is unknown" in note


def test_of_a_network_for_other_data_it_is_said_for_which(trained, tmp_path):
    (tmp_path / "settings.json").write_text('{"data": {"name": "svhn_cropped", "path": null}}')
    inputs = SimpleNamespace(runs={"classifier": tmp_path}, notes=(), unfinished=list)
    (note,), by = seen(trained.config().data, inputs, range(2))
    assert by == [] and "was trained on svhn_cropped, these images are digits8x8" in note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detect.purifier": "adp_reference"}, "detect.purifier='adp_reference' decides a batch"),
        ({"detect.defense": "adp_reference"}, "detect.defense='adp_reference' decides a batch"),
        ({"detect.statistics": ("nonsense",)}, "config.detect.statistics entry 'nonsense'"),
        ({"detect.statistics": ("energy",)}, "needs a score model with head='energy'"),
        ({"detect.purifier": "nonsense"}, "config.detect.purifier 'nonsense'"),
        ({"detect.defense": "nonsense"}, "config.detect.defense 'nonsense'"),
        ({"detect.attack": "nonsense"}, "config.detect.attack 'nonsense'"),
        ({"detect.attack": "square"}, "config.detect.attack='square' does not fit: it is square"),
        (
            {"detect.attack": "joint_score"},
            "config.detect.attack='joint_score' does not fit: it is pgd with direction",
        ),
        ({"detect.corruptions": ("nonsense",)}, "config.detect.corruptions entry 'nonsense'"),
        ({"detect.severity": 6}, "config.detect.severity=6 must be one of"),
        ({"detect.weights": (0.0,)}, "config.detect.weights=.* must all be positive"),
        ({"detect.weights": (float("nan"),)}, "config.detect.weights=.*nan.* must all be positive"),
        ({"detect.eot_samples": 0}, "config.detect.eot_samples=0 must be at least 1"),
        ({"detect.num_draws": 0}, "config.detect.num_draws=0 must be at least 1"),
        ({"detect.num_images": 0}, "config.detect.num_images=0 must be 1 to 400"),
        ({"detect.calibration_split": "nonsense"}, "split 'nonsense' of digits8x8"),
        (
            {"detect.calibration_split": "test[10:50]"},
            "shares 2 images with the first 12 of 'test'",
        ),
        ({"detect.calibration_split": "validation[:18]"}, "18 calibration images are too few"),
    ],
)
def test_what_cannot_be_is_refused_before_work_starts(trained, workdir, changes, said):
    with pytest.raises(ValueError, match=said):
        detect.run(trained.config(**BUDGET | changes), workdir)
    assert not (workdir / "detect").exists()
