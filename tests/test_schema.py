"""Types of records, settings and results: what was ever written passes, all else is told."""

import gzip
import json
import math
import re

import pytest

from purify.saving import schema
from tests.command import ROOT
from tests.written import RECORDS, SIGNATURE

DOCS = ROOT / "docs"
SCORED = RECORDS["scored"]


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_each_kind_needs_all_its_fields(kind):
    value = RECORDS[kind]
    assert schema.record(value) == value
    for field in set(value) - {"interim_success", "score_norm", "energy"}:
        with pytest.raises(ValueError, match="missing required field"):
            schema.record({name: each for name, each in value.items() if name != field})


def test_fields_that_no_type_names_are_kept_but_statistics_are_lists():
    assert schema.record(SCORED | {"later": {"a": 1}})["later"] == {"a": 1}
    with pytest.raises(ValueError, match="Expected `array`, got `float`"):
        schema.record(RECORDS["statistics"] | {"energy": 1.0})
    with pytest.raises(ValueError, match="length >= 1"):
        schema.record(RECORDS["statistics"] | {"energy": []})
    with pytest.raises(ValueError, match="missing required field: a statistic"):
        schema.record({"row": "statistics:clean", "index": 0})
    with pytest.raises(ValueError, match="missing required field `distance` of an attack"):
        schema.record(SCORED | {"loss": 1.0, "start_loss": 0.5})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": -1}, r"Expected `int` >= 0 - at `\$.index`"),
        ({"index": "3"}, r"Expected `int`, got `str` - at `\$.index`"),
        ({"index": True}, r"Expected `int`, got `bool`"),
        ({"label": 2 * 10**9}, r"at `\$.label`"),
        ({"correct": []}, r"length >= 1 - at `\$.correct`"),
        ({"correct": [1, 0]}, r"Expected `bool`, got `int` - at `\$.correct\[0\]`"),
        ({"correct": [True]}, "`predictions` are not of as many runs in each draw of `correct`"),
        ({"predictions": [[6, 6], [6]]}, "are not of as many runs"),
        ({"predictions": [[6], [[6]]]}, r"Expected `int`, got `array`"),
        ({"predictions": [6, 6]}, r"Expected `array`, got `int`"),
        ({"seconds": math.inf}, r"at `\$.seconds`"),
        ({"seconds": math.nan}, r"at `\$.seconds`"),
        ({"distance": -0.1}, r"at `\$.distance`"),
        ({"row": "/../../x"}, r"Expected a plain name, without '/' - at `\$.row`"),
        ({"row": ".."}, r"at `\$.row`"),
        ({"row": None}, r"got `null`"),
        ({"\ud800": 1}, "no Unicode text"),
    ],
)
def test_a_field_of_another_type_or_range_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        schema.record(SCORED | changes)


@pytest.mark.parametrize("value", [None, 3, [], "x", [SCORED], {}])
def test_what_is_no_record_is_told(value):
    with pytest.raises(ValueError, match="Expected `object`|missing required field"):
        schema.record(value)


def test_every_record_of_the_published_results_is_one():
    for file in sorted(DOCS.glob("**/images.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            for number, line in enumerate(lines):
                if number % 50 == 0:  # each row has that many images, or twice as many
                    schema.record(json.loads(line))


def test_every_settings_and_signature_of_the_published_results_is_one():
    files = [*DOCS.glob("**/settings.json")]
    for file in files:
        schema.settings(json.loads(file.read_text()))
    signatures = [file.read_text() for file in DOCS.glob("**/provenance.jsonl")]
    lines = "".join(signatures).splitlines()
    for line in lines:
        schema.signature(json.loads(line))
    assert len(files) >= 6 and len(lines) >= 20


MODES = {
    "eval_robust": ("digits/results.json", "cifar10/strong/results.json"),
    "certify": ("digits/certify.json", "cifar10/certify.json"),
    "eval_corruptions": ("digits/corruptions/results.json", "cifar10/corruptions/results.json"),
    "detect": ("digits/detect.json", "cifar10/detect.json"),
    "ablate": ("digits/ablation.json",),
}
ROBUST = ("rows", 0, "low"), ("rows", 0, "high"), ("comparisons", 0, "low")
INTERVALS = [("eval_robust", place) for place in ROBUST]
INTERVALS += [("certify", ("rows", 0, name)) for name in ("low", "high")]
INTERVALS += [("certify", ("rows", 0, "certified", 1, "low"))]
INTERVALS += [("certify", ("differences", 0, name)) for name in ("low", "high")]
INTERVALS += [("eval_corruptions", ("means", 0, name)) for name in ("low", "high")]
INTERVALS += [("detect", ("rows", 14, "auroc", name)) for name in ("low", "high")]
INTERVALS += [("ablate", ("rows", 0, name)) for name in ("low", "difference_low")]


@pytest.mark.parametrize("mode", MODES)
def test_the_published_results_are_whole(mode):
    for name in MODES[mode]:
        schema.results(json.loads((DOCS / name).read_text()), mode)


@pytest.mark.parametrize(("mode", "place"), INTERVALS, ids=str)
def test_an_interval_is_around_its_value(mode, place):
    """A figure can draw no other, and a table would show it."""
    results = json.loads((DOCS / MODES[mode][0]).read_text())
    *way, name = place
    inner = results
    for step in way:
        inner = inner[step]
    kept, other = inner[name], inner[name.replace("low", "high")]
    inner[name] = kept + (1e-12 if "low" in name else -1e-12)  # rounding
    schema.results(results, mode)
    inner[name] = min(1.0, other + 0.01) if "low" in name else inner["low"] - 0.01
    with pytest.raises(ValueError, match="has an interval that is not around its value|Expected"):
        schema.results(results, mode)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Expected `object`, got `array`"),
        ({"network": {}, "train": {"num_steps": "x"}}, r"at `\$.train.num_steps`"),
        ({"network": {}, "data": {"name": "a", "path": ""}}, "`train_split`"),
        ({"network": {"num_classes": "x"}}, r"at `\$.network.num_classes`"),
        ({"seed": "0"}, r"at `\$.seed`"),
        ({"image_shape": [8, 8]}, r"length >= 3 - at `\$.image_shape`"),
        ({"image_shape": [8, 8, 0]}, r"at `\$.image_shape\[2\]`"),
        ({"num_classes": 2 * 10**9}, r"at `\$.num_classes`"),
        ({"network": "unet"}, r"at `\$.network`"),
        ({"class_names": [1]}, r"at `\$.class_names\[0\]`"),
        ({"attacks": {"../x": {}}}, r"at `key` in `\$.attacks`"),
    ],
)
def test_settings_of_other_types_are_told(value, said):
    with pytest.raises(ValueError, match=said):
        schema.settings(value)


def test_hashes_are_of_files_in_the_folder():
    right = {"files": {"d/data": {"bytes": 5, "sha256": "0" * 64}}, "settings": "1" * 64}
    assert schema.hashes(right) == right
    earlier = {"d/data": "0" * 64}
    assert schema.hashes(earlier) == {"files": {"d/data": {"sha256": "0" * 64}}}
    for wrong in ({"files": {}}, {"files": {"a": {}}}, right | {"settings": "x"}):
        with pytest.raises(ValueError, match="Expected|missing"):
            schema.hashes(wrong)
    for wrong in ({}, [], {"a": "0" * 63}, {"a": "G" * 64}, {"a": 1}, {"a": "0" * 64 + "\n"}):
        with pytest.raises(ValueError, match=re.compile("Expected")):
            schema.hashes(wrong)
    for name in ("/etc/passwd", "../x", "a//b", "a/./b", ""):
        for value in ({name: "0" * 64}, {"files": {name: {"sha256": "0" * 64}}}):
            with pytest.raises(ValueError, match="below the folder"):
                schema.hashes(value)


def test_lines_of_metrics_and_of_provenance_are_typed():
    assert schema.metrics({"step": 1, "loss": math.nan})["step"] == 1
    for wrong in (
        {"loss": 1.0},
        {"step": -1},
        {"step": 1, "loss": "1"},
        [],
        {"step": 1, "a": None},
    ):
        with pytest.raises(ValueError, match="Expected|missing"):
            schema.metrics(wrong)
    schema.signature(SIGNATURE)
    for wrong in (SIGNATURE | {"versions": []}, SIGNATURE | {"devices": 0}, {}):
        with pytest.raises(ValueError, match="Expected|missing"):
            schema.signature(wrong)
