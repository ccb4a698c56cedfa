"""--mode=import_weights as a user runs it, and the weights it brings in on real images."""

import errno
import itertools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from purify import models
from purify.data import datasets
from purify.data.image_io import to_float
from purify.evals.core.inputs import load_inputs
from purify.models.importing import ARCHITECTURES, import_weights, read_weights
from purify.models.networks import Classifier
from purify.runtime.errors import FileError
from purify.saving import arrays, export_weights, weight_files
from purify.saving import import_weights as import_module
from purify.saving.checkpoint import (
    Checkpoints,
    load_classifier,
    load_defense,
    load_run,
    load_score,
)
from purify.saving.import_weights import run
from purify.saving.settings import claim, read_settings
from tests.command import ROOT, main

SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = SHARED / "resnet20_cifar10.npz"
needs_shared = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")


def published_names(variables) -> dict[str, np.ndarray]:
    """The weights of one of our ResNets under PyTorch's names and axes."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(variables):
        _, *modules, kind = (key.key for key in path)
        module = ".".join(modules).replace("_", ".")
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        weights[f"{module}.{names.get(kind, kind)}"] = np.transpose(leaf, axes)
    return weights


def random_resnet20() -> Classifier:
    network = models.build("cifar_resnet", num_classes=10)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.asarray(rng.uniform(0.1, 0.3, leaf.shape), np.float32)  # noqa: E731
    return Classifier(jax.tree.map(draw, shapes), network)


def test_import_weights_makes_a_checkpoint_and_overwrites_none(tmp_path):
    classifier = random_resnet20()
    np.savez(tmp_path / "weights.npz", **published_names(classifier.variables))
    command = ("--mode=import_weights", f"--input={tmp_path}/weights.npz", "--arch=resnet20")
    theirs = tmp_path / "run/classifier.partial"  # a folder that no import has made
    theirs.mkdir(parents=True)
    (theirs / "settings.json").write_text("{}")
    result = main(*command, f"--workdir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert (theirs / "settings.json").read_text() == "{}"
    assert sorted(os.listdir(tmp_path / "run")) == ["classifier", "classifier.partial"]
    assert "classifier: 269,722 parameters of resnet20" in result.stdout
    loaded = load_classifier(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, classifier.variables)
    assert loaded.network.mean == (0.485, 0.456, 0.406)  # of the weights' own preprocessing
    assert read_settings(tmp_path / "run/classifier")["image_shape"] == [32, 32, 3]
    again = main(*command, f"--workdir={tmp_path}/run")
    assert again.returncode == 2 and "exists already" in again.stderr
    elsewhere = main(*command, f"--output={tmp_path}/elsewhere")
    assert elsewhere.returncode == 0 and (tmp_path / "elsewhere/settings.json").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--arch=resnet20", "--workdir=w"), "needs --input"),
        (("--input={}/w.npz", "--workdir=w"), "needs --arch=..., one of ncsnv2, "),
        (("--input={}/w.npz", "--arch=resnet20"), "needs --workdir, --output or --config"),
        (("--input={}/w.npz", "--arch=vgg", "--workdir=w"), "'vgg' is unknown; known: ncsnv2"),
        (("--input=none.safetensors", "--workdir=w"), "'none.safetensors' does not exist"),
        (("--input={}/w.pth", "--arch=resnet20", "--workdir=w"), "must be .safetensors or .npz"),
    ],
)
def test_a_mistake_in_an_import_is_one_line(arguments, said, tmp_path):
    for name in ("w.npz", "w.pth"):
        (tmp_path / name).touch()
    result = main("--mode=import_weights", *(argument.format(tmp_path) for argument in arguments))
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and len(lines) == 1 and said in lines[0], result.stderr


def test_exported_weights_come_back_without_being_told_what_they_are(trained, tmp_path):
    for role, load in (("score", load_score), ("classifier", load_classifier)):
        file = tmp_path / f"{role}.safetensors"
        flags = (f"--input={trained.workdir / role}", f"--output={file}")
        assert main("--mode=export_weights", *flags).returncode == 0
        result = main("--mode=import_weights", f"--input={file}", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == 0, result.stderr
        ours, theirs = load(tmp_path / "run"), load(trained.workdir)
        assert ours.network == theirs.network
        jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
        runs = [load_run(folder, role) for folder in (tmp_path / "run", trained.workdir)]
        assert runs[0].step == runs[1].step == runs[1].settings["train"]["num_steps"]
    imported = read_settings(tmp_path / "run/score")
    assert imported["train"] == read_settings(trained.workdir / "score")["train"]
    assert "exists already" in main("--mode=export_weights", *flags).stderr
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it, too
    flags = (f"--input={file}", f"--workdir={tmp_path / 'other'}", "--arch=ncsnv2")
    assert "leave --arch out" in main("--mode=import_weights", *flags).stderr


def test_weights_from_elsewhere_are_of_an_unknown_step_and_not_unfinished(trained, tmp_path):
    """A file that does not say its step, as those that earlier versions exported."""
    variables, settings, _ = load_run(trained.workdir, "classifier")
    file = tmp_path / "classifier.safetensors"
    weight_files.save(file, settings, jax.tree.map(np.asarray, variables))
    run(None, tmp_path, str(file), None, None)
    inputs = load_inputs(trained.config(), tmp_path, ("identity",))
    assert inputs.unfinished() == [] and "step" not in inputs.trained()["classifier"]


def test_half_trained_weights_are_that_also_where_they_were_carried_in_a_file(trained, tmp_path):
    variables, settings, step = load_run(trained.workdir, "classifier")
    settings["train"]["num_steps"] = 2 * step
    claim(tmp_path / "half/classifier", settings)
    with Checkpoints(tmp_path / "half/classifier", training=True) as checkpoints:
        checkpoints.save(step, {"ema": variables})
    file = tmp_path / "classifier.safetensors"
    export_weights.run(None, None, str(tmp_path / "half/classifier"), str(file))
    run(None, tmp_path / "run", str(file), None, None)
    told = load_inputs(trained.config(), tmp_path / "run", ("identity",)).unfinished()
    assert told == [f"classifier: unfinished training, step {step} of {2 * step}"]


def test_a_file_whose_arrays_do_not_fit_its_settings_is_refused(tmp_path):
    classifier = random_resnet20()
    settings = {"network": {"arch": "cifar_resnet", "num_classes": 10, "depth": 26}}
    path = tmp_path / "weights.safetensors"
    weight_files.save(path, settings | {"image_shape": (32, 32, 3)}, classifier.variables)
    with pytest.raises(ValueError, match="arrays do not fit its network"):
        weight_files.load(path)


def test_a_file_with_settings_of_another_program_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    weight_files.save(path, {"optimizer": "adam"}, random_resnet20().variables)
    with pytest.raises(ValueError, match="settings of another program"):
        weight_files.load(path)


RESNET = {"arch": "cifar_resnet", "num_classes": 10, "depth": 8}
UNET = {"arch": "unet", "widths": [8, 8], "blocks": 1}
SHAPE = [32, 32, 3]
HOSTILE = {
    "widths of texts": {"network": UNET | {"widths": "abc"}, "image_shape": SHAPE, "head": "score"},
    "blocks": {"network": UNET | {"blocks": 10**9}, "image_shape": SHAPE, "head": "score"},
    "more blocks than arrays": {
        "network": UNET | {"blocks": 70}, "image_shape": SHAPE, "head": "score"
    },
    "a depth": {"network": RESNET | {"depth": 6 * 10**8 + 2}, "image_shape": SHAPE},
    "a width": {"network": UNET | {"widths": [10**9]}, "image_shape": SHAPE, "head": "score"},
    "classes": {"network": RESNET | {"num_classes": 2 * 10**9}, "image_shape": SHAPE},
    "an image": {"network": RESNET, "image_shape": [10**6, 10**6, 3]},
    "an image of two sides": {"network": RESNET, "image_shape": [32, 32]},
    "an image of texts": {"network": RESNET, "image_shape": "abc"},
    "nesting": {"network": RESNET, "image_shape": SHAPE, "data": json.loads("[" * 90 + "]" * 90)},
    "head": {"network": UNET, "image_shape": SHAPE, "head": "<script>"},
    "no head": {"network": UNET, "image_shape": SHAPE},
    "a classifier's head": {"network": RESNET, "image_shape": SHAPE, "head": "score"},
    "no network": {"network": "unet", "image_shape": SHAPE},
    "a network of another": {"network": RESNET | {"arch": ["unet"]}, "image_shape": SHAPE},
    "a long name": {"network": {"arch": "\x1b[31m" * 10**5}, "image_shape": SHAPE},
    "an infinite mean": {"network": RESNET | {"mean": [float("inf")]}, "image_shape": SHAPE},
    "two means": {"network": RESNET | {"mean": [0.5, 0.5]}, "image_shape": SHAPE},
    "names of classes": {"network": RESNET, "image_shape": SHAPE, "class_names": ["cat", "dog"]},
    "odd sides": {"network": UNET, "image_shape": [31, 31, 3], "head": "score"},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*HOSTILE, "nesting without end"])
def test_settings_of_a_file_are_checked_before_anything_is_built(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    text = json.dumps(HOSTILE[kind]) if kind in HOSTILE else "[" * 200_000
    path.write_bytes(save({"params/a": np.zeros(3, np.float32)}, {"settings": text}))
    start = time.monotonic()
    with pytest.raises(FileError, match=f"'{path}' has settings of another program") as caught:
        run(None, tmp_path / "run", str(path), None, None)
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_of_two_imports_at_once_one_is_told_that_the_folder_exists(tmp_path, monkeypatch):
    weight_files.save(tmp_path / "w.safetensors", *own_weights())
    start = lambda: run(None, tmp_path / "run", str(tmp_path / "w.safetensors"), None, None)  # noqa: E731
    hashed = []

    def while_the_other_writes(settings):
        hashed.append(settings)
        if len(hashed) == 1:
            start()
        return of_module(settings)

    of_module = import_module.weight_hash
    monkeypatch.setattr(import_module, "weight_hash", while_the_other_writes)
    with pytest.raises(FileError, match="run/classifier' exists already"):
        start()
    assert os.listdir(tmp_path / "run") == ["classifier"]
    jax.tree.map(
        np.testing.assert_array_equal,
        load_classifier(tmp_path / "run").variables,
        own_weights()[1],
    )


def test_values_that_are_not_finite_are_refused(tmp_path):
    weights = published_names(random_resnet20().variables)
    weights["layer1.0.bn1.running_var"][3] = np.inf
    np.savez(tmp_path / "weights.npz", **weights)
    command = ("--mode=import_weights", f"--input={tmp_path}/weights.npz", "--arch=resnet20")
    result = main(*command, f"--workdir={tmp_path}/run")
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert "batch_stats/layer1_0/bn1/var that are not finite" in result.stderr


def test_a_negative_variance_is_refused(tmp_path):
    """Its root is NaN, and so would all logits be."""
    weights = published_names(random_resnet20().variables)
    weights["layer1.0.bn1.running_var"][3] = -1.0
    np.savez(tmp_path / "weights.npz", **weights)
    with pytest.raises(ValueError, match="variance of -1 in batch_stats/layer1_0/bn1/var"):
        run(None, tmp_path, str(tmp_path / "weights.npz"), None, "resnet20")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


# The forms in which weights are published

NAMES = ("conv1.weight", "layer1.0.bn1.running_mean", "layer1.0.conv1.weight", "linear.bias")
WRAPPERS = ("module.", "_orig_mod.", "1.", "0.", "model.", "ema.", "_fsdp_wrapped_module.")
NESTED = ["".join(order) for count in range(4) for order in itertools.permutations(WRAPPERS, count)]


def save_as(path, names):
    """A file with an array of its own shape under each of the names."""
    arrays = {name: np.ones((i + 1, 2), np.float32) for i, name in enumerate(names)}
    if path.suffix.lower() == ".safetensors":
        save_file(arrays, path)
    else:
        with open(path, "wb") as file:  # given a name, np.savez would append .npz to it
            np.savez(file, **arrays)
    return path


@pytest.mark.parametrize("wrappers", NESTED)
def test_wrappers_are_taken_off_whatever_holds_what(tmp_path, wrappers):
    read = read_weights(save_as(tmp_path / "w.npz", [wrappers + name for name in NAMES]))
    assert {name: len(weight) for name, weight in read.items()} == {
        name: i + 1 for i, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("wrappers", [names for names in NESTED if names.count(".") < 3])
def test_a_normaliser_beside_the_network_keeps_its_constants(tmp_path, wrappers):
    names = [f"{wrappers}0.mean", f"{wrappers}0.std", *(f"{wrappers}1.{name}" for name in NAMES)]
    read = read_weights(save_as(tmp_path / "w.npz", names))
    assert set(read) - set(NAMES) == {"0.mean", "0.std"} and set(NAMES) < set(read)


def test_wrappers_of_single_layers_are_taken_off_too(tmp_path):
    names = ["conv1._orig_mod.weight", "layer1.0._checkpoint_wrapped_module._orig_mod.conv1.weight"]
    read = read_weights(save_as(tmp_path / "w.npz", names))
    assert set(read) == {"conv1.weight", "layer1.0.conv1.weight"}


@pytest.mark.parametrize("suffix", [".npz", ".NPZ", ".Npz", ".safetensors", ".SAFETENSORS"])
def test_a_suffix_may_have_any_case(tmp_path, suffix):
    assert set(read_weights(save_as(tmp_path / f"w{suffix}", NAMES))) == set(NAMES)


@pytest.mark.parametrize("form", ["{}", "_orig_mod.{}", "module._orig_mod.{}", "1.{}"])
def test_wrapped_weights_are_imported_as_they_are(tmp_path, capsys, form):
    classifier = random_resnet20()
    weights = {form.format(name): w for name, w in published_names(classifier.variables).items()}
    np.savez(tmp_path / "w.npz", **weights)
    run(None, tmp_path / "run", str(tmp_path / "w.npz"), None, "resnet20")
    loaded = load_classifier(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, classifier.variables)
    said = "it normalises images by mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225]"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1), ()])
@pytest.mark.parametrize("mean, std", [("0.mean", "0.std"), ("mu", "sigma"), ("n.new_mean", "std")])
def test_a_network_normalises_as_its_wrapper_did(tmp_path, mean, std, shape):
    weights = {f"1.{name}": w for name, w in published_names(random_resnet20().variables).items()}
    weights |= {mean: np.full(shape, 0.25), std: np.full(shape, 0.5)}
    np.savez(tmp_path / "w.npz", **weights)
    settings, _ = import_weights("resnet20", read_weights(tmp_path / "w.npz"))
    assert set(settings["mean"]) == {0.25} and set(settings["std"]) == {0.5}
    models.build(**settings)


@pytest.mark.parametrize(
    "constants, said",
    [
        ({"0.mean": [0.5] * 3}, "have the mean of a normaliser alone"),
        ({"0.mean": [0.5] * 2, "0.std": [0.5] * 2}, "0.mean must be the one mean .* 3 values, but"),
        ({"0.mean": [127.5] * 3, "0.std": [60.0] * 3}, "0.mean must be .* images in .0, 1."),
        ({"0.mean": [0.5] * 3, "0.std": [0.5, np.nan, 1]}, "0.std must be"),
        ({"0.mean": [0.5] * 3, "2.mu": [0.5] * 3}, "2.mu must be the one mean"),
        ({"0.mean": [True] * 3, "0.std": [0.5] * 3}, "0.mean must be"),
        ({"0.mean": ["0.5"] * 3, "0.std": [0.5] * 3}, "0.mean must be"),
        ({"0.mean": [0.5] * 3, "0.std": [0.5 + 0j] * 3}, "0.std must be"),
        ({"0.mean": [0.5] * 10**6, "0.std": [0.5] * 3}, r"0.mean must be [^\n]{,300}$"),
    ],
)
def test_a_normaliser_that_is_not_understood_is_refused(constants, said):
    weights = published_names(random_resnet20().variables)
    weights |= {name: np.array(value) for name, value in constants.items()}
    with pytest.raises(ValueError, match=said):
        import_weights("resnet20", weights)


@pytest.mark.parametrize("classes", [10, 7, 100])
@pytest.mark.parametrize("arch", [a for a, b in ARCHITECTURES.items() if b.role == "classifier"])
def test_the_number_of_classes_is_that_of_the_last_layers_bias(monkeypatch, arch, classes):
    small = {"wide_resnet": dict(depth=10, widen=1), "cifar_resnet": dict(depth=8)}
    options = {**ARCHITECTURES[arch].network}
    options |= small[options["arch"]]
    architecture = ARCHITECTURES[arch].__class__("classifier", options)
    monkeypatch.setitem(ARCHITECTURES, arch, architecture)
    network = models.build(**options, num_classes=classes)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    weights = published_names(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes))
    assert import_weights(arch, weights)[0]["num_classes"] == classes
    head = "fc" if "fc.weight" in weights else "linear"
    weights[f"{head}.weight"] = weights[f"{head}.weight"].T
    features = len(weights[f"{head}.weight"])
    with pytest.raises(ValueError) as error:
        import_weights(arch, weights)
    assert str(error.value).splitlines()[1:] == [
        f"  {head}.weight has shape ({features}, {classes}), expected ({classes}, {features})"
    ]


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int64", "bool", "complex64", "str", "float8_e4m3fn"]
)
def test_quantised_weights_are_refused_by_name(dtype):
    weights = published_names(random_resnet20().variables)
    for name in ("conv1.weight", "layer1.0.bn1.running_var"):
        weights[name] = weights[name].astype(jnp.dtype(dtype))
    with pytest.raises(ValueError, match="2 weights are no floating-point numbers") as error:
        import_weights("resnet20", weights)
    told = "<U" if dtype == "str" else dtype
    assert f"conv1.weight has dtype {told}" in str(error.value)
    assert f"layer1.0.bn1.running_var has dtype {told}" in str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_of_any_floating_type_become_float32(tmp_path, dtype):
    weights = {
        name: w.astype(jnp.dtype(dtype))
        for name, w in published_names(random_resnet20().variables).items()
    }
    save_file({name: w.copy() for name, w in weights.items()}, tmp_path / "w.safetensors")
    _, variables = import_weights("resnet20", read_weights(tmp_path / "w.safetensors"))
    kernel = variables["params"]["linear"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, weights["linear.weight"].astype(np.float32))


def test_an_import_that_cannot_be_read_back_gets_no_name(tmp_path, monkeypatch):
    weight_files.save(tmp_path / "w.safetensors", *own_weights())

    def save(self, step, state):
        raise ValueError("checkpoint reads otherwise than it was written")

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(ValueError, match="reads otherwise"):
        run(None, tmp_path / "run", str(tmp_path / "w.safetensors"), None, None)
    assert not (tmp_path / "run/classifier").exists()


def own_weights():
    settings = {"network": {"arch": "cifar_resnet", "num_classes": 10}, "image_shape": (32, 32, 3)}
    return settings, random_resnet20().variables


def test_a_file_that_the_system_does_not_let_us_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = save_as(tmp_path / "w.npz", NAMES)

    def fails(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(arrays, "open_file", fails)
    with pytest.raises(OSError, match="Too many open files"):
        read_weights(path)


@needs_shared
def test_published_weights_classify_real_images(tmp_path):
    """ResNet-20 was published with 91.7 % on all test images; over 90 % of the first 500."""
    result = main(
        "--mode=import_weights", f"--input={WEIGHTS}", "--arch=resnet20", f"--workdir={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    test = datasets.load("cifar10", "test", data_dir=str(SHARED / "tfds"))
    defense = load_defense(tmp_path, "identity", num_runs=1)
    predict = jax.jit(jax.vmap(lambda defense, x: defense.classifier(x).argmax(), (None, 0)))
    answers = predict(defense, to_float(test.images))
    assert len(test.labels) == 500 and np.mean(answers == test.labels) > 0.90
    with pytest.raises(FileNotFoundError, match="no score checkpoint"):
        load_score(tmp_path)
