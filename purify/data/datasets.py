"""Labelled images by data set, split and slice, held in memory as uint8.

The dataset index of an image is its position in the split that was asked for, slice included; it is
the image's identity wherever random keys are drawn.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import logging
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from purify.data.builders import Digits8x8, FashionMnistIdx
from purify.data.class_folders import find_classes
from purify.data.image_io import take_images, take_integers, to_uint8
from purify.data.png_jpeg import ENCODINGS, check_total, is_colour, memory_for_files, read_image
from purify.data.prepared import check_info, check_prepared
from purify.models.shapes import check_shape
from purify.random import check_seed
from purify.runtime.errors import FileError
from purify.runtime.messages import few, printable, shown
from purify.runtime.paths import as_given, is_of_system, plain_spelling
from purify.saving.arrays import NAMES, open_npz
from purify.saving.files import make_folders, scratch, sync_folder, sync_tree
from purify.saving.schema.atoms import MAX_CLASSES

SPLIT = r"\w[\w.-]*"  # what TFDS takes for the name of a split, and no slice
CORRUPTED = "cifar10_corrupted"  # TFDS's name of CIFAR-10-C


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one split."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int32 [n]
    class_names: tuple[str, ...]
    name: str
    split: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)


def load(
    name: str, split: str, *, data_dir: str | Path | None = None, path: str | Path | None = None
) -> Dataset:
    """Loads one split of a data set.

    Args:
      name: a key of DATASETS.
      split: 'train', 'test', ...; slices and sums as in TFDS: 'train[:90%]', 'train[:500]+test'.
      data_dir: folder of prepared TFDS data (config.data.dir); default the environment variable
        TFDS_DATA_DIR, then ~/tensorflow_datasets. digits8x8 and fashion_mnist_idx are prepared
        there on first use; the data sets of TFDS itself must have been.
      path: source of the data sets that have one (config.data.path): of `folder`, a folder
        <path>/<split>/<class>/*.png|jpg|jpeg; of `npz`, an archive of <split>_images (uint8, or
        float in [0, 1], kept to 8 bits), <split>_labels from 0 and, where a class has no image in
        any split, class_names; of `fashion_mnist_idx`, a folder of IDX files, by default where
        Debian's package puts them.

    Raises FileNotFoundError for missing data and ValueError for an unknown name or split, an empty
    slice, an unused path, classes that no image has, and damaged data or images of different sizes.
    """
    source = _source(name, data_dir, path)
    parts = _positions(name, split, source)
    records = itertools.chain.from_iterable(source.read(*part) for part in parts)
    count = sum(len(range_) for _, range_ in parts)
    return Dataset(*_stacked(records, count, source), source.class_names, name, split)


def load_corrupted(
    case: str, positions: Sequence[int] | slice = slice(None), *, data_dir: str | Path
) -> Dataset:
    """Loads images of CIFAR-10-C as TFDS prepares it, by their positions in the published order.

    case: a config of TFDS's cifar10_corrupted, such as 'fog_5'. data_dir: as of load.

    Raises FileNotFoundError for missing data, ValueError for damaged data and missing positions.
    """
    name, split = f"{CORRUPTED}/{case}", "test"
    source = _published(name, str(data_dir), None)
    try:
        places = places_by_key(split, source.splits[split].num_examples)[positions]
    except IndexError as error:
        raise ValueError(f"{name} in '{data_dir}' is not complete: {error}") from None
    records = source.read(split, places.tolist())
    return Dataset(*_stacked(records, len(places), source), source.class_names, name, split)


@functools.cache
def places_by_key(split: str, size: int) -> np.ndarray:
    """Where TFDS puts the records whose keys are 0, 1, ..., size - 1: int [size].

    It writes them in the order of the MD5 of the split's name followed by the key, whatever else
    the data set is. CIFAR-10 and its corrupted forms have the published positions as keys.
    """
    order = sorted(range(size), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())
    return np.argsort(order)


def members(name: str, split: str, **where) -> list[tuple[str, int]]:
    """(split without slice, position in it) of each image of `split`, in the order of load, whose
    other arguments are given by `where`: who an image is in all slices."""
    parts = _positions(name, split, _source(name, **where))
    return [(part, position) for part, range_ in parts for position in range_]


def published_positions(name: str, split: str, **where) -> list[int]:
    """The position of each image of `split` in the test (or training) set as it was published, in
    the order of load, whose other arguments are given by `where`.

    TFDS shuffles, but keeps the position in the ids of some data sets, as 'test_00163'; of all
    others it is taken to be the position in the split without slice.
    """
    source = _source(name, **where)
    parts = _positions(name, split, source)
    if source.ids is None:
        return [position for _, range_ in parts for position in range_]
    ids = [id_ for part, range_ in parts for id_ in source.ids(part, range_)]
    return [int(id_.rpartition("_")[2]) for id_ in ids]


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Dataset indices of one training step: int64 [batch_size], a function of seed and step alone.

    Each epoch is a fresh permutation cut into whole batches: it visits no example twice, and drops
    the num_examples % batch_size examples left over (other ones each epoch).

    Raises ValueError for a seed that is none (see purify.random.check_seed), a negative step, and
    unless 1 <= batch_size <= num_examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size {batch_size}: allowed are 1 to the {num_examples} examples")
    check_seed(seed)
    if step < 0:
        raise ValueError(f"step {step} must not be negative")
    epoch, position = divmod(step, num_examples // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    return order[position * batch_size :][:batch_size]


@dataclass(frozen=True)
class _Source:
    class_names: tuple[str, ...]
    splits: Mapping[str, tfds.core.SplitInfo]
    # (split, positions) -> triples of image uint8 [H, W, C], label, what errors call the image
    read: Callable[[str, Sequence[int]], Iterator[tuple[np.ndarray, int, str]]]
    # (split, positions) -> the images' ids, where the data set has them
    ids: Callable[[str, Sequence[int]], Iterator[str]] | None = None
    left_out: str = ""  # what errors say of what is there, but in no split
    memory: float = math.inf  # bytes that its images may take as float32


def _stacked(
    records: Iterable[tuple[np.ndarray, int, str]], count: int, source: _Source
) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of `count` records of a source; ValueError unless of one shape, and
    with labels of its classes."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for image, label, where in records:
        check_shape(image.shape, where, images[0].shape if images else None)
        check_total(4 * count * image.size, source.memory, where)
        if not 0 <= label < len(source.class_names):
            raise FileError(f"{where} has a label {label} of {len(source.class_names)} classes")
        images.append(image)
        labels.append(label)
    return np.stack(images), np.array(labels, np.int32)


def _source(name: str, data_dir: str | Path | None, path: str | Path | None) -> _Source:
    if name not in DATASETS:
        raise ValueError(f"config.data.name '{name}' is unknown: choose of {', '.join(DATASETS)}")
    if path and name not in TAKES_PATH:
        raise ValueError(
            f"config.data.path '{path}' is not used by {name}: unset it, or choose of "
            f"{', '.join(TAKES_PATH)} as config.data.name"
        )
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return DATASETS[name](name, os.path.expanduser(data_dir), path)


def _positions(name: str, split: str, source: _Source) -> list[tuple[str, range]]:
    """TFDS's own reading of a split with slices: (split, positions) of at least one image."""
    splits = source.splits
    listed = [f"{key} ({info.num_examples})" for key, info in splits.items()]
    sizes = few(listed, limit=NAMES) + source.left_out
    try:
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except Exception as error:  # TFDS raises ValueError, NotImplementedError, AssertionError
        reason = printable(str(error).strip().splitlines()[-1].rstrip("."))
        raise ValueError(f"split '{split}' of {name}: {reason}; it has {sizes}") from error
    parts = [
        (part.splitname, range(splits[part.splitname].num_examples)[part.from_ : part.to])
        for part in slices
    ]
    if not any(positions for _, positions in parts):
        raise ValueError(f"split '{split}' of {name} is empty: widen the slice; it has {sizes}")
    return parts


def _split_infos(sizes: Mapping[str, int]) -> dict[str, tfds.core.SplitInfo]:
    return {
        split: tfds.core.SplitInfo(name=split, shard_lengths=[size], num_bytes=0)
        for split, size in sizes.items()
    }


def _digits(name: str, data_dir: str, path: str | Path | None) -> _Source:
    return _from_builder(_prepared(Digits8x8, data_dir))


def _fashion(name: str, data_dir: str, path: str | Path | None) -> _Source:
    make = functools.partial(FashionMnistIdx, path=path) if path else FashionMnistIdx
    return _from_builder(_prepared(make, data_dir))


def _published(name: str, data_dir: str, path: str | Path | None) -> _Source:
    check_prepared(Path(data_dir) / name)
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=plain_spelling(data_dir))
            prepared = builder.is_prepared()
    except Exception as error:  # TFDS raises many kinds for descriptions that are damaged
        if is_of_system(error):
            raise
        raise FileError(
            f"'{shown(Path(data_dir) / name)}' is damaged: move that folder away and prepare it "
            "anew"
        ) from error
    if not prepared:
        where = as_given(str(builder.data_dir))
        raise FileNotFoundError(f"{name} is not in '{where}': {_how_to(name, data_dir)}")
    return _from_builder(builder)


def _how_to(name: str, data_dir: str) -> str:
    given = "--input" if name.startswith(CORRUPTED) else "config.data.dir or TFDS_DATA_DIR"
    program = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={data_dir!r}, "
        "file_format='array_record').download_and_prepare()"
    )
    quoted = re.sub(r'(["$`\\])', r"\\\1", program)  # what a shell does not leave alone there
    return (
        f"set {given} to a copy in array_record format, or prepare one "
        "(this step alone needs `pip install -r requirements-tensorflow.txt`): "
        f'python -c "{quoted}"'
    )


def _from_builder(builder: Any) -> _Source:
    """The data of a prepared TFDS builder. Decoded here: TFDS would ask for OpenCV."""

    def records_of(split, positions):
        where = f"{builder.name} in '{as_given(str(builder.data_dir))}'"
        try:
            source = builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            return source.__getitems__(positions), where
        except NotImplementedError as error:
            raise ValueError(
                f"{where} is a {builder.info.file_format.value} copy, which cannot be read: "
                f"{_how_to(name, '<another folder>')}"
            ) from error
        except Exception as error:  # whatever the record reader makes of missing or damaged files
            if is_of_system(error):
                raise
            raise ValueError(
                f"{where} is damaged: move that folder away and prepare it anew"
            ) from error

    def read(split, positions):
        records, where = records_of(split, positions)
        for record in records:
            yield read_image(record["image"], where), record["label"], where

    def ids(split, positions):
        for record in records_of(split, positions)[0]:
            yield record["id"].decode()

    name = "/".join(filter(None, (builder.name, builder.info.config_name)))
    features, splits = builder.info.features, builder.info.splits
    names, has_ids = tuple(features["label"].names), "id" in features
    sizes = {split: info.num_examples for split, info in splits.items()}
    memory = check_info(Path(builder.data_dir), as_given(str(builder.data_dir)), sizes, names)
    return _Source(names, splits, read, ids if has_ids else None, memory=memory)


def _prepared(make: Callable[..., Any], data_dir: str) -> Any:
    """The TFDS builder that make(data_dir=...) gives, its data prepared on first use.

    Preparation happens in a private folder that is renamed into place once it is on disk: of
    several processes that prepare at once the first wins, and no reader ever sees a part.
    """
    spelled = plain_spelling(data_dir)
    with _quiet():
        builder = make(data_dir=spelled)
        if builder.is_prepared():
            return builder
        try:
            make_folders(Path(data_dir))
            with scratch(Path(spelled) / "preparing") as private:
                prepared = make(data_dir=str(private))
                prepared.download_and_prepare(file_format="array_record")
                sync_tree(Path(prepared.data_dir))
                make_folders(Path(builder.data_dir).parent)
                try:
                    os.rename(prepared.data_dir, builder.data_dir)
                    sync_folder(Path(builder.data_dir).parent)
                except OSError:
                    if not make(data_dir=spelled).is_prepared():  # else another process was first
                        raise
        except OSError as error:
            raise ValueError(
                f"config.data.dir '{data_dir}' does not take the prepared {builder.name} "
                f"({error}): set it to a folder that can be written"
            ) from error
        return make(data_dir=spelled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS, which prints, logs warnings and draws progress bars while it prepares data."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _existing(name: str, path: str | Path | None, form: str) -> Path:
    if not path:
        raise ValueError(f"config.data.path is not set: {name} needs {form}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"config.data.path '{shown(path)}' does not exist: {name} needs {form}"
        )
    return path


def _folder(name: str, data_dir: str, path: str | Path | None) -> _Source:
    """Labelled folders, see `find_classes`.

    Greyscale files among colour ones, as in Tiny ImageNet, get three equal channels.
    """
    form = f"a folder <split>/<class>/*, files {', '.join(ENCODINGS)}"
    root = _existing(name, path, form)
    where = f"config.data.path '{shown(root)}'"
    if not root.is_dir():
        raise ValueError(f"{where} is no folder: {name} needs {form}")
    found = find_classes(root, where)
    left_out = found.left_out and f"; left out: {found.left_out}"
    if not found.files:
        raise ValueError(f"{where} holds no such files: {name} needs {form}{left_out}")
    colour = any(is_colour(file) for listed in found.files.values() for file, _ in listed)

    def read(split, positions):
        for file, label in (found.files[split][position] for position in positions):
            where = f"config.data.path: '{shown(file)}'"
            image = read_image(file, where)
            yield np.repeat(image, 3 if colour and image.shape[-1] == 1 else 1, -1), label, where

    sizes = {split: len(files) for split, files in found.files.items()}
    memory = memory_for_files(f.stat().st_size for each in found.files.values() for f, _ in each)
    return _Source(found.names, _split_infos(sizes), read, left_out=left_out, memory=memory)


def _npz(name: str, data_dir: str, path: str | Path | None) -> _Source:
    """An .npz archive; its classes are those of all splits, see `_npz_classes`."""
    form = "an .npz archive of arrays <split>_images and <split>_labels"
    path = _existing(name, path, form)
    where = f"config.data.path '{shown(path)}'"
    with open_npz(path, where) as archive:
        parts = [key for key in archive.names if key.endswith("_images")]
        splits = [key.removesuffix("_images") for key in parts]
        if not splits:
            held = few(archive.names, limit=NAMES)
            raise ValueError(f"{where} holds arrays [{held}]: {name} needs {form}")
        for split in splits:
            if not re.fullmatch(SPLIT, split):
                raise FileError(f"{where}: {printable(split)!r} is no name of a split")
        arrays = archive.read(*parts) | archive.read(
            *(f"{split}_labels" for split in splits), optional=("class_names",)
        )
    images = {split: take_images(arrays, f"{split}_images", where) for split in splits}
    sizes = {split: len(array) for split, array in images.items()}
    labels = {
        split: take_integers(arrays, f"{split}_labels", where, size, MAX_CLASSES - 1)
        for split, size in sizes.items()
    }
    names = _npz_classes(arrays, np.unique(np.concatenate([*labels.values()])).tolist(), where)

    def read(split, positions):
        for position in positions:
            image = to_uint8(images[split][position])
            yield image, int(labels[split][position]), f"{where}: {split}_images"

    return _Source(names, _split_infos(sizes), read)


def _npz_classes(
    arrays: Mapping[str, np.ndarray], labels: list[int], where: str
) -> tuple[str, ...]:
    """The array class_names, or else the labels that some image has: int [n], sorted.

    ValueError where numbers are left out between these, as labels such as 1 to 3 or 255 number no
    classes.
    """
    count = labels[-1] + 1
    if (names := arrays.get("class_names")) is not None:
        texts = _texts(names) if names.dtype.kind == "U" else []
        composed = [unicodedata.normalize("NFC", text) for text in texts]
        if names.ndim != 1 or not count <= len(set(composed)) == len(texts) <= MAX_CLASSES:
            raise ValueError(
                f"{where}: class_names is {names.dtype} {list(names.shape)}: give {count} or more "
                "different texts, one for each label from 0"
            )
        return tuple(composed)
    known = set(labels)
    missing = [*itertools.islice((label for label in range(count) if label not in known), 4)]
    if missing:
        raise ValueError(
            f"{where} has labels up to {labels[-1]}, but no image of label {few(missing)} in any "
            "split: number the classes from 0 without gaps, or name all of them in an array "
            "class_names"
        )
    return tuple(map(str, labels))


def _texts(array: np.ndarray) -> list[str]:
    """The texts of an array of them; none where it holds numbers that are no characters."""
    numbers = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    codes = np.frombuffer(array.tobytes(), numbers)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        return []
    return array.ravel().tolist()


DATASETS: dict[str, Callable[[str, str, str | Path | None], _Source]] = {
    "digits8x8": _digits,
    "fashion_mnist_idx": _fashion,
    "cifar10": _published,
    "cifar100": _published,
    "mnist": _published,
    "svhn_cropped": _published,
    "folder": _folder,
    "npz": _npz,
}
TAKES_PATH = ("fashion_mnist_idx", "folder", "npz")
