"""CIFAR-100: configs/cifar10.py and its variants with another data set. Nothing measured yet."""

from configs import cifar10


def get_config(variant: str = ""):
    config = cifar10.get_config(variant, name="cifar100")
    config.data.name = "cifar100"
    # The small networks keep the statistics that they were published with.
    if variant in ("", "reference"):
        config.classifier.network.update(
            mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
        )
    return config
