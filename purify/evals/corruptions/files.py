"""Corrupted images from files: CIFAR-10-C's, TFDS's copy of them, or others in the first's form."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from purify.data import datasets
from purify.data.corruptions import SEVERITIES
from purify.data.image_io import to_float
from purify.models.shapes import Shape, check_shape
from purify.runtime.errors import FileError
from purify.runtime.messages import few, shown
from purify.saving.arrays import map_npy
from purify.saving.checkpoint import weight_hash

# What TFDS calls otherwise.
TFDS_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}


class CorruptionFiles:
    """A folder of corrupted images in either form: _ArrayFiles, or _TfdsFiles where it has
    cifar10_corrupted/.

    names: the corruptions that are needed. shape: (H, W, C).

    Raises FileNotFoundError for a missing file, ValueError for one that does not fit. Numbers of
    images, from 0, are positions in the data set as it was published, whichever the form.
    """

    def __init__(self, folder: Path | str, names: Iterable[str], shape: Shape):
        self._folder, self._names = Path(folder).expanduser(), list(names)
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"input '{shown(folder)}' is no folder: give one of <corruption>.npy and "
                f"labels.npy, as CIFAR-10-C is, or one of TFDS that has {datasets.CORRUPTED}"
            )
        form = _TfdsFiles if (self._folder / datasets.CORRUPTED).is_dir() else _ArrayFiles
        if missing := form.missing(self._folder, self._names):
            raise FileNotFoundError(
                f"input '{shown(folder)}' lacks {few(missing)}; config.corruptions.names says "
                "which corruptions are taken"
            )
        self._files = form(self._folder, self._names, shape)

    def check(self, numbers: Sequence[int], labels: np.ndarray) -> None:
        """ValueError unless images of these numbers are there and have these labels."""
        known = self._files.labels
        if max(numbers) >= len(known):
            raise ValueError(
                f"input '{shown(self._folder)}' has {len(known)} images of each severity, but "
                f"number {max(numbers)} is needed"
            )
        if wrong := int((known[list(numbers)] != labels).sum()):
            raise ValueError(
                f"input '{shown(self._folder)}': its labels differ from the data set on {wrong} of "
                f"{len(labels)} images, so they are other images, or in another order"
            )

    def images(self, numbers: Sequence[int], *, corruption: str, severity: int) -> np.ndarray:
        """float32 [n, H, W, C] in [0, 1], of the images of these numbers."""
        return to_float(self._files.levels(numbers, corruption, severity))

    def hashes(self, numbers: Sequence[int], severities: Sequence[int]) -> dict[str, str]:
        """corruption -> SHA-256 of its images of these numbers and severities."""
        return {
            name: weight_hash({str(s): self._files.levels(numbers, name, s) for s in severities})
            for name in self._names
        }


class _ArrayFiles:
    """<corruption>.npy, uint8 [5 m, H, W, C], and labels.npy, integers [5 m]: severity s is the
    s-th m of them, and always of the same m images (CIFAR-10-C: 10,000).

    The files are mapped, not loaded, and never unpickled.
    """

    def __init__(self, folder: Path, names: Sequence[str], shape: Shape):
        self._folder = folder
        labels = self._open("labels")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
            raise ValueError(
                f"'{shown(folder)}/labels.npy' is {labels.dtype} {list(labels.shape)}, must be "
                "integers [5 m], m of each severity"
            )
        blocks = np.reshape(labels, (len(SEVERITIES), -1))
        if not len(labels) or (blocks != blocks[0]).any():
            raise ValueError(
                f"'{shown(folder)}/labels.npy' does not have the same labels for each severity"
            )
        self.labels = blocks[0]
        self._images = {name: self._open(name) for name in names}
        for name, images in self._images.items():
            if images.dtype != np.uint8 or images.shape != (len(labels), *shape):
                raise ValueError(
                    f"'{shown(folder)}/{name}.npy' is {images.dtype} {list(images.shape)}, must "
                    f"be uint8 {[len(labels), *shape]}: as many as labels, of the networks' shape"
                )

    @staticmethod
    def missing(folder: Path, names: Sequence[str]) -> list[str]:
        files = [f"{name}.npy" for name in ("labels", *names)]
        return [file for file in files if not (folder / file).is_file()]

    def levels(self, numbers: Sequence[int], name: str, severity: int) -> np.ndarray:
        return self._images[name][(severity - 1) * len(self.labels) + np.asarray(numbers)]

    def _open(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}.npy"
        array = map_npy(path, f"'{shown(path)}'")
        if array.dtype.kind not in "biuf":
            raise FileError(f"'{shown(path)}' is damaged, or no array of numbers: {array.dtype}")
        return array


class _TfdsFiles:
    """cifar10_corrupted/<corruption>_<severity>, uint8 [m, H, W, C] and labels [m] each; only cases
    that are asked for need to be there.

    TFDS shuffles them and keeps no ids. `data.load_corrupted` undoes it; that labels agree, of one
    case with another and with the data set (`CorruptionFiles.check`), shows that it did.
    """

    def __init__(self, folder: Path, names: Sequence[str], shape: Shape):
        self._folder, self._shape = folder, shape
        self._first = _tfds_cases(folder, names[0])[0]
        self.labels = self._load(self._first, slice(None)).labels

    @staticmethod
    def missing(folder: Path, names: Sequence[str]) -> list[str]:
        return [
            f"{datasets.CORRUPTED}/{_tfds_case(name, '*')}"
            for name in names
            if not _tfds_cases(folder, name)
        ]

    def levels(self, numbers: Sequence[int], name: str, severity: int) -> np.ndarray:
        case = _tfds_case(name, severity)
        found = self._load(case, numbers)
        if (found.labels != self.labels[list(numbers)]).any():
            raise ValueError(
                f"input '{shown(self._folder)}': {case} has other labels than {self._first}, so "
                "they are not of the same images: prepare them anew"
            )
        return found.images

    def _load(self, case: str, positions: Sequence[int] | slice) -> datasets.Dataset:
        found = datasets.load_corrupted(case, positions, data_dir=self._folder)
        check_shape(
            found.images.shape[1:], f"input '{shown(self._folder)}': {found.name}", self._shape
        )
        return found


def _tfds_case(name: str, severity: int | str) -> str:
    return f"{TFDS_NAMES.get(name, name)}_{severity}"


def _tfds_cases(folder: Path, name: str) -> list[str]:
    """The cases of a corruption that are there."""
    found = (folder / datasets.CORRUPTED).glob(_tfds_case(name, "[1-5]"))
    return sorted(path.name for path in found)
