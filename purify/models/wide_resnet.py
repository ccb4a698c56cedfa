"""Residual networks with batch normalisation, as published for CIFAR: WideResNet and ResNet-20/56.

Names of parameters follow the published PyTorch weights (see purify.models.importing).
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from purify.models.layers import Conv, normalise
from purify.types import Array

FORMS = ("meliketoy", "robustbench")
he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """In training the statistics are those of the whole batch, over the axis named 'batch' of the
    vmap that maps over its images (and over the devices); else the running ones."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name="batch" if train else None,
        name=name,
    )


class WideResNet(nn.Module):
    """[N, H, W, C] images in [0, 1] -> logits [N, num_classes] (Zagoruyko and Komodakis 2016).

    depth = 6 n + 4 with n blocks a stage; widen multiplies the stages' 16, 32, 64 channels. mean
    and std normalise the input, one value for all channels or one per channel.

    form: 'robustbench': no biases, strides in a block's first convolution, and a shortcut that sees
        the activated input (RobustBench's 'Standard'; the original). 'meliketoy': biases, strides
        in the second convolution, a shortcut of the input (the classifier of the paper's code).
    """

    num_classes: int
    depth: int = 28
    widen: int = 10
    form: str = "robustbench"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        super().__post_init__()
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown; known: {', '.join(FORMS)}")
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth} must be 6 n + 4, such as 28 or 70")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        standard = self.form == "robustbench"
        y = normalise(x, self.mean, self.std)
        y = Conv(16, use_bias=not standard, kernel_init=he_init, name="conv1")(y)
        for stage in range(3):
            prefix = f"block{stage + 1}.layer" if standard else f"layer{stage + 1}"
            for block in range((self.depth - 4) // 6):
                y = WideBlock(
                    self.widen * 16 * 2**stage,
                    stride=2 if stage and not block else 1,
                    form=self.form,
                    name=f"{prefix}_{block}",
                )(y, train)
        y = nn.relu(batch_norm(train, "bn1")(y)).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc" if standard else "linear")(y)


class WideBlock(nn.Module):
    features: int
    stride: int
    form: str

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        standard = self.form == "robustbench"
        conv = functools.partial(Conv, self.features, use_bias=not standard, kernel_init=he_init)
        strides = (self.stride, 1) if standard else (1, self.stride)
        active = nn.relu(batch_norm(train, "bn1")(x))
        y = conv(stride=strides[0], name="conv1")(active)
        y = conv(stride=strides[1], name="conv2")(nn.relu(batch_norm(train, "bn2")(y)))
        if self.stride == 1 and x.shape[-1] == self.features:
            return x + y
        shortcut = conv(
            size=1, stride=self.stride, name="convShortcut" if standard else "shortcut_0"
        )
        return shortcut(active if standard else x) + y


class CifarResNet(nn.Module):
    """[N, H, W, C] images in [0, 1] -> logits [N, num_classes] (He et al. 2016, section 4.2).

    depth = 6 n + 2, 20 or 56 as a rule; where a stage widens, its shortcut takes every second pixel
    and fills up with zero channels on both sides (option A). mean and std as in WideResNet.
    """

    num_classes: int
    depth: int = 20
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth={self.depth} must be 6 n + 2, such as 20 or 56")

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, use_bias=False, kernel_init=he_init)
        y = conv(16, name="conv1")(normalise(x, self.mean, self.std))
        y = nn.relu(batch_norm(train, "bn1")(y))
        for stage in range(3):
            for block in range((self.depth - 2) // 6):
                y = BasicBlock(
                    16 * 2**stage,
                    stride=2 if stage and not block else 1,
                    name=f"layer{stage + 1}_{block}",
                )(y, train)
        return nn.Dense(self.num_classes, name="linear")(y.mean((1, 2)))


class BasicBlock(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, self.features, use_bias=False, kernel_init=he_init)
        y = conv(stride=self.stride, name="conv1")(x)
        y = nn.relu(batch_norm(train, "bn1")(y))
        y = batch_norm(train, "bn2")(conv(name="conv2")(y))
        if missing := self.features - x.shape[-1]:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, [(0, 0)] * 3 + [(missing // 2, missing // 2)])
        return nn.relu(x + y)
