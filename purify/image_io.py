"""Images in and out: a folder of PNG and JPEG files, an .npy array or an .npz archive.

Everything that can be wrong with the files is found on opening, before any computing starts.
"""

import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from purify.messages import shown
from purify.paths import is_of_system
from purify.png_jpeg import ENCODINGS, encode_image, image_files, other_contents, read_image

Shape = tuple[int, ...]  # (H, W, C)
Writer = Callable[[Path, np.ndarray], None]  # (path, images): one of the _write_ functions

MAX_INTEGER = 2**31 - 1  # labels and dataset indices are int32
MAX_CLASSES = 100_000  # a label beyond is a mistake, and a name for each up to it fills the memory
CHANNELS = (1, 3)  # greyscale and RGB, as figures and files can show them


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
        with _all_or_nothing(self.output) as temporary:
            self.writer(temporary, images)


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
    arrays = load_npz(path, name)
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


def load_npz(path: str | Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz archive; `name` is what errors call it.

    Raises OSError where it is not there or cannot be read, ValueError where it is damaged or holds
    anything but plain arrays (Python objects would be unpickled, which runs code).
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist: give an .npz file")
    with path.open("rb") as file:  # np.load would leave the file of a damaged archive open
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise TypeError("a member that is no array")
        except Exception as error:  # zip, zlib and numpy each raise their own kinds for damage
            if is_of_system(error):
                raise
            raise ValueError(
                f"{name} is no .npz archive of plain arrays, or is damaged: save it anew"
            ) from error
    return arrays


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
        raise ValueError(f"{name} holds no array {key}, only [{', '.join(arrays)}]: add it")


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


def check_shape(shape: Shape, name: str, expected: Shape | None) -> None:
    """Raises ValueError where an image's shape (H, W, C) is not the expected one, or its C none of
    CHANNELS."""
    if shape[-1] not in CHANNELS:
        hint = "move its first axis last" if shape[0] in CHANNELS else "convert it"
        raise ValueError(
            f"{name} is {_size(shape)} (height x width x channels): allowed are 1 channel, "
            f"greyscale, and 3, RGB; {hint}"
        )
    if expected is not None and tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} is {_size(shape)}, expected {_size(expected)}: resize or convert it"
        )


def _size(shape: Shape) -> str:
    colours = {1: " greyscale", 3: " RGB"}.get(shape[-1], "")
    return "x".join(map(str, shape)) + colours


def _read_folder(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    files = image_files(path)
    if not files:
        raise ValueError(
            f"input '{shown(path)}' holds no {', '.join(ENCODINGS)} files: it "
            f"{other_contents(path)}"
        )
    images = []
    for file in files:
        name = f"input '{shown(file)}'"
        images.append(read_image(file, name))
        check_shape(images[-1].shape, name, image_shape or images[0].shape)
    return np.stack(images), partial(_write_folder, [file.name for file in files])


def _write_folder(names: list[str], path: Path, images: np.ndarray) -> None:
    path.mkdir()
    for name, image in zip(names, to_uint8(images), strict=True):
        (path / name).write_bytes(encode_image(image, Path(name).suffix.lower()))


def _read_npy(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    name = f"input '{shown(path)}'"
    with path.open("rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # numpy raises ValueError, EOFError, OSError, ... for damage
            if is_of_system(error):
                raise
            raise ValueError(
                f"{name} is no plain .npy array, or is damaged: save it anew"
            ) from error
    check_images(array, name, image_shape)
    return array, partial(_write_npy, array.dtype)


def _write_npy(dtype: np.dtype, path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, np.save would append .npy to it
        np.save(file, _as_dtype(images, dtype), allow_pickle=False)


def _read_npz(path: Path, image_shape: Shape | None) -> tuple[np.ndarray, Writer]:
    name = f"input '{shown(path)}'"
    arrays = load_npz(path, name)
    return take_images(arrays, "images", name, image_shape), partial(_write_npz, arrays)


def _write_npz(arrays: Mapping[str, np.ndarray], path: Path, images: np.ndarray) -> None:
    arrays = {**arrays, "images": _as_dtype(images, arrays["images"].dtype)}
    with zipfile.ZipFile(path, "w") as archive:  # np.savez refuses an array named `file`
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


@contextmanager
def _all_or_nothing(output: Path) -> Iterator[Path]:
    """Yields a temporary sibling path that becomes `output` if, and only if, the block succeeds."""
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        _check_absent(output)  # it may have appeared since it was opened
        os.rename(temporary, output)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise
