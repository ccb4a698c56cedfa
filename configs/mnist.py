"""MNIST, 28 x 28: configs/cifar10.py and its variants with another data set, Linf 0.3. No number
was measured yet."""

from configs import cifar10
from configs.base import set_eps

EPS = 0.3


def get_config(variant: str = "", name: str = "mnist"):
    """name: of the config that takes this one with another data set."""
    config = cifar10.get_config(variant, name=name)
    config.data.name = "mnist"
    config.classifier.network.update(mean=(0.1307,), std=(0.3081,))
    # A mirrored digit is another sign.
    config.classifier.train.augment = "crop"
    config.score.train.augment = "none"
    set_eps(config, EPS)
    return config
