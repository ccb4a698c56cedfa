"""TFDS builder of scikit-learn's handwritten digits: 1,797 greyscale images of 8 x 8 pixels."""

import numpy as np
import tensorflow_datasets as tfds

from purify.data.png_jpeg import encode_image

SPLIT_SEED = 0


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fixed, stratified splits of labels [n]: sorted positions of each split.

    Each class is shuffled and dealt out like cards to nine seats in turn, six of them train, one
    validation and two test: every split gets its share of every class, to within two images.
    """
    # RandomState, not default_rng: numpy promises that its numbers never change.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    seats = {"train": (3, 4, 5, 6, 7, 8), "validation": (0,), "test": (1, 2)}
    turn = np.arange(len(labels)) % 9
    return {name: np.sort(by_class[np.isin(turn, own)]) for name, own in seats.items()}


class Digits8x8(tfds.core.GeneratorBasedBuilder):
    """Splits train (1,197), validation (200), test (400), in the order of the original data."""

    name = "digits8x8"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing to download, and TFDS's look-up needs importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of scikit-learn's load_digits, 0..16 scaled to 0..255.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # slow to import, and needed only once

        values, labels = load_digits(return_X_y=True)
        images = np.uint8(np.rint(values * (255 / 16))).reshape(-1, 8, 8, 1)
        return {
            name: self._generate_examples(images, labels, indices)
            for name, indices in split_indices(labels).items()
        }

    def _generate_examples(self, images, labels, indices):
        for index in indices.tolist():
            yield (
                index,
                {
                    "id": f"digits_{index:04d}",
                    "image": encode_image(images[index], ".png"),
                    "label": int(labels[index]),
                },
            )
