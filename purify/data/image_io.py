"""Images in and out: a folder of PNG and JPEG files, an .npy array or an .npz archive.

Everything that can be wrong with the files is found on opening, before any computing starts.
"""

import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from purify.data.png_jpeg import (
    ENCODINGS,
    check_total,
    encode_image,
    image_files,
    memory_for_files,
    other_contents,
    read_image,
)
from purify.models.shapes import Shape, check_shape
from purify.runtime.messages import few, shown
from purify.saving.arrays import NAMES, load_npz, open_npz, read_npy
from purify.saving.files import making, writing
from purify.saving.schema.atoms import MAX_CLASSES

Writer = Callable[[Path, np.ndarray], None]  # (path, images): one of the _write_ functions

MAX_INTEGER = 2**31 - 1  # labels and dataset indices are int32


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Opened images, and the way to write their purified versions in the same form."""

    images: np.ndarray  # float32 [n, H, W, C] in [0, 1]
    output: Path
    writer: Writer

    def write(self, images: np.ndarray) -> None:
        """Writes float [n, H, W, C] in [0, 1], in the order of `images`, all at once or not at all.

        Raises ValueError for another shape, values outside [0, 1], or an output that has appeared.
        """
        images = np.asarray(images)
        check_images(images, "purified", self.images.shape[1:])
        if images.shape != self.images.shape:
            raise ValueError(
                f"purified: {len(images)} images for an input of {len(self.images)}: pass one each"
            )
        self.writer(self.output, images)


def open_images(path: str | Path, output: str | Path, image_shape: Shape | None) -> ImageSource:
    """Reads images and checks that `output` can be written.

    Args:
      path: a folder of .png, .jpg and .jpeg files (others are left alone), read in order of name
        and written under the same names (PNG losslessly, JPEG at its best quality); an .npy array
        [n, H, W, C]; or an .npz archive with such an array `images`, whose other arrays are kept.
        Arrays are uint8, or float in [0, 1], and keep their dtype.
      output: a path of the same kind, which must not exist, in a folder that does.
      image_shape: (H, W, C) of every image, None for any that all of them have.

    Raises FileNotFoundError for a missing path, ValueError for anything else that does not fit.
    """
    path, output = Path(path).expanduser(), Path(output).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"input '{shown(path)}' does not exist: give a folder, .npy or .npz file"
        )
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind not in READERS:
        raise ValueError(
            f"input '{shown(path)}' is of no known kind: give one of {', '.join(READERS)}"
        )
    if kind != "folder" and output.suffix.lower() != kind:
        raise ValueError(
            f"output '{shown(output)}' must end in {kind}, as the input '{shown(path)}' does"
        )
    _check_absent(output)
    if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise ValueError(
            f"output '{shown(output)}' needs a writable folder '{shown(output.parent)}': make it"
        )
    images, writer = READERS[kind](path, image_shape)
    return ImageSource(to_float(images), output, writer)


def load_labelled_npz(
    path: str | Path, image_shape: Shape, *, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads labelled, for example attacked, images from an .npz archive.

    The archive holds `images` uint8 or float [n, H, W, C] in [0, 1], integer `labels` [n] from 0
    (below num_classes, by default MAX_CLASSES) and, optionally, integer `index` [n]: each image's
    own position in its data set (default 0, 1, ...).

    Returns images float32 [n, H, W, C] in [0, 1], labels int32 [n], index int32 [n].
    Raises FileNotFoundError for a missing file, ValueError for anything else that does not fit.
    """
    name = f"input '{shown(path)}'"
    with open_npz(path, name) as archive:
        arrays = archive.read("images") | archive.read("labels", optional=("index",))
    images = take_images(arrays, "images", name, image_shape)
    highest = (num_classes or MAX_CLASSES) - 1
    labels = take_integers(arrays, "labels", name, len(images), highest)
    arrays.setdefault("index", np.arange(len(images)))
    index = take_integers(arrays, "index", name, len(images), MAX_INTEGER)
    if len(np.unique(index)) < len(index):
        raise ValueError(f"{name}: index repeats a value: give each image a position of its own")
    return to_float(images), labels, index


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0..255, or float in [0, 1], to float32 in [0, 1]."""
    scale = 255 if images.dtype == np.uint8 else 1
    return images.astype(np.float32) / np.float32(scale)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float in [0, 1] to the nearest uint8 0..255; uint8 stays; the inverse of `to_float`."""
    if images.dtype == np.uint8:
        return images
    return np.rint(images.astype(np.float32) * 255).astype(np.uint8)


def take_images(
    arrays: Mapping[str, np.ndarray], key: str, name: str, image_shape: Shape | None = None
) -> np.ndarray:
    """arrays[key], checked by `check_images`; ValueError where there is none."""
    _require(arrays, key, name)
    check_images(arrays[key], f"{name}: {key}", image_shape)
    return arrays[key]


def take_integers(
    arrays: Mapping[str, np.ndarray], key: str, name: str, length: int, highest: int
) -> np.ndarray:
    """arrays[key] as int32 [length]; ValueError unless it holds integers from 0 to `highest`."""
    _require(arrays, key, name)
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.shape != (length,):
        raise ValueError(
            f"{name}: {key} is {array.dtype} {list(array.shape)}: give integers [{length}], one "
            "for each image"
        )
    if array.min() < 0 or array.max() > highest:
        raise ValueError(
            f"{name}: {key} has values from {array.min()} to {array.max()}: allowed are 0 to "
            f"{highest}"
        )
    return array.astype(np.int32)


def _require(arrays: Mapping[str, np.ndarray], key: str, name: str) -> None:
    if key not in arrays:
        raise ValueError(f"{name} holds no array {key}, only [{few(arrays, limit=NAMES)}]: add it")


def check_images(images: np.ndarray, name: str, image_shape: Shape | None = None) -> None:
    """Raises ValueError unless images is [n > 0, *image_shape], uint8 or float in [0, 1], of 1 or 3
    channels."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {images.dtype}: give uint8, or float in [0, 1]")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name} has shape {list(images.shape)}: give [n, H, W, C], none of them 0"
        )
    check_shape(images.shape[1:], name, image_shape)
    if images.dtype.kind == "f" and not ((images >= 0) & (images <= 1)).all():  # False for NaN
        raise ValueError(
            f"{name} has values from {images.min()} to {images.max()}: give uint8, or float in "
            "[0, 1] without NaN"
        )


def _read_folder(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    files = image_files(path)
    if not files:
        raise ValueError(
            f"input '{shown(path)}' holds no {', '.join(ENCODINGS)} files: it "
            f"{other_contents(path)}"
        )
    images: list[np.ndarray] = []
    allowed = memory_for_files(file.stat().st_size for file in files)
    for file in files:
        name = f"input '{shown(file)}'"
        images.append(read_image(file, name, image_shape or (images[0].shape if images else None)))
        check_total(4 * len(files) * images[0].size, allowed, f"input '{shown(path)}'")
    return np.stack(images), partial(_write_folder, [file.name for file in files])


def _write_folder(names: list[str], output: Path, images: np.ndarray) -> None:
    with making(output) as folder:
        for name, image in zip(names, to_uint8(images), strict=True):
            (folder / name).write_bytes(encode_image(image, Path(name).suffix.lower()))


def _read_npy(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    name = f"input '{shown(path)}'"
    array = read_npy(path, name)
    check_images(array, name, image_shape)
    return array, partial(_write_npy, array.dtype)


def _write_npy(dtype: np.dtype, output: Path, images: np.ndarray) -> None:
    with writing(output, new=True) as file:
        np.save(file, _as_dtype(images, dtype), allow_pickle=False)


def _read_npz(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    name = f"input '{shown(path)}'"
    arrays = load_npz(path, name)
    return take_images(arrays, "images", name, image_shape), partial(_write_npz, arrays)


def _write_npz(arrays: Mapping[str, np.ndarray], output: Path, images: np.ndarray) -> None:
    arrays = {**arrays, "images": _as_dtype(images, arrays["images"].dtype)}
    # np.savez refuses an array named `file`
    with writing(output, new=True) as file, zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _as_dtype(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return to_uint8(images) if dtype == np.uint8 else images.astype(dtype)


READERS = {"folder": _read_folder, ".npy": _read_npy, ".npz": _read_npz}


def _check_absent(output: Path) -> None:
    if os.path.lexists(output):
        raise ValueError(
            f"output '{shown(output)}' exists already: name a new path or move it away"
        )
