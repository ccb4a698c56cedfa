"""NCSNv2 (Song and Ermon 2020), the score network of the paper: a RefineNet of dilated residual
blocks with InstanceNorm++, and no input that tells the noise level.

Names of parameters follow the published PyTorch weights (see purify.models.importing).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purify.models.layers import Conv, at_least_float32, mean_pool
from purify.types import Array


class NCSNv2(nn.Module):
    """[N, H, W, C] images in [0, 1] (plus noise) -> h [N, H, W, C]; H and W even.

    features: `ngf` of the published code, 128 for CIFAR-10 (29,694,083 parameters). The published
    network divides by sigma at its end; h is what it divides.
    """

    features: int = 128

    @nn.compact
    def __call__(self, x: Array) -> Array:
        narrow, wide, channels = self.features, 2 * self.features, x.shape[-1]
        y = Conv(narrow, name="begin_conv")(2.0 * x - 1.0)
        layers = []
        for stage, (width, dilation) in enumerate(
            ((narrow, 1), (wide, 1), (wide, 2), (wide, 4)), 1
        ):
            y = DilatedBlock(width, dilation, reduce=stage > 1, name=f"res{stage}_0")(y)
            y = DilatedBlock(width, dilation, name=f"res{stage}_1")(y)
            layers.append(y)
        first, second, third, fourth = layers
        y = RefineBlock(wide, name="refine1")(fourth)
        y = RefineBlock(wide, name="refine2")(third, y)
        y = RefineBlock(narrow, name="refine3")(second, y)
        y = RefineBlock(narrow, output_blocks=3, name="refine4")(first, y)
        y = nn.elu(InstanceNormPlus(name="normalizer")(y))
        return Conv(channels, name="end_conv")(y)


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps the channels' means, normalised over the channels: they
    carry the overall brightness (Song and Ermon 2019, appendix A)."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        near_one = nn.initializers.normal(0.02)
        scales = [
            self.param(name, lambda *args: 1.0 + near_one(*args), (x.shape[-1],))
            for name in ("alpha", "gamma")
        ]
        alpha, gamma = (scale.reshape(1, 1, 1, -1) for scale in scales)
        beta = self.param("beta", nn.initializers.zeros, (x.shape[-1],)).reshape(1, 1, 1, -1)
        exact = at_least_float32(x)
        mean = exact.mean((1, 2), keepdims=True)
        normal = (exact - mean) / jnp.sqrt(exact.var((1, 2), keepdims=True) + self.epsilon)
        spread = jnp.sqrt(mean.var(-1, keepdims=True, ddof=1) + self.epsilon)
        means = (mean - mean.mean(-1, keepdims=True)) / spread
        return (gamma * (normal + alpha * means) + beta).astype(x.dtype)


class DilatedBlock(nn.Module):
    """Pre-activation residual block. reduce: it starts a stage, and halves the resolution where it
    is not dilated; then its shortcut is a convolution."""

    features: int
    dilation: int = 1
    reduce: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(Conv, dilation=self.dilation)
        halve = self.reduce and self.dilation == 1
        inner = x.shape[-1] if self.reduce else self.features
        y = conv(inner, name="conv1")(nn.elu(InstanceNormPlus(name="normalize1")(x)))
        y = nn.elu(InstanceNormPlus(name="normalize2")(y))
        y = conv(self.features, name=_inner_name("conv2", halve))(y)
        if self.reduce:
            size = 1 if halve else 3
            x = conv(self.features, size=size, name=_inner_name("shortcut", halve))(x)
        return mean_pool(x) + mean_pool(y) if halve else x + y


def _inner_name(name: str, inside_pool: bool) -> str:
    """The published convolution-and-pool is a module around the convolution."""
    return f"{name}.conv" if inside_pool else name


class RefineBlock(nn.Module):
    """Adapt one or two inputs, add them at the resolution of the first, pool in a chain, adapt."""

    features: int
    output_blocks: int = 1

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        adapted = [ConvUnits(2, name=f"adapt_convs_{i}")(x) for i, x in enumerate(inputs)]
        y = adapted[0]
        if len(inputs) > 1:
            shape = y.shape[1:3]
            first, second = (
                resize(Conv(self.features, name=f"msf.convs_{i}")(x), shape)
                for i, x in enumerate(adapted)
            )
            y = first + second
        y = nn.elu(y)
        path = y
        for i in range(2):
            path = Conv(self.features, use_bias=False, name=f"crp.convs_{i}")(max_pool(path))
            y = path + y
        return ConvUnits(self.output_blocks, name="output_convs")(y)


class ConvUnits(nn.Module):
    """Residual units of two activations and convolutions each."""

    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for block in range(1, self.blocks + 1):
            y = x
            for stage in (1, 2):
                conv = Conv(x.shape[-1], use_bias=False, name=f"{block}_{stage}_conv")
                y = conv(nn.elu(y))
            x = x + y
        return x


def max_pool(x: Array, size: int = 5) -> Array:
    """Maximum over size x size neighbours: [N, H, W, C] -> the same shape.

    One axis after the other, as maxima of shifted images: XLA's own gradient of a window's maximum
    is slow on CPUs, and its forward derivative more so.
    """
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (size // 2, size // 2)
        padded, length = jnp.pad(x, pads, constant_values=-jnp.inf), x.shape[axis]
        shifted = [
            jax.lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(size)
        ]
        x = functools.reduce(jnp.maximum, shifted)
    return x


def resize(x: Array, shape: tuple[int, ...]) -> Array:
    """Bilinear to [N, *shape, C]; the corner pixels of both images lie on each other."""
    for axis, length in ((1, shape[0]), (2, shape[1])):
        if x.shape[axis] != length:
            weights = jnp.asarray(_interpolation(x.shape[axis], length), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 1)), -1, axis)
    return x


def _interpolation(old: int, new: int) -> np.ndarray:
    """[new, old] weights of linear interpolation with the ends on each other."""
    places = np.linspace(0, old - 1, new)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(old)))
