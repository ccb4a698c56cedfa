"""SVHN, cropped digits: configs/cifar10.py and its variants with another data set. No number was
measured yet."""

from configs import cifar10


def get_config(variant: str = ""):
    config = cifar10.get_config(variant)
    config.data.name = "svhn_cropped"
    for role in ("classifier", "score"):
        config[role].train.augment = "none"  # a mirrored digit is another sign
    return config
