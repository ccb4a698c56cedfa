"""Damaged files by the thousand, into every reader of what comes from outside.

`python -m tests.fuzzing --minutes=60 [--target=NAME]` runs the targets in turn with fresh seeds and
saves what fails, cut down to little, into tests/corpus/<target>/, which the tests replay.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save as safetensors

from configs.digits import get_config
from purify import models
from purify.data import datasets
from purify.data.builders.fashion_mnist_idx import read_idx
from purify.data.image_io import load_labelled_npz, open_images
from purify.evals.core.inputs import load_inputs, seen
from purify.evals.corruptions.files import CorruptionFiles
from purify.runtime.messages import printable
from purify.saving import weight_files
from purify.saving.arrays import map_npy
from purify.saving.checkpoint import Checkpoints, image_hash, load_run
from purify.saving.import_weights import read_file
from purify.saving.settings import claim, read_settings
from purify.saving.vouching import HASHES, vouch
from tests.test_data import prepare_cifar10
from tests.written import rewrite_lists

CORPUS = Path(__file__).parent / "corpus"
SECONDS, MEMORY = 10, 2**20  # KiB that a reader may take, each for one file


class Target(NamedTuple):
    """make: contents of valid files. read: what is tried with a file, given by its path, which ends
    in `name`. wrap: what becomes of a damaged content before it is written, as a checksum."""

    name: str
    make: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    wrap: Callable[[bytes], bytes] = bytes


# Valid files


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(save=np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
LABELLED = dict(images=IMAGES, labels=np.array([0, 1, 2, 1]), index=np.arange(4))
SPLIT = dict(
    train_images=IMAGES,
    train_labels=np.array([0, 1, 2, 1]),
    class_names=np.array(["ant", "bee", "cat"]),
)
WEIGHTS = {
    "module.conv1.weight": np.ones((2, 3, 3, 3), np.float32),
    "module.fc.bias": np.ones(4, np.float64),
    "num_batches_tracked": np.array(3),
}
SETTINGS = {
    "network": {"arch": "unet", "widths": [4, 4], "blocks": 1},
    "image_shape": [4, 4, 1],
    "head": "score",
    "data": {"name": "digits8x8", "path": "", "train_split": "train"},
}


def pictures(form: str) -> list[bytes]:
    found = []
    for array in (IMAGES[0], IMAGES[0, ..., 0]):
        for options in ({}, {"exif": Image.Exif()}):
            file = io.BytesIO()
            Image.fromarray(array).save(file, form, **options)
            found.append(file.getvalue())
    return found


def idx() -> bytes:
    return bytes((0, 0, 8, 3)) + np.array((2, 28, 28), ">u4").tobytes() + bytes(2 * 28 * 28)


@functools.cache
def own_variables():
    network = models.build(**SETTINGS["network"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def own_weights(settings: bytes = b"") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        weight_files.save(path, SETTINGS, own_variables())
        content = path.read_bytes()
    if not settings:
        return content
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["settings"] = settings.decode("utf-8", "surrogateescape")
    return with_length(json.dumps(header).encode() + content[8 + length :], header)


def with_length(content: bytes, header: Any = None) -> bytes:
    """Behind the length of its header, which ends before the first zero byte, or is this one."""
    length = len(json.dumps(header).encode()) if header is not None else len(content)
    return struct.pack("<Q", length) + content


# What makes damage reach further than a checksum


def as_member(content: bytes) -> bytes:
    """An archive with that content for its images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", npy(LABELLED["labels"]))
    return file.getvalue()


def with_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their contents."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        parts += [content[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts)


def with_values(content: bytes) -> bytes:
    return (
        struct.pack("<Q", len(content)) + content + bytes(248)
    )  # as many as the arrays of WEIGHTS have


def tensors_header() -> bytes:
    content = safetensors({name: array for name, array in WEIGHTS.items() if array.ndim})
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def corruption_files(path: Path) -> None:
    path.with_name("labels.npy").write_bytes(npy(np.tile([0, 1], 5)))
    files = CorruptionFiles(path.parent, ["fog"], (4, 4, 3))
    files.images([0, 1], corruption="fog", severity=5)


def images_of(path: Path) -> None:
    open_images(path, path.with_name("out" + path.suffix), None)


def weights_of(path: Path) -> None:
    read_file(str(path), None if weight_files.is_own(path) else "resnet20")


@functools.cache
def prepared() -> tempfile.TemporaryDirectory:
    """A copy of TFDS's, of four images, for as long as this process lives."""
    folder = tempfile.TemporaryDirectory(prefix="fuzzing-tfds-")
    images = np.resize(IMAGES, (4, 32, 32, 3))
    prepare_cifar10(Path(folder.name), images, LABELLED["labels"])
    return folder


def description() -> bytes:
    (info,) = Path(prepared().name).rglob("dataset_info.json")
    return info.read_bytes()


def copy_of_tfds(path: Path) -> None:
    """With that description of the data set."""
    (info,) = Path(prepared().name).rglob("dataset_info.json")
    root = path.with_name("tfds")
    shutil.copytree(prepared().name, root)
    (root / info.relative_to(prepared().name)).write_bytes(path.read_bytes())
    try:
        datasets.load("cifar10", "test", data_dir=root)
    except ValueError as error:
        if not str(error).startswith(
            "split 'test' of cifar10"
        ):  # there is none, which is no damage
            raise


@functools.cache
def classifier_run() -> tuple[tempfile.TemporaryDirectory, Path]:
    """A workdir with a tiny classifier of SPLIT, for as long as this process lives; its run."""
    folder = tempfile.TemporaryDirectory(prefix="fuzzing-run-")
    seen = Path(folder.name) / "seen.npz"
    seen.write_bytes(npz(**SPLIT, test_images=IMAGES, test_labels=LABELLED["labels"]))
    settings = {
        "network": {"arch": "resnet", "widths": [4], "blocks": 0, "num_classes": 3},
        "image_shape": [4, 4, 3],
        "num_classes": 3,
        "data": {"name": "npz", "path": str(seen), "train_split": "train"},
        "images": image_hash(IMAGES, SPLIT["train_labels"]),
        "seed": 0,
        "train": {"num_steps": 2, "batch_size": 2},
        "class_names": ["ant", "bee", "cat"],
    }
    network = models.build(**settings["network"])
    variables = network.init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))
    with Checkpoints(
        Path(folder.name) / "classifier", lock=claim(Path(folder.name), settings, "classifier")
    ) as checkpoints:
        checkpoints.save(1, {"ema": variables})
    return folder, checkpoints.folder


def training_settings(path: Path) -> None:
    """What evaluations ask of the settings of a training, vouched for as if they were its own."""
    root, run = classifier_run()
    workdir = path.parent.parent
    shutil.copytree(run / "checkpoints", path.parent / "checkpoints")
    rewrite_lists(path.parent)
    config = get_config()
    config.data.update(name="npz", path=f"{root.name}/seen.npz", test_split="test")
    try:
        inputs = load_inputs(config, workdir, ("identity",))
    except ValueError as error:  # of images and networks that do not fit each other
        if not str(error).startswith("npz has "):
            raise
        return
    with contextlib.redirect_stdout(io.StringIO()):
        seen(config.data, inputs, range(4)).tell()


def files_of_checkpoint() -> list[bytes]:
    """Each behind its name."""
    root = classifier_run()[1] / "checkpoints" / "1"
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [
        path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes() for path in files
    ]


def checkpoint(path: Path) -> None:
    """One that somebody has changed, with the hashes that fit; but for the list itself."""
    workdir = path.with_name("run")
    shutil.copytree(classifier_run()[1], workdir / "classifier")
    folder = workdir / "classifier" / "checkpoints" / "1"
    name, _, content = path.read_bytes().partition(b"\n")
    files = {str(p.relative_to(folder)).encode(): p for p in folder.rglob("*") if p.is_file()}
    changed = files.get(name, folder / "state" / "_METADATA")
    changed.write_bytes(content)
    if changed.name != HASHES:
        vouch(folder, read_settings(workdir / "classifier"))
    load_run(workdir, "classifier")


FIVE = np.resize(IMAGES, (10, 4, 4, 3))
WEIGHT_FILES = [safetensors({n: np.atleast_1d(w) for n, w in WEIGHTS.items()})]

TARGETS = {
    "images_npy": Target("a.npy", lambda: [npy(IMAGES), npy(IMAGES / 255)], images_of),
    "images_npz": Target(
        "a.npz",
        lambda: [npz(**LABELLED), npz(np.savez_compressed, **LABELLED)],
        images_of,
    ),
    "labelled_npz": Target(
        "a.npz",
        lambda: [npz(**LABELLED), npz(np.savez_compressed, **LABELLED)],
        lambda path: load_labelled_npz(path, (4, 4, 3)),
    ),
    "labelled_member": Target(
        "a.npz",
        lambda: [npy(IMAGES), npy(np.asfortranarray(IMAGES / 255))],
        lambda path: load_labelled_npz(path, (4, 4, 3)),
        as_member,
    ),
    "data_npz": Target(
        "a.npz", lambda: [npz(**SPLIT)], lambda path: datasets.load("npz", "train", path=path)
    ),
    "png": Target("in/a.png", lambda: pictures("PNG"), lambda path: open_pictures(path)),
    "png_chunks": Target(
        "in/a.png", lambda: pictures("PNG"), lambda path: open_pictures(path), with_sums
    ),
    "jpeg": Target("in/a.jpg", lambda: pictures("JPEG"), lambda path: open_pictures(path)),
    "class_folder": Target(
        "train/cat/a.png",
        lambda: pictures("PNG"),
        lambda path: datasets.load("folder", "train", path=path.parents[2]),
        with_sums,
    ),
    "idx": Target("a", lambda: [idx()], lambda path: read_idx(path, 3)),
    "idx_gz": Target("a.gz", lambda: [gzip.compress(idx())], lambda path: read_idx(path, 3)),
    "corruption_npy": Target("fog.npy", lambda: [npy(FIVE)], corruption_files),
    "mapped_npy": Target("a.npy", lambda: [npy(FIVE)], lambda path: map_npy(path, f"'{path}'")),
    "tfds_info": Target("info.json", lambda: [description()], copy_of_tfds),
    "weights_npz": Target("w.npz", lambda: [npz(**WEIGHTS)], weights_of),
    "weights_safetensors": Target("w.safetensors", lambda: WEIGHT_FILES, weights_of),
    "weights_header": Target("w.safetensors", lambda: [tensors_header()], weights_of, with_values),
    "own_weights": Target("w.safetensors", lambda: [own_weights()], weights_of),
    "own_settings": Target(
        "w.safetensors",
        lambda: [json.dumps(SETTINGS).encode()],
        weights_of,
        lambda content: own_weights(content or b" "),
    ),
    "training_settings": Target(
        "classifier/settings.json",
        lambda: [(classifier_run()[1] / "settings.json").read_bytes()],
        training_settings,
    ),
    "checkpoint": Target("changed", files_of_checkpoint, checkpoint),
}


def open_pictures(path: Path) -> None:
    """Beside a good one, whose shape they must have."""
    open_images(path.parent, path.parent.with_name("out"), None)


# Damage

NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**20, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [10**9, 10**12, 2**63 - 1, 2**64 - 1]
WORDS = [b"-1", b"1e9", b"NaN", b"null", b"true", b'"x"', b"[]", b"{}", b"[" * 2000, b"-" * 2000]
WORDS += [
    b"|O",
    b"<U9",
    b"<c8",
    b"|V0",
    b"|b1",
    b"\0",
    b"\xff",
    b"\x1b[31m",
    b"F8_E4M3",
    b"<script>",
]
EDITS = ("flip", "cut", "delete", "insert", "copy", "number", "digits", "word")


def damage(content: bytes, edits) -> bytes:
    for kind, place, amount, part in edits:
        # Half of them where headers are.
        at = place // 2 % (1 + (len(content) if place % 2 else min(len(content), 300)))
        end = at + amount % 64
        number = NUMBERS[amount % len(NUMBERS)]
        if kind == "flip":
            content = content[:at] + bytes(b ^ (part[0] or 1) for b in content[at : at + 1]) + (
                content[at + 1 :]
            )  # fmt: skip
        elif kind == "cut":
            content = content[:at]
        elif kind == "delete":
            content = content[:at] + content[end:]
        elif kind == "insert":
            content = content[:at] + part + content[at:]
        elif kind == "copy":
            content = content[:at] + content[amount % (1 + len(content)) :][:64] + content[at:]
        elif kind == "number":
            size, order = 2 ** (1 + place % 3), ("little", "big")[part[0] % 2]
            value = (number % 256**size).to_bytes(size, order)
            content = content[:at] + value + content[at + size :]
        elif kind == "digits" and (found := [*re.finditer(rb"\d+", content)]):
            chosen = found[place % len(found)]
            content = content[: chosen.start()] + b"%d" % number + content[chosen.end() :]
        elif kind == "word" and (found := [*re.finditer(rb"[\w|<]+", content)]):
            chosen = found[place % len(found)]
            word = WORDS[amount % len(WORDS)]
            content = content[: chosen.start()] + word + content[chosen.end() :]
    return content


@functools.cache
def damaged(name: str) -> st.SearchStrategy[bytes]:
    """Contents of files of a target, each with up to six edits."""
    edit = st.tuples(
        st.sampled_from(EDITS),
        st.integers(0, 2**16),
        st.integers(0, 2**16),
        st.binary(min_size=1, max_size=8),
    )
    edits = st.lists(edit, max_size=6)
    return st.builds(damage, st.sampled_from(TARGETS[name].make()), edits)


def check(name: str, content: bytes) -> None:
    """Raises AssertionError unless a file of that content is read, or refused as it must be: by an
    error that names it, without warnings, in little time and memory."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as folder:
        path = Path(folder) / target.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(target.wrap(content))
        start, memory = time.monotonic(), peak()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", DeprecationWarning)
                target.read(path)
        except (ValueError, OSError) as error:
            assert folder in str(error), f"no name of the file in: {error!r}"
            said = str(error)
            lines = said.split("\n")
            assert len(said) < 10_000 and lines == [printable(line, 10_000) for line in lines], said
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error
        assert time.monotonic() - start < SECONDS, f"{time.monotonic() - start:.1f} s"
        assert peak() - memory < MEMORY, f"{(peak() - memory) // 1024} MiB"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def try_many(name: str, count: int, seed: int | None = None) -> bytes | None:
    """The content that a target fails on, cut down, of so many; None where there is none. Without a
    seed the same ones each time."""
    failed: list[bytes] = []

    @hypothesis.settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(damaged(name))
    def attempt(content):
        try:
            check(name, content)
        except AssertionError:
            failed.append(content)
            raise

    try:
        (attempt if seed is None else hypothesis.seed(seed)(attempt))()
    except AssertionError:
        traceback.print_exc(limit=-3)
    return failed[-1] if failed else None


def corpus() -> list[tuple[str, Path]]:
    """(target, file) of what once failed."""
    return [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--examples", type=int, default=500, help="of a target before the next")
    flags = parser.parse_args()
    names = [flags.target] if flags.target else [*TARGETS]
    end, seed, tried = time.monotonic() + 60 * flags.minutes, time.time_ns(), 0
    found = 0
    while time.monotonic() < end:
        name = names[tried % len(names)]
        tried += 1
        if (content := try_many(name, flags.examples, seed + tried)) is not None:
            found += 1
            path = CORPUS / name / hashlib.sha256(content).hexdigest()[:16]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"{name}: {path}", file=sys.stderr, flush=True)
    print(f"{tried * flags.examples:,} files of {min(tried, len(names))} targets, {found} failures")


if __name__ == "__main__":
    main()
