"""The layers that every network here is made of."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from purify.models.convolution import conv2d
from purify.types import Array


class Conv(nn.Module):
    """`conv2d` with a bias; kernel `size` x `size`."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv2d(x.astype(kernel.dtype), kernel, stride=self.stride, dilation=self.dilation)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.reshape(1, 1, 1, -1)


class GroupNorm(nn.Module):
    """Group normalisation in one pass over the data (sum and sum of squares), at least float32.

    Sums run over pixels first, then over a group's channels: on CPUs short sums over the last axis
    are slow.
    """

    max_groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        groups = next(g for g in range(min(self.max_groups, channels), 0, -1) if channels % g == 0)
        flat = at_least_float32(x).reshape(n, height * width, channels)

        def group_mean(values):
            mean = values.mean(1).reshape(n, groups, -1).mean(-1)
            return jnp.repeat(mean, channels // groups, axis=1)  # [n, channels]

        mean = group_mean(flat)
        variance = jnp.maximum(group_mean(flat**2) - mean**2, 0.0)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        factor = lax.rsqrt(variance + self.epsilon) * scale.reshape(1, -1)
        offset = bias.reshape(1, -1) - mean * factor
        y = flat * factor[:, None] + offset[:, None]
        return y.reshape(x.shape).astype(x.dtype)


def at_least_float32(x: Array) -> Array:
    """Sums of many bfloat16 numbers keep few of their digits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def normalise(x: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """(x - mean) / std with one value for all channels or one per channel."""
    mean_, std_ = (jnp.asarray(v, x.dtype).reshape(1, 1, 1, -1) for v in (mean, std))
    return (x - mean_) / std_


def mean_pool(x: Array) -> Array:
    """Average over 2 x 2 blocks: [N, H, W, C] -> [N, H/2, W/2, C]; H and W must be even."""
    n, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"image side {height} x {width} cannot be halved; use fewer levels")
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample(x: Array) -> Array:
    """Nearest neighbour: [N, H, W, C] -> [N, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResidualBlock(nn.Module):
    """Pre-activation residual block, the identity at the start: its last convolution is zero."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.features)(nn.silu(GroupNorm()(x)))
        y = Conv(self.features, kernel_init=nn.initializers.zeros)(nn.silu(GroupNorm()(y)))
        return y + (x if x.shape[-1] == self.features else Conv(self.features, size=1)(x))
