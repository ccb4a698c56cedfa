"""Data sets: names, splits and slices, own TFDS builders, folders, archives, batches."""

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from purify.data import datasets
from purify.data.builders.digits8x8 import split_indices
from purify.data.builders.fashion_mnist_idx import (
    DEBIAN_FOLDER,
    FILES,
    FashionMnistIdx,
    idx_file,
    read_idx,
)
from purify.data.png_jpeg import encode_image
from purify.runtime.errors import FileError

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = ROOT.parent / "shared/data/tfds"
needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10 / "cifar10").is_dir(), reason=f"no prepared CIFAR-10 in {CIFAR10}"
)
needs_debian = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="no package dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """A data_dir in which the digits are prepared once for all tests of this file."""
    folder = tmp_path_factory.mktemp("tfds")
    datasets.load("digits8x8", "train", data_dir=folder)
    return folder


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_fashion(folder: Path, *, gz: bool = True, seed: int = 0) -> dict[str, tuple]:
    """Small IDX files as Debian lays them out; returns {split: (images, labels)}."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = {}
    for (split, names), size in zip(FILES.items(), (30, 12), strict=True):
        arrays[split] = (rng.integers(0, 256, (size, 28, 28)), rng.integers(0, 10, size))
        for name, array in zip(names, arrays[split], strict=True):
            write_idx(folder / (name + ".gz" * gz), array)
    return arrays


def write_folder(root: Path, counts: dict[str, int], shape=(4, 4, 3)) -> Path:
    """PNG files <root>/<split>/<class>/<i>.png for counts {'<split>/<class>': number}."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = np.full(shape, 10 * number + i, np.uint8)
            Image.fromarray(pixels.squeeze()).save(root / folder / f"{i}.png")
    return root


def error_of(name, split, **kwargs) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        datasets.load(name, split, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The digits


def test_digits_are_those_of_scikit_learn(digits_dir):
    values, labels = load_digits(return_X_y=True)
    positions = split_indices(labels)
    for split, size in {"train": 1197, "validation": 200, "test": 400}.items():
        loaded = datasets.load("digits8x8", split, data_dir=digits_dir)
        assert (loaded.images.dtype, loaded.labels.dtype) == (np.uint8, np.int32)
        assert loaded.images.shape == (size, 8, 8, 1)
        assert len(loaded) == size
        assert (loaded.name, loaded.split) == ("digits8x8", split)
        assert loaded.class_names == tuple("0123456789") and loaded.num_classes == 10
        expected = np.rint(values[positions[split]] * 255 / 16).reshape(-1, 8, 8, 1)
        np.testing.assert_array_equal(loaded.images, expected)
        np.testing.assert_array_equal(loaded.labels, labels[positions[split]])


def test_digits_split_is_fixed_disjoint_and_stratified():
    labels = load_digits(return_X_y=True)[1]
    positions = split_indices(labels)
    together = np.sort(np.concatenate(list(positions.values())))
    np.testing.assert_array_equal(together, np.arange(1797))
    share = np.bincount(labels) / 1797
    for indices in positions.values():
        assert (np.abs(np.bincount(labels[indices]) - share * len(indices)) <= 2).all()
    # Pinned: results measured on one split must never be compared with those on another.
    assert positions["validation"][:8].tolist() == [18, 20, 28, 40, 41, 47, 63, 91]
    assert positions["test"][:8].tolist() == [8, 10, 11, 32, 35, 37, 39, 56]
    assert positions["test"].sum() == 359677


class NoTensorFlow:
    """An import finder as it is in an environment without TensorFlow and what it brings."""

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "importlib_resources"):
            return None
        return self._finder.find_spec(name, path, target)


def test_digits_prepare_silently_offline_and_without_tensorflow(
    tmp_path, monkeypatch, capfd, caplog
):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow(finder) for finder in sys.meta_path])
    assert len(datasets.load("digits8x8", "test", data_dir=tmp_path / "new/folder")) == 400
    assert len(datasets.load("digits8x8", "test", data_dir=tmp_path / "new/folder")) == 400
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_prepared_data_are_read_not_made_again(digits_dir):
    file = digits_dir / "digits8x8/1.0.0/dataset_info.json"
    before = file.stat().st_mtime_ns
    datasets.load("digits8x8", "test", data_dir=digits_dir)
    assert file.stat().st_mtime_ns == before
    assert [item.name for item in digits_dir.iterdir()] == ["digits8x8"]


def test_the_loser_of_a_race_to_prepare_reads_the_winners_copy(tmp_path, monkeypatch):
    prepare = datasets.Digits8x8.download_and_prepare

    def lose(builder, **kwargs):
        monkeypatch.setattr(datasets.Digits8x8, "download_and_prepare", prepare)
        assert len(datasets.load("digits8x8", "train", data_dir=tmp_path)) == 1197  # the winner
        prepare(builder, **kwargs)

    monkeypatch.setattr(datasets.Digits8x8, "download_and_prepare", lose)
    assert len(datasets.load("digits8x8", "test", data_dir=tmp_path)) == 400
    assert [item.name for item in tmp_path.iterdir()] == ["digits8x8"]
    assert [item.name for item in (tmp_path / "digits8x8").iterdir()] == ["1.0.0"]


@pytest.mark.slow  # each process imports TFDS anew; the test above covers the same race
def test_processes_that_prepare_at_once_all_succeed(tmp_path):
    code = "from purify.data import datasets; print(len(datasets.load('digits8x8', 'all')))"
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=-1)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == [b"1797\n"] * 2
    assert [item.name for item in tmp_path.iterdir()] == ["digits8x8"]


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(builder, **kwargs):
        Path(builder.data_dir).mkdir(parents=True)
        assert Path(builder.data_dir).is_relative_to(tmp_path)  # so a rename will do
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(datasets.Digits8x8, "download_and_prepare", fail)
        datasets.load("digits8x8", "test", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(datasets.load("digits8x8", "test", data_dir=tmp_path)) == 400


def test_a_prepared_copy_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And what a killed preparation left goes with the next."""
    left = tmp_path / ".preparing.0123456789abcdef.partial"
    (left / "digits8x8").mkdir(parents=True)
    told, rename = [], os.rename

    def renamed(old, new):
        if new == str(tmp_path / "digits8x8/1.0.0"):
            told.append(f"rename {Path(old).name}")
        rename(old, new)

    monkeypatch.setattr(datasets, "sync_tree", lambda folder: told.append(f"sync {folder.name}"))
    monkeypatch.setattr(datasets, "sync_folder", lambda folder: told.append(f"sync {folder.name}"))
    monkeypatch.setattr(datasets.os, "rename", renamed)
    datasets.load("digits8x8", "test", data_dir=tmp_path)
    assert told == ["sync 1.0.0", "rename 1.0.0", "sync digits8x8"]
    assert [item.name for item in tmp_path.iterdir()] == ["digits8x8"]


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    message = error_of("digits8x8", "test", data_dir=tmp_path / "file")
    assert f"config.data.dir '{tmp_path / 'file'}'" in message and "can be written" in message


def test_data_dir_beats_the_environment_beats_the_default(tmp_path, monkeypatch, digits_dir):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    datasets.load("digits8x8", "test", data_dir=digits_dir)
    assert not list(tmp_path.iterdir())
    datasets.load("digits8x8", "test", data_dir="~/given")
    assert [item.name for item in tmp_path.iterdir()] == ["home"]
    datasets.load("digits8x8", "test")
    assert (tmp_path / "environment/digits8x8").is_dir()
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert not (tmp_path / "home/tensorflow_datasets").exists()
    datasets.load("digits8x8", "test")
    assert (tmp_path / "home/tensorflow_datasets/digits8x8").is_dir()


def test_a_damaged_prepared_copy_is_named(tmp_path):
    datasets.load("digits8x8", "test", data_dir=tmp_path)
    folder = tmp_path / "digits8x8/1.0.0"
    (shard,) = folder.glob("*test*array_record*")
    shard.write_bytes(shard.read_bytes()[:1000])
    message = error_of("digits8x8", "test", data_dir=tmp_path)
    assert f"digits8x8 in '{folder}' is damaged: move that folder away" in message


# Names and splits


def test_an_unknown_name_lists_those_there_are():
    message = error_of("imagenet", "train")
    assert "config.data.name 'imagenet'" in message
    assert all(name in message for name in datasets.DATASETS)


def test_a_path_that_would_be_ignored_is_refused(tmp_path):
    message = error_of("digits8x8", "train", data_dir=tmp_path, path="images")
    assert "config.data.path 'images' is not used by digits8x8" in message
    assert not list(tmp_path.iterdir())


SLICES = {  # of 101 + 5 images: TFDS rounds 90 % of 101 to the nearest, 91
    "train": range(101),
    "train[:90%]": range(91),
    "train[90%:]": range(91, 101),
    "train[:50]": range(50),
    "train[-5:]": range(96, 101),
    "train[10%:-10%]": range(10, 91),
    "test[:2]+train[99:]": [101, 102, 99, 100],
}
WRONG_SPLITS = [
    "tain",
    "train[",
    "train[:102]",
    "train[:101%]",
    "train[:0]",
    "train[9:8]",
    "all[:3]",
    "",
]


@pytest.fixture(scope="module")
def sliceable(tmp_path_factory):
    """{name: arguments of load} of data sets of 101 + 5 images, each of its own grey."""
    root = tmp_path_factory.mktemp("sliceable")
    splits = {"train": np.arange(101), "test": np.arange(101, 106)}
    arrays = {}
    (root / "idx").mkdir()
    for split, values in splits.items():
        images = np.broadcast_to(values[:, None, None, None], (len(values), 28, 28, 1))
        labels = values % 10
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
        for name, array in zip(FILES[split], (images[..., 0], labels), strict=True):
            write_idx(root / "idx" / name, array)
        for value, label in zip(values, labels, strict=True):
            folder = root / f"folder/{split}/{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / f"{value}.png")
    np.savez(root / "data.npz", **arrays)
    return {
        "npz": {"path": root / "data.npz"},
        "folder": {"path": root / "folder"},
        "fashion_mnist_idx": {"path": root / "idx", "data_dir": root / "tfds"},
    }


@pytest.mark.parametrize("name", ["npz", "folder", "fashion_mnist_idx"])
def test_slices_mean_the_same_for_every_data_set(name, sliceable):
    def values(split):
        loaded = datasets.load(name, split, **sliceable[name])
        assert (loaded.name, loaded.split) == (name, split)
        np.testing.assert_array_equal(loaded.images[:, 0, 0, 0] % 10, loaded.labels)
        return loaded.images[:, 0, 0, 0].tolist()

    order = values("train") + values("test")
    assert sorted(order) == list(range(106))
    if name != "folder":  # whose order is that of a hash
        assert order == list(range(106))
    for split, positions in SLICES.items():
        assert values(split) == [order[position] for position in positions], split


@pytest.mark.parametrize("name", ["npz", "folder", "fashion_mnist_idx"])
def test_a_wrong_or_empty_split_lists_those_there_are(name, sliceable):
    for split in WRONG_SPLITS:
        message = error_of(name, split, **sliceable[name])
        assert f"split '{split}' of {name}" in message
        assert "train (101)" in message and "test (5)" in message


# Fashion-MNIST


@pytest.mark.parametrize("gz", [True, False])
def test_fashion_comes_from_idx_files_in_their_order(tmp_path, gz):
    arrays = write_fashion(tmp_path / "idx", gz=gz)
    for split, (images, labels) in arrays.items():
        loaded = datasets.load("fashion_mnist_idx", split, path=tmp_path / "idx", data_dir=tmp_path)
        np.testing.assert_array_equal(loaded.images, images[..., None])
        np.testing.assert_array_equal(loaded.labels, labels)
        assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int32
        assert loaded.num_classes == 10 and loaded.class_names[-1] == "Ankle boot"


def test_other_idx_files_do_not_read_a_stale_copy(tmp_path):
    for seed in (0, 1):
        images, _ = write_fashion(tmp_path / "idx", seed=seed)["test"]
        loaded = datasets.load(
            "fashion_mnist_idx", "test", path=tmp_path / "idx", data_dir=tmp_path
        )
        np.testing.assert_array_equal(loaded.images, images[..., None])


def test_missing_idx_files_are_errors_that_say_how_to_get_them(tmp_path, monkeypatch):
    message = error_of("fashion_mnist_idx", "test", path=tmp_path / "no", data_dir=tmp_path)
    assert "apt-get install dataset-fashion-mnist" in message
    assert f"config.data.path '{tmp_path / 'no'}'" in message
    write_fashion(tmp_path / "idx")
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz").unlink()
    message = error_of("fashion_mnist_idx", "train", path=tmp_path / "idx", data_dir=tmp_path)
    assert "t10k-labels-idx1-ubyte" in message


def break_idx(folder: Path, fault: str) -> None:
    images, labels = (folder / f"{name}.gz" for name in FILES["train"])
    content = images.read_bytes()
    if fault == "truncated gzip":
        images.write_bytes(content[:-100])
    if fault == "truncated inside":
        images.write_bytes(gzip.compress(gzip.decompress(content)[:-100]))
    if fault == "wrong magic number":
        images.write_bytes(gzip.compress(b"\1" + gzip.decompress(content)[1:]))
    if fault == "swapped":
        labels.write_bytes(content)
    if fault == "another size":
        write_idx(images, np.zeros((30, 27, 28)))
    if fault == "another length":
        write_idx(images, np.zeros((29, 28, 28)))
    if fault == "a label of 10":
        write_idx(labels, np.full(30, 10))
    if fault == "empty":
        write_idx(images, np.zeros((0, 28, 28)))
        write_idx(labels, np.zeros(0))


@pytest.mark.parametrize(
    "fault",
    [
        "truncated gzip",
        "truncated inside",
        "wrong magic number",
        "swapped",
        "another size",
        "another length",
        "a label of 10",
        "empty",
    ],
)
def test_damaged_idx_files_are_named(tmp_path, fault):
    write_fashion(tmp_path / "idx")
    break_idx(tmp_path / "idx", fault)
    message = error_of("fashion_mnist_idx", "test", path=tmp_path / "idx", data_dir=tmp_path)
    assert "config.data.path" in message and f"{tmp_path}/idx/train-" in message


def test_no_more_of_an_idx_file_is_inflated_than_its_header_says(tmp_path):
    file = tmp_path / "a.gz"
    for sizes, values in (((2**16, 2**16), b""), ((2, 2), bytes(2**28))):
        header = bytes((0, 0, 8, 2)) + np.array(sizes, ">u4").tobytes()
        file.write_bytes(gzip.compress(header + values, 1))
        tracemalloc.start()
        with pytest.raises(FileError, match=f"'{file}' is no IDX file of 2 axes, or is damaged"):
            read_idx(file, 2)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_an_idx_file_that_is_a_device_is_refused(tmp_path):
    write_fashion(tmp_path / "idx", gz=False)
    file = tmp_path / "idx" / FILES["train"][0]
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(FileError, match="is no regular file|no IDX file"):
        read_idx(file, 3)
    assert "holds no" in error_of("fashion_mnist_idx", "test", path=tmp_path / "idx")


@needs_debian
def test_debian_fashion_files_are_found_by_default():
    labels = read_idx(idx_file(DEBIAN_FOLDER, FILES["test"][1]), 1)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert FashionMnistIdx(data_dir="unused").name == "fashion_mnist_idx"


@needs_debian
@pytest.mark.slow
def test_all_of_fashion_is_read(tmp_path):
    train = datasets.load("fashion_mnist_idx", "train", data_dir=tmp_path)
    assert train.images.shape == (60000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [6000] * 10


# Data sets of TFDS itself


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def prepare_cifar10(data_dir: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes arrays as TFDS prepares CIFAR-10, without TensorFlow."""

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.builder("cifar10", data_dir=data_dir).version
        url_infos = None

        def _info(self):
            image = tfds.features.Image(shape=(32, 32, 3))
            label = tfds.features.ClassLabel(names=CIFAR10_CLASSES)
            features = {"id": tfds.features.Text(), "image": image, "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                image = encode_image(image, ".png")
                yield i, {"id": f"test_{i}", "image": image, "label": int(label)}

    Cifar10(data_dir=data_dir).download_and_prepare(file_format="array_record")


def test_data_sets_of_tfds_are_read_from_array_record(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    prepare_cifar10(tmp_path, images, np.arange(20) % 10)
    loaded = datasets.load("cifar10", "test", data_dir=tmp_path)
    rank = np.lexsort(images.reshape(20, -1).T)  # TFDS shuffles as it writes
    found = np.lexsort(loaded.images.reshape(20, -1).T)
    np.testing.assert_array_equal(loaded.images[found], images[rank])
    np.testing.assert_array_equal(loaded.labels[found], rank % 10)
    assert loaded.class_names == tuple(CIFAR10_CLASSES)
    half = datasets.load("cifar10", "test[50%:]", data_dir=tmp_path)
    np.testing.assert_array_equal(half.images, loaded.images[10:])


@needs_cifar10
def test_real_cifar10():
    loaded = datasets.load("cifar10", "test", data_dir=CIFAR10)
    assert loaded.images.shape == (500, 32, 32, 3)
    assert loaded.class_names == tuple(CIFAR10_CLASSES)
    source = tfds.data_source("cifar10", split="test", data_dir=CIFAR10, download=False)
    for i in (0, 163, 499):
        np.testing.assert_array_equal(loaded.images[i], source[i]["image"])
        assert loaded.labels[i] == source[i]["label"]
    part = datasets.load("cifar10", "train[10%:20%]", data_dir=CIFAR10)
    whole = datasets.load("cifar10", "train", data_dir=CIFAR10)
    np.testing.assert_array_equal(part.images, whole.images[400:800])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "svhn_cropped"])
def test_a_missing_data_set_says_exactly_how_to_get_it(tmp_path, name, capfd, caplog):
    message = error_of(name, "test", data_dir=tmp_path)
    assert f"{name} is not in '{tmp_path / name}" in message
    assert "config.data.dir or TFDS_DATA_DIR" in message
    assert "this step alone needs `pip install -r requirements-tensorflow.txt`" in message
    command = message.split("python -c ")[1].strip('"')
    assert f"'{name}'" in command and f"'{tmp_path}'" in command
    assert "file_format='array_record'" in command and "download_and_prepare()" in command
    compile(command, "command", "exec")
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert not list(tmp_path.iterdir())


def test_a_tfrecord_copy_is_refused_with_the_way_out(tmp_path):
    folder = Path(tfds.builder("cifar10", data_dir=tmp_path).data_dir)
    folder.mkdir(parents=True)
    split = {"name": "test", "numBytes": "9", "shardLengths": ["3"]}
    info = {"name": "cifar10", "version": folder.name, "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    message = error_of("cifar10", "test", data_dir=tmp_path)
    assert f"'{folder}' is a tfrecord copy" in message and "array_record" in message
    assert "<another folder>" in message


@pytest.fixture
def cifar10_copy(tmp_path) -> Path:
    """The folder of a prepared copy of 20 images."""
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    prepare_cifar10(tmp_path, images, np.arange(20) % 10)
    (info,) = tmp_path.rglob("dataset_info.json")
    return info.parent


def test_a_copy_that_says_it_has_more_examples_than_bytes_is_refused(cifar10_copy, tmp_path):
    info = cifar10_copy / "dataset_info.json"
    content = json.loads(info.read_text())
    content["splits"][0]["shardLengths"] = [str(10**12)]
    info.write_text(json.dumps(content))
    start = time.monotonic()
    for read in (datasets.load, datasets.members, datasets.published_positions):
        where = dict(data_dir=tmp_path, path=None)
        with pytest.raises(FileError, match=f"'{cifar10_copy}' says that it has 1,000,000,000,000"):
            read("cifar10", "test", **where)
    assert time.monotonic() - start < 10


def test_a_copy_with_millions_of_classes_or_no_regular_files_is_refused(cifar10_copy, tmp_path):
    names = cifar10_copy / "label.labels.txt"
    names.write_text("\n".join(map(str, range(200_000))))
    assert "has 200,000 names of classes" in error_of("cifar10", "test", data_dir=tmp_path)
    with open(names, "wb") as file:
        file.truncate(2**34)
    assert f"'{names}' has more than" in error_of("cifar10", "test", data_dir=tmp_path)
    names.unlink()
    os.mkfifo(names)
    assert f"'{names}' is no regular file" in error_of("cifar10", "test", data_dir=tmp_path)


def test_a_label_that_is_no_class_of_the_copy_is_refused(cifar10_copy, tmp_path):
    (cifar10_copy / "label.labels.txt").write_text("cat\ndog\n")
    assert "of 2 classes" in error_of("cifar10", "test", data_dir=tmp_path)


# Labelled folders


def test_folder_classes_are_sorted_and_those_of_all_splits(tmp_path):
    write_folder(tmp_path, {"train/cat": 3, "train/ant": 2, "train/bee": 2, "test/cat": 2})
    test = datasets.load("folder", "test", path=tmp_path)
    assert test.class_names == ("ant", "bee", "cat")
    assert test.labels.tolist() == [2, 2]
    train = datasets.load("folder", "train", path=tmp_path)
    assert train.images.shape == (7, 4, 4, 3) and train.images.dtype == np.uint8
    pairs = sorted(zip(train.images[:, 0, 0, 0].tolist(), train.labels.tolist(), strict=True))
    assert pairs == [(0, 2), (1, 2), (2, 2), (10, 0), (11, 0), (20, 1), (21, 1)]


def test_folder_order_mixes_classes_and_is_the_same_anywhere(tmp_path):
    counts = {"train/a": 20, "train/b": 20}
    first = datasets.load("folder", "train[:50%]", path=write_folder(tmp_path / "x", counts))
    again = datasets.load("folder", "train[:50%]", path=write_folder(tmp_path / "y", counts))
    assert 5 <= first.labels.sum() <= 15
    np.testing.assert_array_equal(first.images, again.images)


def test_folder_reads_png_and_jpeg_and_leaves_other_files_alone(tmp_path):
    write_folder(tmp_path, {"train/a": 1, "train/.hidden": 1, ".cache/a": 1}, shape=(8, 8))
    grey = Image.fromarray(np.full((8, 8), 200, np.uint8))
    for name in ("b.JPG", "c.jpeg", ".d.png"):
        grey.save(tmp_path / "train/a" / name, format="JPEG")
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    (tmp_path / "README.md").write_text("not a split")
    loaded = datasets.load("folder", "train", path=tmp_path)
    assert sorted(loaded.images[:, 0, 0, 0].tolist()) == [0, 200, 200]
    assert loaded.images.shape == (3, 8, 8, 1) and loaded.class_names == ("a",)


def test_members_tell_which_images_two_splits_share(digits_dir):
    train, rest = (
        datasets.members("digits8x8", split, data_dir=digits_dir, path=None)
        for split in ("train[:100]+test[:2]", "train[90:]")
    )
    assert train[0] == ("train", 0) and train[-2:] == [("test", 0), ("test", 1)]
    assert set(train) & set(rest) == {("train", position) for position in range(90, 100)}


def test_greyscale_files_among_colour_ones_get_three_equal_channels(tmp_path):
    write_folder(tmp_path, {"train/a": 2, "test/a": 1})
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "test/a/grey.png")
    images = datasets.load("folder", "test", path=tmp_path).images
    assert images.shape == (2, 4, 4, 3)
    assert any(np.array_equal(image, np.stack([grey] * 3, -1)) for image in images)


def test_folder_images_of_another_size_or_damaged_are_named(tmp_path):
    write_folder(tmp_path, {"train/a": 3})
    odd = tmp_path / "train/a/odd.png"
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(odd)
    message = error_of("folder", "train", path=tmp_path)
    assert "odd.png" in message or "5x4x3" in message  # whichever comes first is the standard
    assert "4x4x3" in message and "config.data.path: '" in message
    odd.write_bytes(odd.read_bytes()[:40])
    assert f"'{odd}'" in error_of("folder", "train", path=tmp_path)


def load_folder(root: Path, split: str = "train") -> list[tuple[int, str]]:
    """(grey value, class) of each image, sorted."""
    loaded = datasets.load("folder", split, path=root)
    values = loaded.images[:, 0, 0, 0].tolist()
    return sorted(zip(values, (loaded.class_names[i] for i in loaded.labels), strict=True))


def test_classes_that_are_numbers_are_in_order_of_number(tmp_path):
    counts = {f"{split}/{number}": 1 for split in ("train", "test") for number in range(12)}
    del counts["test/7"]
    write_folder(tmp_path, counts)
    loaded = datasets.load("folder", "train", path=tmp_path)
    assert loaded.class_names == tuple(map(str, range(12)))
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0] // 10, loaded.labels)
    # A name that is no number: all are texts, as ever.
    write_folder(tmp_path, {"train/x": 1})
    names = datasets.load("folder", "train", path=tmp_path).class_names
    assert names == ("0", "1", "10", "11", *"23456789", "x")


def test_two_spellings_of_a_number_are_refused(tmp_path):
    write_folder(tmp_path, {"train/01": 1, "train/10": 1, "test/1": 1, "test/10": 1})
    message = error_of("folder", "train", path=tmp_path)
    assert "'01' and '1', the same number" in message or "'1' and '01', the same number" in message


FOREIGN = {
    "folders of an archiver": ["__MACOSX/train/._cat", "train/__MACOSX/x", "__MACOSX/images"],
    "hidden folders": [".git/objects", "train/.ipynb_checkpoints"],
    "an empty folder": ["aardvark"],
    "an empty split": ["aardvark/cat", "aardvark/bee"],
    "the results of runs": ["runs/digits/score/events", "runs/digits/figures"],
    "images one level too deep": ["raw/bee/images"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_folders_are_no_classes_and_no_splits(tmp_path, kind):
    write_folder(tmp_path, {"train/cat": 2, "train/dog": 1, "test/dog": 1})
    for folder in FOREIGN[kind]:
        (tmp_path / folder).mkdir(parents=True)
        if folder.count("/") > 1 or "." in folder or "MACOSX" in folder:
            Image.new("RGB", (4, 4)).save(tmp_path / folder / "figure.png")
    (tmp_path / "README.md").write_text("about the cats")
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "train" / name).write_bytes(b"?")
    loaded = datasets.load("folder", "train", path=tmp_path)
    assert loaded.class_names == ("cat", "dog")
    assert load_folder(tmp_path) == [(0, "cat"), (1, "cat"), (10, "dog")]


@pytest.mark.parametrize(
    "given, said",
    [
        ("raw/cat/images", "'raw/cat' holds folders (images), but images must lie in it directly"),
        ("raw/cat/a.bmp", "'raw/cat' holds .bmp files only: convert images to PNG"),
        ("raw/cat.png", "'raw' has no folders of classes"),
    ],
)
def test_a_folder_that_is_left_out_is_named_when_asked_for(tmp_path, given, said):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1})
    path = tmp_path / given
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"?") if path.suffix else path.mkdir()
    message = error_of("folder", "raw", path=tmp_path)
    assert "it has train (2)" in message and said in message


@pytest.mark.parametrize(
    "given, said",
    [
        ("train/bird", "'train/bird' holds no images"),
        ("train/bird/Thumbs.db", "'train/bird' holds .db files only"),
        ("test/bird/a.bmp", "'test/bird' holds .bmp files only: convert"),
        ("train/bird/images/a.png", "'train/bird' holds folders (images)"),
    ],
)
def test_a_class_without_images_in_any_split_is_refused_with_what_it_holds(tmp_path, given, said):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test/dog": 1})
    path = tmp_path / given
    (path.parent if path.suffix else path).mkdir(parents=True)
    if path.suffix:
        path.write_bytes(b"?")
    message = error_of("folder", "train", path=tmp_path)
    assert f"'{tmp_path}' has classes without images in any split: {said}" in message


def test_a_class_may_lack_images_in_one_split(tmp_path):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test/dog": 1, "test/emu": 1})
    (tmp_path / "test/cat").mkdir()
    assert datasets.load("folder", "test", path=tmp_path).class_names == ("cat", "dog", "emu")
    assert load_folder(tmp_path, "test") == [(20, "dog"), (30, "emu")]


def test_images_that_are_not_sorted_into_classes_do_not_shift_labels(tmp_path):
    """Tiny ImageNet's val/images, and pictures of other things beside the splits."""
    write_folder(tmp_path, {"train/cat": 1, "train/n2": 1, "test/n2": 1, "val/images": 1})
    message = error_of("folder", "train", path=tmp_path)
    assert "'val' (images)" in message and "'train' (cat, n2)" in message
    assert "move away what is no split" in message


def test_folders_of_classes_may_be_links_but_not_to_nothing(tmp_path):
    write_folder(tmp_path, {"elsewhere/a": 1, "data/train/cat": 1})
    (tmp_path / "data/train/ant").symlink_to(tmp_path / "elsewhere/a")
    assert load_folder(tmp_path / "data") == [(0, "ant"), (10, "cat")]
    (tmp_path / "data/train/ape").symlink_to("unmounted")
    message = error_of("folder", "train", path=tmp_path / "data")
    assert f"'{tmp_path}/data/train/ape' is a link to nothing" in message
    (tmp_path / "data/train/ape").rename(tmp_path / "data/train/cat/2.png")
    message = error_of("folder", "train", path=tmp_path / "data")
    assert f"'{tmp_path}/data/train/cat/2.png' is a link to nothing" in message


def test_a_link_to_nothing_beside_the_splits_is_named_where_a_split_is_missed(tmp_path):
    write_folder(tmp_path, {"train/cat": 1})
    (tmp_path / "test").symlink_to("unmounted")
    assert load_folder(tmp_path) == [(0, "cat")]
    assert "left out: 'test' is a link to nothing" in error_of("folder", "test", path=tmp_path)


def test_names_that_are_no_utf_8_are_read_and_named(tmp_path):
    write_folder(tmp_path, {"train/a": 2, "train/b": 1})
    odd = os.fsencode(tmp_path) + b"/train/caf\xe9"
    os.rename(tmp_path / "train/a", odd)
    os.rename(odd + b"/1.png", odd + b"/\xfc.png")
    assert load_folder(tmp_path) == [(0, "caf\\xe9"), (1, "caf\\xe9"), (10, "b")]
    with open(odd + b"/\xfc.png", "wb") as file:
        file.write(b"no image")
    message = error_of("folder", "train", path=tmp_path)
    assert f"'{tmp_path}/train/caf\\xe9/\\xfc.png' is no readable" in message


def spelled(name: str, form: str, root: Path, count: int, value: int) -> None:
    """`count` images of that value in a new class folder, its name in a normal form of Unicode."""
    folder = root / unicodedata.normalize(form, name)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((4, 4), value + i, np.uint8)).save(folder / f"{i}.png")


def test_composed_and_decomposed_accents_are_one_class(tmp_path):
    spelled("été", "NFC", tmp_path / "train", 1, 0)
    spelled("été", "NFD", tmp_path / "train", 1, 5)
    spelled("été", "NFD", tmp_path / "test", 1, 7)
    spelled("hiver", "NFC", tmp_path / "train", 1, 10)
    names = datasets.load("folder", "train", path=tmp_path).class_names
    assert sorted(names) == ["hiver", unicodedata.normalize("NFC", "été")]
    assert [name[0] for _, name in load_folder(tmp_path)] == [*"éé", "h"]
    assert [name[0] for _, name in load_folder(tmp_path, "test")] == ["é"]


@pytest.mark.parametrize("form, first", [("NFC", "hiver"), ("NFD", "été")])
def test_labels_and_order_of_accented_names_stay_those_of_their_spelling(tmp_path, form, first):
    spelled("été", form, tmp_path / "train", 9, 0)
    spelled("hiver", form, tmp_path / "train", 9, 10)
    loaded = datasets.load("folder", "train", path=tmp_path)
    assert loaded.class_names[0] == unicodedata.normalize("NFC", first)
    names = [
        f"{unicodedata.normalize(form, c)}/{i}.png" for c in ("été", "hiver") for i in range(9)
    ]
    order = sorted(range(18), key=lambda i: hashlib.sha256(names[i].encode("utf-8")).digest())
    assert loaded.images[:, 0, 0, 0].tolist() == [i if i < 9 else i + 1 for i in order]


def test_folders_are_the_same_data_set_in_every_locale(tmp_path):
    for value, name in enumerate(("été", "hiver", "łódź", "雪")):
        spelled(name, "NFC", tmp_path / "train", 3, 10 * value)
    code = (
        "import sys; from purify.data import datasets;"
        "d = datasets.load('folder', 'train', path=sys.argv[1]);"
        "print(ascii((d.class_names, d.labels.tolist(), d.images[:, 0, 0, 0].tolist())))"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        cwd=ROOT,
        env={**os.environ, **ascii_only},
        capture_output=True,
        text=True,
    )
    here = datasets.load("folder", "train", path=tmp_path)
    expected = here.class_names, here.labels.tolist(), here.images[:, 0, 0, 0].tolist()
    assert result.stdout == ascii(expected) + "\n", result.stderr


def test_kinds_of_files_that_are_refused_are_named_in_folders_too(tmp_path):
    write_folder(tmp_path, {"train/a": 1}, shape=(8, 8))
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new("L", (8, 8)).save(tmp_path / "train/a/b.jpg", exif=turned)
    message = error_of("folder", "train", path=tmp_path)
    assert "b.jpg' is to be turned for viewing (EXIF orientation 6)" in message


def test_grey_files_of_other_depths_do_not_make_a_data_set_coloured(tmp_path):
    write_folder(tmp_path, {"train/a": 1, "test/a": 1}, shape=(4, 4))
    Image.new("I;16", (4, 4)).save(tmp_path / "test/a/deep.png")
    Image.new("1", (4, 4)).save(tmp_path / "train/a/bits.png")
    assert datasets.load("folder", "train", path=tmp_path).images.shape == (2, 4, 4, 1)


def test_folder_without_images_shows_the_layout(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "flat.png")
    message = error_of("folder", "train", path=tmp_path)
    assert f"config.data.path '{tmp_path}'" in message and "<split>/<class>/*" in message


# Archives


def test_npz_keeps_uint8_and_rounds_floats(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(
        tmp_path / "a.npz",
        train_images=images,
        train_labels=labels,
        test_images=images / 255,
        test_labels=np.zeros(6, np.int64),
    )
    for split in ("train", "test"):
        loaded = datasets.load("npz", split, path=tmp_path / "a.npz")
        np.testing.assert_array_equal(loaded.images, images)
        assert loaded.images.dtype == np.uint8 and loaded.labels.dtype == np.int32
        assert loaded.class_names == ("0", "1", "2")  # of all splits


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
LABELS = np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "<split>_images"),
        ({"train_images": IMAGES}, "no array train_labels"),
        ({"train_images": IMAGES, "train_labels": LABELS[:3]}, "give integers [4]"),
        ({"train_images": IMAGES, "train_labels": LABELS / 2}, "float64"),
        ({"train_images": IMAGES, "train_labels": LABELS - 1}, "from -1 to 2"),
        ({"train_images": IMAGES[..., 0], "train_labels": LABELS}, "[n, H, W, C]"),
        ({"train_images": IMAGES + 2.0, "train_labels": LABELS}, "from 2.0 to 2.0"),
        ({"train_images": IMAGES.astype(int), "train_labels": LABELS}, "int64"),
        ({"train_images": IMAGES[..., :2], "train_labels": LABELS}, "8x8x2"),
        ({"train_images": IMAGES.repeat(2, -1), "train_labels": LABELS}, "8x8x6"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2), "train_labels": LABELS}, "first axis last"),
        ({"train_images": IMAGES, "train_labels": LABELS + 1}, "no image of label 0 in any split"),
        ({"train_images": IMAGES, "train_labels": [0, 1, 9, 7]}, "no image of label 2, 3, 4, ..."),
        ({"train_images": IMAGES, "train_labels": [0, 1, 2, 255]}, "labels up to 255"),
        ({"train_images": IMAGES, "train_labels": [0, 1, 2, 2_000_000_000]}, "allowed are 0 to"),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "class_names": [*"abc"]},
            "give 4 or more different texts",
        ),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "class_names": [*"abca"]},
            "give 4 or more different texts",
        ),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "class_names": [*range(4)]},
            "give 4 or more different texts",
        ),
        ({"train_images": IMAGES, "train_labels": np.array([{}] * 4)}, "plain arrays"),
    ],
)
def test_wrong_npz_arrays_are_explained(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    message = error_of("npz", "train", path=tmp_path / "a.npz")
    assert f"config.data.path '{tmp_path / 'a.npz'}'" in message and words in message


@pytest.mark.parametrize("point", [0xD800, 0x110000, 0xFFFFFFFF])
def test_names_of_classes_that_are_no_text_are_refused(tmp_path, point):
    names = np.array([*"abcd"])
    names.view(np.uint32)[0] = point
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "class_names": names}
    np.savez(tmp_path / "a.npz", **arrays)
    message = error_of("npz", "train", path=tmp_path / "a.npz")
    assert "give 4 or more different texts" in message


def test_an_archive_of_a_data_set_leaves_other_members_alone(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=IMAGES, train_labels=LABELS, other=np.array([{}]))
    assert len(datasets.load("npz", "train", path=tmp_path / "a.npz")) == 4


def test_small_files_of_large_pictures_are_refused(tmp_path, monkeypatch):
    write_folder(tmp_path, {"train/a": 20}, shape=(50, 50))
    monkeypatch.setattr("purify.saving.files.MEMORY", 4 * 50 * 50 * 10)
    monkeypatch.setattr("purify.data.png_jpeg.FACTOR", 1)
    assert "its images would take 200,000 bytes" in error_of("folder", "train", path=tmp_path)


def test_npz_classes_may_lack_images_in_one_split_or_be_named(tmp_path):
    arrays = {"train_images": IMAGES, "train_labels": LABELS}
    np.savez(tmp_path / "a.npz", **arrays, test_images=IMAGES[:2], test_labels=[3, 1])
    loaded = datasets.load("npz", "test", path=tmp_path / "a.npz")
    assert loaded.class_names == tuple("0123") and loaded.labels.tolist() == [3, 1]
    named = {"test_images": IMAGES[:2], "test_labels": [3, 1], "class_names": ["a", "b", "c", "d"]}
    np.savez(tmp_path / "b.npz", **named)
    loaded = datasets.load("npz", "test", path=tmp_path / "b.npz")
    assert loaded.class_names == tuple("abcd") and loaded.labels.tolist() == [3, 1]


def test_splits_of_one_data_set_have_one_image_size(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:, :5],
        test_labels=LABELS,
    )
    message = error_of("npz", "train+test", path=tmp_path / "a.npz")
    assert "test_images" in message and "5x8x3" in message and "8x8x3" in message


@pytest.mark.parametrize("name", ["npz", "folder"])
def test_an_unset_or_missing_path_is_named(tmp_path, name):
    assert "config.data.path is not set" in error_of(name, "train")
    message = error_of(name, "train", path=tmp_path / "no")
    assert f"config.data.path '{tmp_path / 'no'}' does not exist" in message


# Batches


def test_each_epoch_visits_whole_batches_of_different_examples_and_drops_the_rest():
    epochs = [
        np.concatenate([datasets.batch_indices(0, 5 * epoch + i, 4, 23) for i in range(5)])
        for epoch in range(30)
    ]
    for order in epochs:
        assert order.shape == (20,) and len(set(order.tolist())) == 20
        assert order.min() >= 0 and order.max() < 23
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(np.concatenate(epochs).tolist()) == set(range(23))  # other examples are dropped


def test_a_batch_depends_on_seed_and_step_alone():
    steps = {step: datasets.batch_indices(3, step, 8, 50) for step in (17, 2, 0)}
    for step, indices in steps.items():
        np.testing.assert_array_equal(indices, datasets.batch_indices(3, step, 8, 50))
        assert not np.array_equal(indices, datasets.batch_indices(4, step, 8, 50))
    assert datasets.batch_indices(0, 0, 1, 1).tolist() == [0]
    assert sorted(datasets.batch_indices(0, 9, 5, 5)) == list(range(5))


@pytest.mark.parametrize("arguments", [(0, 0, 9, 8), (0, 0, 0, 8), (-1, 0, 4, 8), (0, -1, 4, 8)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(ValueError, match=str(min(arguments) if -1 in arguments else arguments[2])):
        datasets.batch_indices(*arguments)
