"""TFDS builder of Fashion-MNIST from the four IDX files of its authors, gzipped or not."""

import contextlib
import gzip
import hashlib
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tensorflow_datasets as tfds

from purify.data.png_jpeg import encode_image
from purify.runtime.errors import FileError
from purify.runtime.messages import printable, shown
from purify.runtime.paths import is_of_system
from purify.saving.files import open_file, read_bytes

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FILES = {  # split: images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_VALUES = 2**29  # pixels of an IDX file
CLASS_NAMES = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag".split() + [
    "Ankle boot"
]


def idx_file(folder: Path, name: str) -> Path:
    """The IDX file of that name, or its gzipped form; FileNotFoundError says how to get it."""
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"config.data.path '{folder}' holds no {name} or {name}.gz: "
        "apt-get install dataset-fashion-mnist, or set config.data.path to a folder with them"
    )


def read_idx(file: Path, ndim: int) -> np.ndarray:
    """Reads uint8 of `ndim` axes: magic number 0, 0, 8, ndim; sizes as big-endian uint32; bytes.

    Raises ValueError for a damaged file, and for one of more than MAX_VALUES; no more is inflated
    than its header says.
    """
    try:
        with open_file(file, follow=True) as content, _inflated(content, file) as values:
            if values.read(4) != bytes((0, 0, 8, ndim)):
                raise ValueError("wrong magic number")
            shape = np.frombuffer(values.read(4 * ndim), ">u4", count=ndim).tolist()
            count = math.prod(shape)
            if count > MAX_VALUES:
                raise ValueError(f"{count:,} values; allowed are {MAX_VALUES:,}")
            data = values.read(count + 1)
        return np.frombuffer(data, np.uint8).reshape(shape)
    except Exception as error:  # gzip raises EOFError, OSError, zlib.error; numpy ValueError
        if is_of_system(error):
            raise
        raise FileError(
            f"config.data.path: '{shown(file)}' is no IDX file of {ndim} axes, or is damaged "
            f"({printable(error, limit=100)}): replace it"
        ) from error


def _inflated(content: BinaryIO, file: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    if file.suffix == ".gz":
        return gzip.GzipFile(fileobj=content)  # type: ignore[return-value]
    return contextlib.nullcontext(content)


class FashionMnistIdx(tfds.core.GeneratorBasedBuilder):
    """Splits train and test as in the IDX files of the folder `path`, in the files' order.

    The prepared copy lies in a folder named after the files' content, so other files never read a
    stale copy. Raises FileNotFoundError where a file is missing.
    """

    name = "fashion_mnist_idx"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing to download, and TFDS's look-up needs importlib_resources

    def __init__(self, *, path: str | Path = DEBIAN_FOLDER, **kwargs):
        folder = Path(path).expanduser()
        self._files = {
            split: [idx_file(folder, name) for name in names] for split, names in FILES.items()
        }
        digest = hashlib.sha256()
        for file in sum(self._files.values(), []):
            digest.update(read_bytes(file, follow=True))
        config = tfds.core.BuilderConfig(name=digest.hexdigest()[:8], version=self.VERSION)
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): clothes, 28 x 28, grey.",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, *self._read(split)) for split in FILES}

    def _read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 28, 28, 1] and labels uint8 [n] of one split, checked."""
        image_file, label_file = self._files[split]
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape != (len(labels), 28, 28) or max(labels, default=10) > 9:
            raise ValueError(
                f"config.data.path: '{image_file}' holds images {list(images.shape)} and "
                f"'{label_file.name}' {len(labels)} labels: give [n, 28, 28] and n labels 0..9"
            )
        return images[..., None], labels

    def _generate_examples(self, split, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": encode_image(image, ".png"),
                    "label": int(label),
                },
            )
