"""Corrupted images from files: those of CIFAR-10-C, or others in their form."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from purify.checkpoint import weight_hash
from purify.corruptions import SEVERITIES
from purify.image_io import Shape, to_float


class CorruptionFiles:
    """A folder of <corruption>.npy, uint8 [5 m, H, W, C], and labels.npy, integers [5 m]: severity
    s is the s-th m of them, and always of the same m images (CIFAR-10-C: 10,000).

    names: the corruptions that are needed. shape: (H, W, C).

    Raises FileNotFoundError for a missing file, ValueError for one that does not fit. The files are
    mapped, not loaded, and never unpickled.
    """

    def __init__(self, folder: Path | str, names: Iterable[str], shape: Shape):
        self._folder = Path(folder).expanduser()
        if not self._folder.is_dir():
            raise FileNotFoundError(
                f"input '{folder}' is no folder: give one of <corruption>.npy and labels.npy, as "
                "CIFAR-10-C is"
            )
        names = list(names)
        if missing := [n for n in ("labels", *names) if not (self._folder / f"{n}.npy").is_file()]:
            raise FileNotFoundError(
                f"input '{folder}' lacks {', '.join(f'{name}.npy' for name in missing)}; "
                "config.corruptions.names says which corruptions are taken"
            )
        self._labels = self._open("labels")
        labels = self._labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
            raise ValueError(
                f"'{self._folder}/labels.npy' is {labels.dtype} {list(labels.shape)}, must be "
                "integers [5 m], m of each severity"
            )
        self._size = len(labels) // len(SEVERITIES)
        blocks = np.reshape(labels, (len(SEVERITIES), self._size))
        if not len(labels) or (blocks != blocks[0]).any():
            raise ValueError(
                f"'{self._folder}/labels.npy' does not have the same labels for each severity"
            )
        self._images = {name: self._open(name) for name in names}
        for name, images in self._images.items():
            if images.dtype != np.uint8 or images.shape != (len(labels), *shape):
                raise ValueError(
                    f"'{self._folder}/{name}.npy' is {images.dtype} {list(images.shape)}, must be "
                    f"uint8 {[len(labels), *shape]}: as many as labels, of the networks' shape"
                )

    def _open(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"'{path}' is damaged, or no array of numbers: {error}") from None

    def check(self, numbers: Sequence[int], labels: np.ndarray) -> None:
        """ValueError unless images of these numbers, from 0, are there and have these labels."""
        if max(numbers) >= self._size:
            raise ValueError(
                f"input '{self._folder}' has {self._size} images of each severity, but number "
                f"{max(numbers)} is needed"
            )
        if wrong := int((np.asarray(self._labels[list(numbers)]) != labels).sum()):
            raise ValueError(
                f"input '{self._folder}': labels.npy differs from the data set on {wrong} of "
                f"{len(labels)} images, so they are other images, or in another order"
            )

    def images(self, numbers: Sequence[int], *, corruption: str, severity: int) -> np.ndarray:
        """float32 [n, H, W, C] in [0, 1], of the images of these numbers."""
        rows = (severity - 1) * self._size + np.asarray(numbers)
        return to_float(self._images[corruption][rows])

    def hashes(self, numbers: Sequence[int], severities: Sequence[int]) -> dict[str, str]:
        """corruption -> SHA-256 of its images of these numbers and severities."""
        rows = [(s - 1) * self._size + np.asarray(numbers) for s in severities]
        return {
            name: weight_hash({str(s): images[at] for s, at in zip(severities, rows, strict=True)})
            for name, images in self._images.items()
        }
