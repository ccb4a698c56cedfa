"""Fashion-MNIST, 28 x 28: configs/mnist.py and its variants on IDX files, Linf 0.1.

Debian's package brings the files: `apt-get install dataset-fashion-mnist`; --config.data.path=DIR
reads them from elsewhere. No number was measured yet.
"""

from configs import mnist
from configs.base import set_eps

EPS = 0.1


def get_config(variant: str = ""):
    config = mnist.get_config(variant, name="fashion_mnist")
    config.data.name = "fashion_mnist_idx"
    config.classifier.network.update(mean=(0.2860,), std=(0.3530,))
    config.classifier.train.augment = "flip_crop"
    config.score.train.augment = "flip"
    set_eps(config, EPS)
    return config
