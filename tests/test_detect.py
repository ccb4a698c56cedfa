"""--mode=detect: what is measured and told, that it can be interrupted, and what is refused."""

import json

import jax
import numpy as np
import pytest

from purify import data
from purify.checkpoint import load_classifier, load_score
from purify.detection import score_norm
from purify.evals import detect
from purify.evals.roc import threshold
from purify.evals.stats import proportion
from purify.image_io import to_float
from purify.jsonl import read_lines
from tests.oracles import near

BUDGET = {
    "detect.statistics": ("score_norm", "prediction_change"),
    "detect.calibration_split": "validation[:40]",
    "detect.num_images": 12,
    "detect.weights": (0.1, 100.0),
    "detect.eot_samples": 2,
    "detect.corruptions": ("contrast",),
    "attacks.blind.num_steps": 10,
    "attacks.blind.eps": 0.3,
    "attacks.blind.step_size": 0.1,
}
ATTACKS = ("unknowing", *(f"{s}_{c}" for s in BUDGET["detect.statistics"] for c in ("0.1", "100")))


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
    workdir = trained.linked_into(tmp_path_factory.mktemp("detect"))
    detect.run(trained.config(**BUDGET), workdir)
    folder = only_folder(workdir)
    return folder, json.loads((folder / "results.json").read_text())


def test_the_threshold_is_the_calibration_images(trained, detected):
    _, results = detected
    natural = data.load("digits8x8", "validation[:40]", data_dir=trained.tfds)
    score = load_score(trained.workdir)
    norms = jax.jit(jax.vmap(lambda image: score_norm(score, image)))(to_float(natural.images))
    found = results["statistics"]["score_norm"]
    assert found["threshold"] == pytest.approx(threshold(norms, 0.05), rel=1e-4)
    assert found["standard_deviation"] == pytest.approx(float(np.std(norms)), rel=1e-3)
    assert found["num_calibration"] == 40 and results["calibration_seen_by"] == []


def test_positives_are_the_attacked_images_that_fool_the_classifier(trained, detected):
    folder, results = detected
    clean = data.load("digits8x8", "test[:12]", data_dir=trained.tfds)
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
        values = np.array([records[f"statistics:{name}", i][statistic] for i in range(12)])
        left = proportion(~wrong | (values > limit))
        assert row["left"] == near(left._asdict())
        if wrong.any():
            assert row["flagged"] == near(proportion(values[wrong] > limit)._asdict())
            natural = np.array([records["statistics:clean", i][statistic] for i in range(12)])
            above = values[wrong][:, None] - natural
            area = np.mean((above > 0) + (above == 0) / 2)
            assert row["auroc"]["value"] == pytest.approx(area)
    assert any(row["kind"] == "unknowing" and row["num_positives"] > 5 for row in results["rows"])


def test_a_rejected_clean_image_is_an_error_and_a_rejected_attacked_one_is_stopped(detected):
    _, results = detected
    by_kind = {(row["statistic"], row["images"]): row for row in results["rows"]}
    for statistic in BUDGET["detect.statistics"]:
        clean = by_kind[statistic, "clean"]
        assert clean["left"]["value"] <= clean["accuracy"]["value"] <= 1
        knowing = [by_kind[statistic, n] for n in ATTACKS if n.startswith((statistic, "unk"))]
        assert all(row["left"]["value"] >= row["accuracy"]["value"] for row in knowing)
        strongest = by_kind[statistic, "strongest"]["left"]["value"]
        assert strongest <= min(row["left"]["value"] for row in knowing)
        assert by_kind[statistic, "contrast"]["kind"] == "natural"
        assert by_kind[statistic, "noise"]["left"] is None
    assert ("score_norm", "prediction_change_100") not in by_kind


def test_who_knows_the_detector_looks_more_natural(detected):
    """With a weight of 100 nearly nothing but the statistic counts, with 0.1 little of it."""
    records = records_of(detected[0])
    mean = {
        name: np.mean([records[f"statistics:{name}", i]["score_norm"] for i in range(12)])
        for name in ("clean", "unknowing", "score_norm_0.1", "score_norm_100")
    }
    assert mean["score_norm_100"] < 0.8 * mean["score_norm_0.1"] < 0.64 * mean["unknowing"]


def test_the_small_rate_waits_for_a_thousand_images(detected):
    assert all(row["flagged_small"] is None for row in detected[1]["rows"])


def test_it_prints_a_table_and_goes_on_where_it_stopped(trained, workdir, detected, capsys):
    config = trained.config(**BUDGET)
    detect.run(config, workdir, max_images=5)
    out = capsys.readouterr().out
    assert "stopped after 5 of 12 images" in out
    assert "prediction_change" in out and "c 0.1" in out and "strongest" in out
    folder = only_folder(workdir)
    assert (folder / "figures" / "statistics.png").stat().st_size > 10_000
    lines = (folder / "images.jsonl").read_text().splitlines(keepends=True)
    (folder / "images.jsonl").write_text("".join(lines[:-3]))  # a kill
    detect.run(config, workdir)
    assert folder.name == detected[0].name
    assert records_of(folder) == near(records_of(detected[0]))
    before = (folder / "provenance.jsonl").read_text()
    detect.run(config, workdir)  # has nothing to do, and does not sign
    assert (folder / "provenance.jsonl").read_text() == before
    assert (folder / "figures" / "roc.png").stat().st_size > 10_000


def test_it_says_that_the_classifier_has_seen_the_calibration_images(trained, workdir, capsys):
    changes = {"detect.calibration_split": "train[:30]", "detect.num_images": 2}
    changes |= {"detect.weights": (1.0,), "detect.statistics": ("score_norm",)}
    detect.run(trained.config(**BUDGET | changes), workdir)
    out = capsys.readouterr().out
    assert "was trained on 30 of images of 'train[:30]'" in out
    assert "calibrated on images that a network has seen: classifier, score" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detect.statistics": ("nonsense",)}, "config.detect.statistics entry 'nonsense'"),
        ({"detect.statistics": ("energy",)}, "needs a score model with head='energy'"),
        ({"detect.purifier": "nonsense"}, "config.detect.purifier 'nonsense'"),
        ({"detect.defense": "nonsense"}, "config.detect.defense 'nonsense'"),
        ({"detect.attack": "nonsense"}, "config.detect.attack 'nonsense'"),
        ({"detect.attack": "square"}, "config.detect.attack='square' does not fit"),
        ({"detect.corruptions": ("nonsense",)}, "config.detect.corruptions entry 'nonsense'"),
        ({"detect.severity": 6}, "config.detect.severity=6 must be one of"),
        ({"detect.weights": (0.0,)}, "config.detect.weights=.* must all be positive"),
        ({"detect.eot_samples": 0}, "config.detect.eot_samples=0 must be at least 1"),
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
