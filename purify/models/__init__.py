"""The table of networks: name -> Flax Linen module, built from plain options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from purify.models.ncsnv2 import NCSNv2
from purify.models.options import Settings, checked_options
from purify.models.resnet import ResNet
from purify.models.unet import UNet
from purify.models.wide_resnet import CifarResNet, WideResNet
from purify.options import check_options, choose
from purify.saving.schema import converted

NETWORKS = {
    "unet": UNet,
    "ncsnv2": NCSNv2,
    "resnet": ResNet,
    "cifar_resnet": CifarResNet,
    "wide_resnet": WideResNet,
}


def build(arch: str, **options) -> nn.Module:
    """The network `arch` with its options (lists become tuples, so that modules stay hashable).

    Raises ValueError for an unknown name or option, listing what exists, and for values of another
    type or beyond their bounds.
    """
    network = choose("arch", NETWORKS, arch)
    reserved = frozenset({"parent", "name"})
    check_options(arch, network, options, reserved=reserved)
    needed = {f.name for f in dataclasses.fields(network) if f.default is dataclasses.MISSING}
    if missing := needed - set(options) - reserved:
        raise ValueError(f"arch {arch!r} is a classifier's network: it needs {', '.join(missing)}")
    return network(**checked_options(options))


def described(settings: Mapping[str, Any]) -> tuple[Settings, nn.Module]:
    """What settings from a file say of a network, and that network; ValueError where they describe
    none, or one of another kind than they say."""
    known = converted(settings, Settings)
    arch = known["network"].get("arch")
    network = build(**{**known["network"], "arch": arch})
    is_classifier = hasattr(network, "num_classes")
    if is_classifier == ("head" in known):
        raise ValueError(
            f"{arch} "
            + ("is a classifier's network, and has no head" if is_classifier else "needs a head")
        )
    names = known.get("class_names", [])
    if names and len(names) != getattr(network, "num_classes", None):
        raise ValueError(f"there are {len(names)} class_names, of another number of classes")
    return known, network
