"""--mode=import_weights as a user runs it, and the weights it brings in on real images."""

import jax
import numpy as np
import pytest

from purify import data, models, weight_files
from purify.checkpoint import load_classifier, load_defense, load_score, read_settings
from purify.image_io import to_float
from purify.networks import Classifier
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
    killed = tmp_path / "run/classifier.partial"  # as an import leaves it that was killed
    killed.mkdir(parents=True)
    (killed / "settings.json").write_text("{}")
    result = main(*command, f"--workdir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    assert not killed.exists()
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
    imported = read_settings(tmp_path / "run/score")
    assert imported["train"] == read_settings(trained.workdir / "score")["train"]
    assert "exists already" in main("--mode=export_weights", *flags).stderr
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it, too
    flags = (f"--input={file}", f"--workdir={tmp_path / 'other'}", "--arch=ncsnv2")
    assert "leave --arch out" in main("--mode=import_weights", *flags).stderr


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


def test_values_that_are_not_finite_are_refused(tmp_path):
    weights = published_names(random_resnet20().variables)
    weights["layer1.0.bn1.running_var"][3] = np.inf
    np.savez(tmp_path / "weights.npz", **weights)
    command = ("--mode=import_weights", f"--input={tmp_path}/weights.npz", "--arch=resnet20")
    result = main(*command, f"--workdir={tmp_path}/run")
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert "batch_stats/layer1_0/bn1/var that are not finite" in result.stderr


@needs_shared
def test_published_weights_classify_real_images(tmp_path):
    """ResNet-20 was published with 91.7 % on all test images; over 90 % of the first 500."""
    result = main(
        "--mode=import_weights", f"--input={WEIGHTS}", "--arch=resnet20", f"--workdir={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    test = data.load("cifar10", "test", data_dir=str(SHARED / "tfds"))
    defense = load_defense(tmp_path, "identity", num_runs=1)
    predict = jax.jit(jax.vmap(lambda defense, x: defense.classifier(x).argmax(), (None, 0)))
    answers = predict(defense, to_float(test.images))
    assert len(test.labels) == 500 and np.mean(answers == test.labels) > 0.90
    with pytest.raises(FileNotFoundError, match="no score checkpoint"):
        load_score(tmp_path)
