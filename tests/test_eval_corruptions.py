"""--mode=eval_corruptions: what is scored, that it goes on, what is reported, and other files."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from purify.data import datasets
from purify.data.corruptions import CORRUPTIONS, corrupt
from purify.data.corruptions.cases import Case, corrupted
from purify.data.image_io import encode_image, to_float, to_uint8
from purify.defense import classify
from purify.evals import corruptions
from purify.evals.core.terminal import print_table
from purify.evals.corruptions import plan_rows
from purify.evals.corruptions.files import CorruptionFiles
from purify.evals.corruptions.show import results_table
from purify.random import image_keys, stream_key
from purify.saving.checkpoint import load_defense
from purify.saving.jsonl import read_lines
from tests.test_robust import untimed

NAMES, SEVERITIES = ("gaussian_noise", "contrast", "gaussian_blur"), (2, 5)
DEFENSES = ("identity", "adp_s0", "adp")
BUDGET = {
    "corruptions.names": NAMES,
    "corruptions.severities": SEVERITIES,
    "corruptions.defenses": DEFENSES,
    "corruptions.num_images": 10,
    "corruptions.num_draws": 3,
}
CASES = [Case(name, severity) for name in NAMES for severity in SEVERITIES]


def config(trained, **changes):
    """The TINY config with this file's budget; changes: as of Trained.config."""
    changed = trained.config()
    changed.update_from_flattened_dict(BUDGET)
    changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return changed


def only_folder(workdir: Path) -> Path:
    (folder,) = (workdir / "eval_corruptions").iterdir()
    return folder


class Evaluated(NamedTuple):
    folder: Path
    results: dict
    records: list[dict]
    first: str  # what the first look said
    shown: str


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """By the command, after a first look at some of the images."""
    workdir = trained.copied_into(tmp_path_factory.mktemp("corruptions"))
    flags = [f"--config.{field}={value}" for field, value in BUDGET.items()]
    shown = []
    for limit in (("--max_images=4",), ()):
        result = trained.main("--mode=eval_corruptions", *flags, f"--workdir={workdir}", *limit)
        assert result.returncode == 0, result.stderr
        shown.append(result.stdout)
    folder = only_folder(workdir)
    results = json.loads((folder / "results.json").read_text())
    return Evaluated(folder, results, read_lines(folder / "images.jsonl"), *shown)


@pytest.fixture(scope="module")
def digits(trained):
    """(images float32, labels) of the images that are scored."""
    dataset = datasets.load("digits8x8", "test[:10]", data_dir=trained.tfds)
    return to_float(dataset.images), dataset.labels


# What is scored


def test_every_defence_is_scored_on_every_image_of_every_case_and_clean(evaluated):
    rows = {f"{d}-{c}" for d in DEFENSES for c in ("clean", *(case.name for case in CASES))}
    lines = [(r["row"], r["index"]) for r in evaluated.records]
    assert sorted(lines) == sorted((row, i) for row in rows for i in range(10))
    for record in evaluated.records:
        draws = 3 if record["row"].startswith("adp-") else 1  # the others draw nothing
        assert len(record["correct"]) == len(record["predictions"]) == draws


def test_a_first_look_goes_on_to_the_records_of_an_evaluation_in_one_go(
    evaluated, trained, tmp_path
):
    assert "stopped after 4 of 10 images" in evaluated.first
    assert "stopped" not in evaluated.shown
    corruptions.run(config(trained), trained.copied_into(tmp_path))
    folder = only_folder(tmp_path)
    assert folder.name == evaluated.folder.name
    again = untimed(read_lines(folder / "images.jsonl"))
    assert again == untimed(evaluated.records)


def test_a_finished_evaluation_computes_nothing_again(evaluated, trained, capsys):
    before = (evaluated.folder / "images.jsonl").read_bytes()
    corruptions.run(config(trained), evaluated.folder.parent.parent)
    assert (evaluated.folder / "images.jsonl").read_bytes() == before
    assert len(read_lines(evaluated.folder / "provenance.jsonl")) == 2
    out = capsys.readouterr().out
    assert "all of it was done before, nothing is computed; in" in out and "at most" not in out
    assert "a part of it was done before; left: at most " in evaluated.shown


def test_the_images_are_corrupted_by_keys_of_seed_index_corruption_and_severity(
    evaluated, digits, trained
):
    images, _ = digits
    case = Case("gaussian_noise", 5)
    place = list(CORRUPTIONS).index(case.corruption)
    by_hand = []
    for index, image in enumerate(images):
        key = stream_key(0, "corruption")
        for number in (index, place, case.severity):
            key = jax.random.fold_in(key, number)
        by_hand.append(corrupt(key, image, name=case.corruption, severity=case.severity))
    by_hand = np.stack(by_hand)
    assert np.abs(by_hand - images).mean() > 0.02
    # Alone, and in another order, an image is the same.
    np.testing.assert_array_equal(corrupted(0, images, np.arange(10), case), by_hand)
    order = np.array([7, 2])
    np.testing.assert_array_equal(corrupted(0, images[order], order, case), by_hand[order])
    assert (corrupted(1, images, np.arange(10), case) != by_hand).any()
    other = Case("speckle_noise", 5)
    assert (corrupted(0, images, np.arange(10), other) != by_hand).any()

    stored = np.load(evaluated.folder / "arrays" / f"identity-{case.name}.logits.npy")[:, 0, 0]
    defense = load_defense(trained.workdir, "identity", num_runs=1)
    logits = classify(defense, image_keys(0, np.arange(10)), by_hand)
    # Another batch size rounds differently; of clean images the logits are others.
    np.testing.assert_allclose(logits, stored, atol=1e-4)
    clean = np.load(evaluated.folder / "arrays" / "identity-clean.logits.npy")[:, 0, 0]
    assert np.abs(stored - clean).max() > 0.1


# What is reported


def test_results_are_those_of_the_records(evaluated):
    results = evaluated.results
    assert results["config"]["corruptions"]["num_draws"] == 3
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", results["commit"])
    assert set(results["weights"]) == {"classifier", "score"} and len(results["computed_by"]) == 2

    accuracy = {}
    for row in results["rows"]:
        name = row["defense"]["name"]
        case = f"{row['corruption']}_{row['severity']}" if row["severity"] else "clean"
        records = [r for r in evaluated.records if r["row"] == f"{name}-{case}"]
        accuracy[name, case] = np.mean([np.mean(r["correct"]) for r in records])
        assert row["accuracy"] == pytest.approx(accuracy[name, case])
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["num_images"] == 10 and row["protocol"] == "mean"
        assert row["num_draws"] == (3 if name == "adp" else 1)
        assert row["defense"]["S"] == (2 if name == "adp" else 1)
        assert row["defense"]["sigma"] == (0.25 if name == "adp" else 0.0)
    assert len(accuracy) == 3 * 7
    # Some corruption does harm, or nothing here could tell good from bad.
    assert accuracy["identity", "contrast_5"] < accuracy["identity", "clean"]

    means = {(e["defense"]["name"], e["corruption"]): e for e in results["means"]}
    groups = {name: [f"{name}_{s}" for s in SEVERITIES] for name in NAMES}
    groups["mean"] = [*groups["gaussian_noise"], *groups["contrast"]]
    groups["extra_mean"] = groups["gaussian_blur"]
    groups["clean"] = ["clean"]
    assert set(means) == {(d, group) for d in DEFENSES for group in groups}
    for (name, group), entry in means.items():
        expected = np.mean([accuracy[name, case] for case in groups[group]])
        undefended = np.mean([accuracy["identity", case] for case in groups[group]])
        assert entry["accuracy"] == pytest.approx(expected)
        assert entry["low"] <= entry["accuracy"] <= entry["high"]
        if name == "identity":
            assert "difference" not in entry
        else:
            difference = entry["difference"]
            assert difference["value"] == pytest.approx(expected - undefended)
            assert entry["better"] == (difference["low"] > 0)
            assert entry["worse"] == (difference["high"] < 0)


def test_an_image_is_one_unit_all_its_corruptions_together():
    """Of images that are always right or always wrong, 60 cells tell no more than one."""
    right = np.arange(20) % 2 == 0
    records = [{"correct": [bool(r)]} for r in right]
    rows = plan_rows(CASES, {"identity": _Drawless()}, 20, 1, available=20)
    done = {(row.defense_name, row.attack_name): (row, records) for row in rows}
    entries = corruptions.corruption_means(done, CASES, seed=0)
    widths = {e["corruption"]: e["high"] - e["low"] for e in entries}
    # A share of 1/2 on 20 images: about 2 x 1.96 x sqrt(0.25 / 20) = 0.44.
    assert all(width == pytest.approx(0.44, abs=0.06) for width in widths.values()), widths


def test_means_over_corruptions_by_hand():
    """Of two corruptions of the fifteen, one at two severities, and of one of the four others."""
    cases = [Case("contrast", 2), Case("contrast", 5), Case("gaussian_noise", 2)]
    cases.append(Case("gaussian_blur", 5))
    right = {"clean": 60, "contrast_2": 50, "contrast_5": 30, "gaussian_noise_2": 40}
    right |= {"gaussian_blur_5": 20}
    rows = plan_rows(cases, {"identity": _Drawless(), "other": _Drawless()}, 60, 1, available=60)
    done = {}
    for row in rows:
        number = right[row.attack_name] - (row.defense_name == "other") * 6
        records = [{"correct": [i < number]} for i in range(60)]
        done[row.defense_name, row.attack_name] = row, records
    entries = corruptions.corruption_means(done, cases, seed=0)
    accuracies = {(e["defense"]["name"], e["corruption"]): e["accuracy"] for e in entries}
    by_hand = {"clean": 60, "contrast": 40, "gaussian_noise": 40, "gaussian_blur": 20, "mean": 40}
    for name, expected in (by_hand | {"extra_mean": 20}).items():
        assert accuracies["identity", name] == pytest.approx(expected / 60)
        assert accuracies["other", name] == pytest.approx((expected - 6) / 60)
    others = [entry for entry in entries if entry["defense"]["name"] == "other"]
    for entry in others:
        assert entry["difference"]["value"] == pytest.approx(-6 / 60)
        assert (entry["better"], entry["worse"]) == (False, entry["difference"]["high"] < 0)
    assert all(entry["worse"] for entry in others)
    (mean,) = [e for e in entries if e["corruption"] == "mean" and e["defense"]["name"] != "other"]
    low, high = 100 - 100 * mean["high"], 100 - 100 * mean["low"]
    cell = corruptions.show._cell(mean)
    assert str(cell) == f"{100 / 3:.1f} [{low:.0f}, {high:.0f}]"


def test_worse_is_told_where_the_interval_excludes_0_only():
    cases = [Case("contrast", 2)]
    rows = plan_rows(cases, {"identity": _Drawless(), "other": _Drawless()}, 20, 1, available=20)
    done = {
        (row.defense_name, row.attack_name): (
            row,
            [{"correct": [i < 10 - (row.defense_name == "other")]} for i in range(20)],
        )
        for row in rows
    }
    entries = corruptions.corruption_means(done, cases, seed=0)
    others = [entry for entry in entries if entry["defense"]["name"] == "other"]
    assert all(e["difference"]["value"] == pytest.approx(-1 / 20) for e in others)
    assert not any(entry["worse"] or entry["better"] for entry in others)


class _Drawless:
    """As much of a defence as the report asks for."""

    num_runs, average = 1, "logits"

    class purifier:  # noqa: N801
        stochastic, nfe = False, 0


def test_the_table_has_a_line_for_each_corruption_and_the_mean_errors(evaluated):
    lines = evaluated.shown.splitlines()
    for name in ("clean", *NAMES, "mean error of 2", "mean error of 1 extra"):
        (line,) = [line for line in lines if line.strip().startswith(f"{name} ")]
        assert len(re.findall(r"\d \[ *\d+, +\d+\]", line)) == 3, line
    accuracy, error = (
        next(e["accuracy"] for e in evaluated.results["means"]
             if (e["defense"]["name"], e["corruption"]) == ("identity", name))
        for name in ("contrast", "mean")
    )  # fmt: skip
    assert any(f"contrast  {100 * accuracy:.1f}" in re.sub(" +", "  ", x) for x in lines)
    assert any(f"of  2  {100 * (1 - error):.1f}" in re.sub(" +", "  ", x) for x in lines)
    assert "…" not in evaluated.shown and "frost" not in evaluated.shown
    assert (evaluated.folder / "figures" / "corruptions.png").stat().st_size > 10_000


def test_a_table_that_is_too_wide_takes_more_lines_and_loses_nothing(
    evaluated, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = {}
    for width in (60, 1000):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(results_table(evaluated.results))
        shown[width] = capsys.readouterr().out
    assert "…" not in shown[60] and shown[60].count("\n") > shown[1000].count("\n")
    assert shown[60].count("]") == shown[1000].count("]") > 0


# What is asked for


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(corruptions__names=("rain",)), "names entry 'rain' is unknown; known: gaussian_no"),
        (dict(corruptions__severities=(0, 1)), r"severities=\(0, 1\) must be some of \(1, 2"),
        (dict(corruptions__severities=()), "severities"),
        (dict(corruptions__num_images=0), "num_images=0 must be 1 to"),
        (dict(corruptions__num_draws=0), "num_draws=0 must be at least 1"),
        (dict(corruptions__defenses=()), "defenses is empty"),
        (dict(corruptions__defenses=("wall",)), "'wall' is unknown; known: identity"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(
    changes, said, trained, tmp_path
):
    with pytest.raises(ValueError, match=said):
        corruptions.run(config(trained, **changes), trained.copied_into(tmp_path))
    assert not (tmp_path / "eval_corruptions").exists()


# Files


def test_positions_are_those_of_the_published_set(trained, tmp_path):
    where = dict(data_dir=trained.tfds, path="")
    numbers = datasets.published_positions("digits8x8", "test[3:9]", **where)
    dataset = datasets.load("digits8x8", "test[3:9]", data_dir=trained.tfds)
    published = load_digits()
    assert published.target[numbers].tolist() == dataset.labels.tolist()
    for image, number in zip(dataset.images, numbers, strict=True):
        order = np.argsort(image.ravel(), kind="stable")
        assert (np.diff(published.images[number].ravel()[order]) >= 0).all()
    np.savez(tmp_path / "a.npz", test_images=np.zeros((5, 8, 8, 1)), test_labels=np.zeros(5, int))
    where = dict(data_dir=None, path=tmp_path / "a.npz")
    assert datasets.published_positions("npz", "test[2:4]", **where) == [2, 3]


@pytest.fixture
def folder(trained, digits, tmp_path):
    """Files in CIFAR-10-C's form, of the same digits corrupted by the functions, and of noise."""
    images, labels = digits
    numbers = datasets.published_positions("digits8x8", "test[:10]", data_dir=trained.tfds, path="")
    size, rng, root = max(numbers) + 1, np.random.default_rng(0), tmp_path / "files"
    root.mkdir()
    all_labels = rng.integers(0, 10, size)
    all_labels[numbers] = labels
    np.save(root / "labels.npy", np.tile(all_labels.astype(np.uint8), 5))
    for name in NAMES:
        array = rng.integers(0, 256, (5, size, 8, 8, 1), np.uint8)
        for severity in range(1, 6):
            made = corrupted(0, images, np.arange(10), Case(name, severity))
            array[severity - 1, numbers] = to_uint8(made)
        np.save(root / f"{name}.npy", array.reshape(-1, 8, 8, 1))
    return root


def test_files_of_the_same_images_give_the_same_records(evaluated, folder, trained, tmp_path):
    workdir = trained.copied_into(tmp_path)
    corruptions.run(config(trained), workdir, input=str(folder))
    found = only_folder(workdir)
    assert found.name != evaluated.folder.name  # other files are another evaluation
    assert untimed(read_lines(found / "images.jsonl")) == untimed(evaluated.records)
    results = json.loads((found / "results.json").read_text())
    assert results["source"] == str(folder)


def spoilt(root: Path, what: str) -> None:
    """The folder with one thing wrong."""
    path, labels = root / "contrast.npy", np.load(root / "labels.npy")
    array = np.load(path)
    if what == "missing":
        path.unlink()
    elif what == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "no labels":
        (root / "labels.npy").unlink()
    elif what == "labels":
        np.save(root / "labels.npy", np.append(labels[:-1], (labels[-1] + 1) % 10))
    elif what == "other labels":
        np.save(root / "labels.npy", (labels + 1) % 10)
    elif what == "label count":
        np.save(root / "labels.npy", labels[:-1])
    elif what == "float labels":
        np.save(root / "labels.npy", labels.astype(float))
    elif what == "few":
        few = len(labels) // 5 - 1
        np.save(root / "labels.npy", labels.reshape(5, -1)[:, :few].ravel())
        for name in NAMES:
            each = np.load(root / f"{name}.npy").reshape(5, -1, 8, 8, 1)
            np.save(root / f"{name}.npy", each[:, :few].reshape(-1, 8, 8, 1))
    else:
        changed = {
            "shape": np.zeros((len(array), 8, 8, 3), np.uint8),
            "count": array[:-1],
            "dtype": array / 255,
            "pickle": np.array([{"a": 1}] * len(array), object),
        }
        np.save(path, changed[what], allow_pickle=True)


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("missing", FileNotFoundError, "lacks contrast.npy"),
        ("no labels", FileNotFoundError, "lacks labels.npy"),
        ("cut off", ValueError, "contrast.npy' is damaged"),
        ("pickle", ValueError, "contrast.npy' is damaged, or no array of numbers"),
        ("shape", ValueError, r"contrast.npy' is uint8 .*, 8, 8, 3\], must be uint8 .*, 8, 8, 1\]"),
        ("count", ValueError, "as many as labels"),
        ("dtype", ValueError, "contrast.npy' is float64"),
        ("labels", ValueError, "same labels for each severity"),
        ("label count", ValueError, r"integers \[5 m\]"),
        ("float labels", ValueError, "labels.npy' is float64"),
        ("other labels", ValueError, "differ from the data set on 10 of 10 images"),
        ("few", ValueError, "images of each severity, but number"),
    ],
)
def test_files_that_do_not_fit_are_refused(what, error, said, folder, digits, trained):
    spoilt(folder, what)
    numbers = datasets.published_positions("digits8x8", "test[:10]", data_dir=trained.tfds, path="")
    with pytest.raises(error, match=said):
        CorruptionFiles(folder, NAMES, (8, 8, 1)).check(numbers, digits[1])


def test_files_give_the_severity_that_is_asked_for(folder, digits, trained):
    files = CorruptionFiles(folder, NAMES, (8, 8, 1))
    numbers = datasets.published_positions("digits8x8", "test[:10]", data_dir=trained.tfds, path="")
    for severity in (1, 5):
        found = files.images(numbers[4:6], corruption="contrast", severity=severity)
        made = corrupted(0, digits[0][4:6], np.arange(4, 6), Case("contrast", severity))
        np.testing.assert_array_equal(found, made)


# TFDS's copies


COPIED = ("glass_blur", "elastic_transform", "fog")


def prepare(data_dir: Path, case: str, images: np.ndarray, labels: np.ndarray) -> Path:
    """Writes arrays as TFDS prepares a case of CIFAR-10-C, without TensorFlow; returns where."""

    class Cifar10Corrupted(tfds.builder_cls(datasets.CORRUPTED), skip_registration=True):
        url_infos = None

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": encode_image(image, ".png"), "label": int(label)}

    builder = Cifar10Corrupted(config=case, data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


class Copied(NamedTuple):
    arrays: Path  # in CIFAR-10-C's form
    tfds: Path
    labels: np.ndarray
    folders: dict[str, Path]  # of each case in `tfds`


@pytest.fixture
def copied(tmp_path):
    """The same 30 images of noise in both forms; TFDS has two severities of them."""
    rng, root, folders = np.random.default_rng(0), tmp_path / "arrays", {}
    labels = rng.integers(0, 10, 30)
    root.mkdir()
    np.save(root / "labels.npy", np.tile(labels.astype(np.uint8), 5))
    for name, tfds_name in zip(COPIED, ("frosted_glass_blur", "elastic", "fog"), strict=True):
        images = rng.integers(0, 256, (5, 30, 32, 32, 3), np.uint8)
        np.save(root / f"{name}.npy", images.reshape(-1, 32, 32, 3))
        for severity in SEVERITIES:
            case = f"{tfds_name}_{severity}"
            folders[case] = prepare(tmp_path / "tfds", case, images[severity - 1], labels)
    return Copied(root, tmp_path / "tfds", labels, folders)


def test_copies_of_tfds_give_what_the_files_do(copied):
    arrays, prepared = (
        CorruptionFiles(root, COPIED, (32, 32, 3)) for root in (copied.arrays, copied.tfds)
    )
    numbers = [21, 4, 29, 0]
    prepared.check(numbers, copied.labels[numbers])
    for name in COPIED:
        for severity in SEVERITIES:
            options = dict(corruption=name, severity=severity)
            np.testing.assert_array_equal(
                prepared.images(numbers, **options), arrays.images(numbers, **options)
            )
    # So it is the same evaluation, which goes on with either.
    assert prepared.hashes(numbers, SEVERITIES) == arrays.hashes(numbers, SEVERITIES)


def test_tfds_shuffles_as_it_did_when_it_prepared_cifar10():
    """The first training images of TFDS's own CIFAR-10, whose records do have ids."""
    order = np.argsort(datasets.places_by_key("train", 50_000))
    assert order[:4].tolist() == [16399, 1680, 47917, 17307]


def disturbed(copied: Copied, what: str) -> None:
    """The prepared copy with one thing wrong; `fog_2` is not the first to be read."""
    folder, rng = copied.folders["fog_2"], np.random.default_rng(1)
    info = folder / "dataset_info.json"
    if what == "no corruption":
        for severity in SEVERITIES:
            shutil.rmtree(copied.folders[f"fog_{severity}"].parent)
    elif what == "no severity":
        shutil.rmtree(folder.parent)
    elif what == "tfrecord":
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    elif what == "no records":
        next(folder.glob("*.array_record*")).unlink()
    else:
        images = rng.integers(0, 256, (30, 32, 32, 3), np.uint8)
        shutil.rmtree(folder)
        if what == "few":
            prepare(copied.tfds, "fog_2", images[:20], copied.labels[:20])
        else:
            prepare(copied.tfds, "fog_2", images, (copied.labels + 1) % 10)


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("no corruption", FileNotFoundError, r"lacks cifar10_corrupted/fog_\*; config.corruptions"),
        ("no severity", FileNotFoundError, "cifar10_corrupted/fog_2 is not in .*: set --input to"),
        (
            "tfrecord",
            ValueError,
            r"tfrecord copy.* set --input .*builder\('cifar10_corrupted/fog_2'",
        ),
        ("no records", ValueError, "is damaged: move that folder away"),
        ("few", ValueError, "fog_2 in .* is not complete: index 21"),
        ("labels", ValueError, "fog_2 has other labels than frosted_glass_blur_2, so"),
    ],
)
def test_copies_that_do_not_fit_are_refused_before_any_computing(what, error, said, copied):
    disturbed(copied, what)
    with pytest.raises(error, match=said):
        CorruptionFiles(copied.tfds, COPIED, (32, 32, 3)).hashes([21, 4], SEVERITIES)


def test_copies_of_other_images_than_the_data_sets_are_refused(copied):
    files = CorruptionFiles(copied.tfds, COPIED, (32, 32, 3))
    with pytest.raises(ValueError, match="differ from the data set on 2 of 2 images"):
        files.check([3, 4], (copied.labels[[3, 4]] + 1) % 10)
    with pytest.raises(ValueError, match="has 30 images of each severity, but number 30"):
        files.check([30], copied.labels[:1])
    with pytest.raises(ValueError, match="is 32x32x3 RGB, expected 8x8x1 greyscale"):
        CorruptionFiles(copied.tfds, COPIED, (8, 8, 1))


def test_a_wrong_input_is_one_line(trained, tmp_path):
    result = trained.main("--mode=eval_corruptions", f"--input={tmp_path}/nowhere")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: input '") and "is no folder" in line
