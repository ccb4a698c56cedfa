"""What evaluations read: labels that mean the same class, images known by what they are, networks
that fit each other, and no more networks than are needed."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from purify.data.classes import check_order, check_same, meaning
from purify.data.png_jpeg import encode_image
from purify.evals import certify, gradients, purify_files, robust, sample
from purify.evals.compare import compare, read_run
from purify.evals.core.inputs import load_inputs, network_runs, seen
from purify.evals.core.store import folder_of
from purify.runtime.errors import FileError
from purify.runtime.paths import same_path
from purify.saving import export_weights, import_weights
from purify.saving.checkpoint import ROLES, MissingCheckpoint
from purify.saving.settings import claim, differing_settings, read_settings
from purify.training import train_classifier, train_score
from tests.written import rewrite_settings, scored

ANIMALS = ("cat", "dog", "frog")
SHADES = dict(zip(ANIMALS, (40, 120, 210), strict=True))


def draw(folder: Path, animals=ANIMALS, *, split: str, count: int) -> Path:
    """<folder>/<split>/<animal>/*.png, 8 x 8, each animal of its own shade of grey."""
    rng = np.random.default_rng(len(split))
    for animal in animals:
        (folder / split / animal).mkdir(parents=True)
        for number in range(count):
            image = SHADES[animal] + rng.integers(-25, 25, (8, 8, 1))
            path = folder / split / animal / f"{number}.png"
            path.write_bytes(encode_image(image.astype(np.uint8), ".png"))
    return folder


def of_animals(trained, path: Path, **changes):
    """The TINY config on the folder of animals; the undefended classifier alone, unattacked."""
    changed = dict(data__name="folder", data__path=str(path), classifier__train__batch_size=16)
    changed |= dict(eval__defenses=("identity",), eval__attacks=(), eval__num_images=8)
    return trained.config(**changed | changes)


@pytest.fixture(scope="module")
def animals(trained, tmp_path_factory) -> tuple[Path, Path]:
    """(the folder of images, a workdir with a classifier trained on them and no score model)."""
    folder, workdir = (tmp_path_factory.mktemp(name) for name in ("animals", "run"))
    draw(folder, split="train", count=12)
    draw(folder, split="test", count=6)
    train_classifier.run(of_animals(trained, folder), workdir)
    return folder, workdir


def accuracy(workdir: Path) -> dict:
    """The one evaluation's clean mean, and its results."""
    (path,) = workdir.glob("eval_robust/*/results.json")
    results = json.loads(path.read_text())
    (row,) = (row for row in results["rows"] if row["protocol"] == "mean")
    return results | {"accuracy": row["accuracy"]}


def own(animals, tmp_path: Path) -> Path:
    """A workdir of its own with the trained classifier in it."""
    (tmp_path / "run").mkdir()
    shutil.copytree(animals[1] / "classifier", tmp_path / "run" / "classifier")
    return tmp_path / "run"


# Labels mean classes by name


def test_names_travel_with_the_run_and_with_exported_weights(animals, tmp_path):
    assert read_settings(animals[1] / "classifier")["class_names"] == list(ANIMALS)
    file = tmp_path / "weights.safetensors"
    export_weights.run(None, None, str(animals[1] / "classifier"), str(file))
    import_weights.run(None, tmp_path / "run", str(file), None, None)
    assert read_settings(tmp_path / "run/classifier")["class_names"] == list(ANIMALS)


def test_a_data_set_with_some_of_the_classes_is_scored_by_their_names(
    trained, animals, tmp_path, capsys
):
    """By position dog would be cat, and frog dog: 0 % without a word."""
    workdir = own(animals, tmp_path)
    fewer = draw(tmp_path / "fewer", ("dog", "frog"), split="test", count=6)
    robust.run(of_animals(trained, fewer), workdir)
    results = accuracy(workdir)
    assert results["accuracy"] >= 0.9 and results["class_names"] == list(ANIMALS)
    out = capsys.readouterr().out
    assert "labels of folder are those of the classifier's classes of the same name" in out
    assert "dog is 1, frog is 2" in out


def test_a_data_set_of_other_classes_is_refused(trained, animals, tmp_path):
    other = draw(tmp_path / "other", ("dog", "frog"), split="test", count=2)
    (other / "test" / "dog").rename(other / "test" / "axolotl")
    with pytest.raises(ValueError, match="classes axolotl, frog, .* on cat, dog, frog.*'axolotl'"):
        robust.run(of_animals(trained, other, eval__num_images=4), own(animals, tmp_path))


CLASSIFIER = {"network": {"num_classes": 3}, "class_names": list(ANIMALS)}
UNNAMED = {"network": {"num_classes": 3}}


@pytest.mark.parametrize(
    ("names", "trained_on", "labels", "shown", "noted"),
    [
        (ANIMALS, CLASSIFIER, [0, 1, 2], ANIMALS, ""),
        (("cat", "dog"), CLASSIFIER, [0, 1], ANIMALS, ""),
        (("frog", "cat"), CLASSIFIER, [2, 0], ANIMALS, "frog is 2, cat is 0"),
        (("0", "1"), CLASSIFIER, [0, 1], ANIMALS, "test has no names of classes"),
        (ANIMALS, UNNAMED, [0, 1, 2], ANIMALS, "the classifier has no names of classes"),
        (("0", "1"), UNNAMED, [0, 1], ("0", "1"), ""),
        (("2", "7"), {"network": {"num_classes": 10}, "class_names": [str(i) for i in range(10)]},
         [2, 7], tuple(map(str, range(10))), "2 is 2, 7 is 7"),
        (ANIMALS, {}, [0, 1, 2], ANIMALS, ""),
    ],
)  # fmt: skip
def test_labels_are_the_classifiers(names, trained_on, labels, shown, noted):
    found = meaning("test", names, trained_on)
    assert found.labels.tolist() == labels and found.names == tuple(shown)
    assert (noted in found.note) if noted else (found.note == "")


@pytest.mark.parametrize(
    ("names", "trained_on", "said"),
    [
        (("cat", "cow"), CLASSIFIER, "'cow' is nobody knows"),
        (("cat", "dog"), UNNAMED, "trained on 3 without names: which of them 'cat'"),
        ((*ANIMALS, "cow"), UNNAMED, "has 4 classes, the classifier was trained on 3"),
    ],
)
def test_labels_that_mean_no_class_of_the_classifier_are_refused(names, trained_on, said):
    with pytest.raises(ValueError, match=said):
        meaning("test", names, trained_on)


def test_numbers_that_an_earlier_version_learnt_as_texts_keep_the_labels_it_gave_them():
    earlier = {"network": {"num_classes": 12}, "data": {"name": "folder"}}
    found = meaning("folder", tuple(map(str, range(12))), earlier)
    assert found.labels.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
    assert found.names[:5] == ("0", "1", "10", "11", "2")
    assert (
        meaning("npz", tuple(map(str, range(12))), earlier | {"data": {"name": "npz"}}).note == ""
    )


def test_a_classifier_from_elsewhere_must_answer_with_the_same_classes():
    swapped = CLASSIFIER | {"class_names": ["dog", "cat", "frog"]}
    check_same("other/classifier", CLASSIFIER, CLASSIFIER)
    check_same("other/classifier", UNNAMED, CLASSIFIER)  # nobody knows: as it always was
    with pytest.raises(ValueError, match="other/classifier was trained on the classes dog, cat"):
        check_same("other/classifier", swapped, CLASSIFIER)


def test_a_part_of_the_numbers_that_an_earlier_version_learnt_as_texts_is_refused():
    """Ten of twelve: the label of 2 was 4 there, and nobody knows of which twelve."""
    earlier = {"network": {"num_classes": 12}, "data": {"name": "folder"}}
    with pytest.raises(ValueError, match="sorted its 12 numbered classes as texts"):
        meaning("folder", tuple(map(str, range(10))), earlier)
    ten = {"network": {"num_classes": 10}, "data": {"name": "folder"}}
    assert meaning("folder", ("0", "1"), ten).labels.tolist() == [0, 1]  # the orders are the same
    assert meaning("npz", ("0", "1"), earlier).labels.tolist() == [0, 1]  # numbers of its classes


def test_training_that_an_earlier_version_began_does_not_go_on_with_other_labels():
    """It sorted folders named 0 to 11 as texts, and label 2 was class 10."""
    names = [str(number) for number in range(12)]
    began = {"network": {"num_classes": 12}, "data": {"name": "folder"}}
    with pytest.raises(ValueError, match="run/classifier was begun by an earlier version"):
        check_order("run/classifier", names, began)
    check_order("run/classifier", names, began | {"class_names": names})
    check_order("run/classifier", names, began | {"data": {"name": "npz"}})
    ten = began | {"network": {"num_classes": 10}}
    check_order("run/classifier", names[:10], ten)


# Images are known by what they are


def test_another_spelling_or_place_of_the_data_set_is_the_same_evaluation(
    trained, animals, tmp_path, monkeypatch, capsys
):
    """It goes on in the same folder, and says that its images were trained on."""
    folder, workdir = animals[0], own(animals, tmp_path)
    monkeypatch.chdir(folder.parent)
    moved = shutil.copytree(folder, tmp_path / "moved")
    spelled = (folder.name, f"{folder.name}/", f"./{folder.name}", str(folder), str(moved))
    for number, path in enumerate(spelled, start=1):
        config = of_animals(trained, path, data__test_split="train")
        robust.run(config, workdir, max_images=number)
        assert "note: the classifier was trained on " in capsys.readouterr().out, path
    (evaluated,) = (workdir / "eval_robust").iterdir()
    lines = (evaluated / "images.jsonl").read_text().splitlines()
    assert len(lines) == len(spelled)  # one new image each: nothing is computed twice


def test_where_moved_images_cannot_be_read_nobody_says_that_they_were_not_seen(
    animals, trained, tmp_path, capsys
):
    moved = shutil.copytree(animals[0], tmp_path / "moved")
    (moved / "train" / "cat" / "0.png").write_bytes(b"damaged")
    runs = {"classifier": animals[1] / "classifier"}
    inputs = SimpleNamespace(runs=runs, notes=(), unfinished=list)
    found = seen(of_animals(trained, moved).data, inputs, range(4))
    found.tell()
    assert found.by == ["classifier (unknown)"] and "is unknown" in capsys.readouterr().out


def test_a_moved_data_set_goes_on_training_but_other_images_do_not(animals, trained, tmp_path):
    """The hash of the training images tells the two apart, and their path does not."""
    folder, workdir = animals
    settings = read_settings(workdir / "classifier")
    moved = settings | {"data": settings["data"] | {"path": str(tmp_path / "moved")}}
    assert differing_settings(settings, moved) == []
    claim(workdir / "classifier", moved)
    with pytest.raises(ValueError, match="other settings: data.path.*images"):
        claim(workdir / "classifier", moved | {"images": "0" * 64})
    assert differing_settings(settings, settings | {"images": "0"})[0].startswith("images: ")
    # A run of an earlier version has no hash: a path of its own leads to other images.
    earlier = {k: v for k, v in settings.items() if k not in ("images", "class_names")}
    assert differing_settings(earlier, settings) == []
    assert differing_settings(earlier, moved)[0].startswith("data.path")
    respelled = settings | {"data": settings["data"] | {"path": f"{folder}/../{folder.name}/"}}
    assert differing_settings(earlier, respelled) == []


def test_spellings_of_a_path_are_told_from_other_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("d")
    for spelled in ("d", "d/", "./d", "x/../d", str(tmp_path / "d"), "~/d", "link"):
        assert same_path("d", spelled), spelled
    for other in ("", "e", "d/d", str(tmp_path), "~nobody_here/d", "d\0"):
        assert not same_path("d", other), other
    assert same_path("~nobody_here/d", "~nobody_here/d")
    assert same_path("", "")


def test_runs_are_compared_by_their_images_wherever_these_lay(tmp_path):
    """And of one that kept no hash by what the path leads to."""

    def made(name: str, path: str, **changes):
        data = {"name": "folder", "path": path, "test_split": "test"}
        claim(tmp_path / name, {"seed": 0, "data": data} | changes)
        record = scored("adp-clean", 0, [True])
        (tmp_path / name / "images.jsonl").write_text(json.dumps(record) + "\n")
        return read_run(tmp_path / name)

    here, moved = made("a", "d", images="1234"), made("b", "elsewhere/d", images="1234")
    assert compare(here, moved)["differing_settings"] == []
    with pytest.raises(ValueError, match="of different images"):
        compare(here, made("c", "d", images="5678"))
    earlier = made("e", os.path.abspath("d"))
    assert compare(made("f", "./d/"), earlier)["rows"][0]["num_images"] == 1
    with pytest.raises(ValueError, match="data.path"):
        compare(made("g", "e"), earlier)


def test_a_variants_workdir_has_one_spelling(trained):
    """So that it is loaded once, and names one evaluation."""
    runs = set()
    for spelled in ("runs/other", "runs/other/", "./runs/other", "runs/x/../other"):
        variant = {"purifier": "identity", "classifier": spelled}
        config = trained.config(eval__defenses=("other",), **{"variants.other": variant})
        runs.add(tuple(network_runs(config, trained.workdir, ("other",))))
    assert runs == {("classifier", "score", "runs/other/classifier")}


def test_an_evaluation_of_another_data_set_has_a_folder_of_its_own(tmp_path):
    data = {"name": "folder", "path": "d", "test_split": "test"}
    settings = {"seed": 0, "data": data, "images": "1234"}
    first = folder_of(tmp_path, "eval_robust", settings)
    claim(first, settings)
    (tmp_path / "eval_robust" / "damaged").mkdir()
    (tmp_path / "eval_robust" / "damaged" / "settings.json").write_text("{")
    moved = settings | {"data": data | {"path": "e"}}
    assert folder_of(tmp_path, "eval_robust", moved) == first
    for other in (moved | {"images": "5678"}, moved | {"seed": 1}):
        assert folder_of(tmp_path, "eval_robust", other) not in (first, first.parent / "damaged")


# Networks: those that are needed, which fit each other


def test_an_undefended_classifier_needs_no_score_model(trained, animals, tmp_path):
    """And where something needs one, it is asked for before any work."""
    workdir = own(animals, tmp_path)
    robust.run(of_animals(trained, animals[0]), workdir)
    results = accuracy(workdir)
    assert results["accuracy"] >= 0.9 and list(results["weights"]) == ["classifier"]
    with pytest.raises(MissingCheckpoint, match="no score checkpoint"):
        config = of_animals(trained, animals[0])
        config.eval.defenses = ("identity", "adp")
        robust.run(config, workdir)


def images_in(folder: Path, shape=(8, 8, 1), count: int = 2) -> Path:
    """A folder of PNG files of noise."""
    folder.mkdir()
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        (folder / f"{number}.png").write_bytes(encode_image(image, ".png"))
    return folder


def purify(config, workdir: Path, input: Path, output: Path) -> None:
    purify_files.run(config, workdir, str(input), str(output))


@pytest.mark.parametrize("name", ["identity", "noise_only"])
def test_images_are_purified_without_networks_by_what_needs_none(trained, tmp_path, name):
    images = images_in(tmp_path / "in", (6, 7, 3))
    purify(trained.config(defense__purifier=name), tmp_path / "empty", images, tmp_path / "out")
    same = [a.read_bytes() == (tmp_path / "out" / a.name).read_bytes() for a in images.iterdir()]
    assert all(same) if name == "identity" else not any(same)
    with pytest.raises(MissingCheckpoint, match="no score checkpoint"):
        config = trained.config(defense__purifier="one_step")
        purify(config, tmp_path / "empty", images, tmp_path / "other")


def test_a_network_that_has_only_begun_to_train_is_asked_of_nobody_else(trained, tmp_path):
    """Its settings are there, and no checkpoint yet: as after a kill, or while it trains."""
    images = images_in(tmp_path / "in")
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    claim(tmp_path / "classifier", read_settings(trained.workdir / "classifier"))
    purify(trained.config(defense__purifier="one_step"), tmp_path, images, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(MissingCheckpoint, match="no classifier checkpoint"):
        robust.run(trained.config(), tmp_path)


def test_a_variants_own_score_model_purifies(trained, tmp_path):
    """That of the workdir is another one, or is missing as here."""
    images = images_in(tmp_path / "in")
    variant = {"purifier": "one_step", "score": str(trained.workdir)}
    config = trained.config(defense__purifier="mine", **{"variants.mine": variant})
    purify(config, tmp_path / "empty", images, tmp_path / "out")
    purify(trained.config(defense__purifier="one_step"), trained.workdir, images, tmp_path / "own")
    for path in images.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == (
            tmp_path / "own" / path.name
        ).read_bytes()


def test_networks_that_do_not_fit_each_other_are_refused_in_every_mode(trained, tmp_path):
    """An 8 x 8 classifier beside a score model of 32 x 32 colour images."""
    shutil.copytree(trained.workdir / "classifier", tmp_path / "classifier")
    shutil.copytree(trained.workdir / "score", tmp_path / "score")
    settings = read_settings(tmp_path / "score") | {"image_shape": [32, 32, 3]}
    rewrite_settings(tmp_path / "score", settings)
    images = images_in(tmp_path / "in")
    said = r"the score is for images of shape \(32, 32, 3\), the classifier for \(8, 8, 1\)"
    config = trained.config()
    runs = [
        lambda: purify(config, tmp_path, images, tmp_path / "out"),
        lambda: robust.run(config, tmp_path),
        lambda: sample.run(config, tmp_path),
        lambda: certify.run(config, tmp_path),
        lambda: gradients.run(config, tmp_path),
        lambda: load_inputs(config, tmp_path, ["adp"], needed=ROLES),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=said):
            run()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("train", {"num_steps": "x"}, r"damaged \(Expected `int`, got `str` - at `\$.train.num_st"),
        ("network", {"arch": "ncsnv2", "features": 4}, "describes no classifier .ncsnv2 needs a h"),
        ("network", {"num_classes": 3}, "describes no classifier .arch None is unknown"),
        ("data", {}, r"damaged .Object missing required field `name` - at `\$.data`"),
        ("data", {"name": "folder", "train_split": "t"}, "damaged .*missing required field `path`"),
        ("data", {"name": "folder", "path": ""}, "damaged .*missing required field `train_split`"),
        ("class_names", ["cat"], "describes no classifier .there are 1 class_names, of another n"),
    ],
)
def test_settings_that_do_not_fit_a_training_are_told_with_their_file(
    trained, animals, tmp_path, field, value, said
):
    workdir = own(animals, tmp_path)
    rewrite_settings(workdir / "classifier", read_settings(workdir / "classifier") | {field: value})
    with pytest.raises(FileError, match=f"{workdir}/classifier/settings.json .*{said}"):
        load_inputs(of_animals(trained, animals[0]), workdir, ("identity",))


def test_a_split_that_nobody_knows_is_said_to_be_unknown(trained, animals, tmp_path):
    workdir = own(animals, tmp_path)
    settings = read_settings(workdir / "classifier")
    settings["data"]["train_split"] = "nosuch"
    rewrite_settings(workdir / "classifier", settings)
    config = of_animals(trained, animals[0])
    inputs = load_inputs(config, workdir, ("identity",))
    found = seen(config.data, inputs, range(2))
    assert found.by == ["classifier (unknown)"]
    assert "was trained on these images is unknown: " in found.notes[0]


def test_a_link_in_the_place_of_a_network_is_refused(trained, animals, tmp_path):
    (tmp_path / "classifier").symlink_to(animals[1] / "classifier")
    for config in (of_animals(trained, animals[0]), trained.config()):
        for run in (robust.run, train_classifier.run):
            with pytest.raises(FileError, match=f"'{tmp_path}/classifier' is a link; name the"):
                run(config, tmp_path)
    (tmp_path / "score").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=f"'{tmp_path}/score' is a link"):
        train_score.run(trained.config(), tmp_path)
    assert not (tmp_path / "elsewhere").exists()


# What every mode says, and refuses


def test_gradient_checks_and_samples_say_what_the_networks_have_seen(
    trained, workdir, capsys, monkeypatch
):
    small = dict(data__test_split="train[:20]", eval__batch_size=4)
    monkeypatch.setattr(gradients, "check", lambda *_, store, **__: store.sign() or [])
    checked = dict(defense__purifier="identity", check__num_images=2)
    gradients.run(trained.config(**small, **checked), workdir)
    assert "note: the classifier was trained on 2 of these images" in capsys.readouterr().out
    shown = dict(sample__num_images=0, sample__purifiers=("one_step",), sample__positions=(3, 5))
    sample.run(trained.config(**small, **shown), workdir)
    assert "note: the score was trained on 2 of these images" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [0, 1])
def test_weights_of_unfinished_training_are_said_to_be_that(trained, animals, tmp_path, steps):
    """Before the work, on the table and in the results, which say the step."""
    shutil.copytree(animals[1] / "classifier", tmp_path / "classifier")
    settings = read_settings(tmp_path / "classifier")
    step = settings["train"]["num_steps"]
    settings["train"]["num_steps"] += steps
    rewrite_settings(tmp_path / "classifier", settings)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        robust.run(of_animals(trained, animals[0]), tmp_path)
    results = accuracy(tmp_path)
    assert results["trained"]["classifier"]["step"] == step
    line = f"classifier: unfinished training, step {step} of {step + steps}"
    told = [text.splitlines().count(line) for text in (out.getvalue(), results["title"])]
    assert told == [steps, steps] and (f"note: {line}" in out.getvalue()) == bool(steps)


@pytest.mark.parametrize(
    ("mode", "changes", "said"),
    [
        (certify, dict(certify__num_images=401), "401 of noise_only must be from 1 to 400"),
        (certify, dict(certify__budgets={"one_step": {"num_images": 401}}), "401 of one_step must"),
        (sample, dict(sample__num_images=401), "sample.num_images=401 must be at most 400"),
    ],
)
def test_more_images_than_there_are_is_an_error_and_not_fewer(
    trained, workdir, mode, changes, said
):
    with pytest.raises(ValueError, match=said):
        mode.run(trained.config(**changes), workdir)
