"""MNIST, 28 x 28: configs/cifar10.py and its variants with another data set, Linf 0.3. No number
was measured yet."""

from configs import cifar10

EPS = 0.3


def get_config(variant: str = ""):
    config = cifar10.get_config(variant)
    config.data.name = "mnist"
    config.classifier.network.update(mean=(0.1307,), std=(0.3081,))
    # A mirrored digit is another sign.
    config.classifier.train.augment = "crop"
    config.score.train.augment = "none"
    config.classifier.adversarial.update(eps=EPS, step_size=EPS / 4)
    for options in config.attacks.values():
        if options.norm == "linf":
            options.update(eps=EPS, step_size=EPS / 4)
    return config
