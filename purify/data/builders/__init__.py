"""TFDS builders of the data sets that need no download; neither needs TensorFlow to write.

Images are handed over as PNG files (given arrays, TFDS would encode them with TensorFlow), and
examples keep their order (no shuffling), so that a dataset index is a position known beforehand.
"""

from purify.data.builders.digits8x8 import Digits8x8
from purify.data.builders.fashion_mnist_idx import FashionMnistIdx

__all__ = ["Digits8x8", "FashionMnistIdx"]
