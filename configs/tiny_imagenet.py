"""Tiny ImageNet, 64 x 64, 200 classes: configs/cifar10.py and its variants on a folder of images.

Its archive (cs231n.stanford.edu/tiny-imagenet-200.zip) keeps the validation labels in a text file:
sort the images into DIR/train/<class>/ and DIR/test/<class>/, and give --config.data.path=DIR. No
number was measured yet.
"""

from configs import cifar10


def get_config(variant: str = ""):
    config = cifar10.get_config(variant, name="tiny_imagenet")
    config.data.name = "folder"
    if variant in ("", "reference"):
        config.sample.start = "noised"  # sigma 50 does not hide 64 x 64 images
        config.classifier.network.update(
            mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821)
        )
    return config
