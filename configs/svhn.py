"""SVHN, cropped digits: configs/cifar10.py and its variants with another data set. No number was
measured yet."""

from configs import cifar10


def get_config(variant: str = ""):
    config = cifar10.get_config(variant, name="svhn")
    config.data.name = "svhn_cropped"
    # A mirrored digit is another sign.
    config.classifier.train.augment = "crop"
    config.score.train.augment = "none"
    return config
