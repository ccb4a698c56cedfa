"""The convolution and the normalisation that every network here is made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from purify.types import Array


def _convolve(x: Array, kernel: Array, *, stride: int, dilation: int) -> Array:
    padding = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _input_gradient(cotangent: Array, x: Array, kernel: Array, *, stride: int, dilation: int):
    if stride > 1:  # back where they came from, zeros between and behind
        spread = [(0, 0, 0)] * 4
        for axis in (1, 2):
            reached = stride * (cotangent.shape[axis] - 1) + 1
            spread[axis] = (0, x.aval.shape[axis] - reached, stride - 1)
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), spread)
    return conv2d(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), dilation=dilation)


def _kernel_gradient(cotangent: Array, x: Array, kernel: Array, **how) -> Array:
    (gradient,) = jax.linear_transpose(lambda k: _convolve(x, k, **how), kernel.aval)(cotangent)
    return gradient


def _batch(args, dims, **how):
    (x, kernel), (x_dim, kernel_dim) = args, dims
    if kernel_dim is not None:  # networks in parallel: the plain operation has a rule for that
        return jax.vmap(functools.partial(_convolve, **how), in_axes=dims)(x, kernel), 0
    x = jnp.moveaxis(x, x_dim, 0)
    merged = conv2d(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return merged.reshape(*x.shape[:2], *merged.shape[1:]), 0


def _abstract(x, kernel, *, stride: int, dilation: int):
    height, width = (-(-side // stride) for side in x.shape[1:3])
    return jax.core.ShapedArray((x.shape[0], height, width, kernel.shape[3]), x.dtype)


_conv2d_p = Primitive("conv2d")
_conv2d_p.def_impl(jax.jit(_convolve, static_argnames=("stride", "dilation")))
_conv2d_p.def_abstract_eval(_abstract)
mlir.register_lowering(_conv2d_p, mlir.lower_fun(_convolve, multiple_results=False))
batching.primitive_batchers[_conv2d_p] = _batch
ad.defbilinear(_conv2d_p, _input_gradient, _kernel_gradient)


def conv2d(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
    """[N, H, W, I] by [h, w, I, O] -> [N, ceil(H / stride), ceil(W / stride), O]; h, w odd.

    Every side is padded by dilation * (h // 2) zeros, as PyTorch's convolutions of these networks
    are ('SAME' of XLA differs where stride > 1).

    The same numbers as `lax.conv_general_dilated`, but its gradient with respect to the input is
    again a forward convolution, with the flipped kernel. XLA's CPU backend runs the usual
    (transposed-layout) gradient five to seven times slower inside scan and while loops, which is
    where a purifier is differentiated; benchmarks/conv_gradient.py measures it.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"kernel {kernel.shape[:2]} must have odd sides")
    return _conv2d_p.bind(x, kernel, stride=stride, dilation=dilation)


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
    """Group normalisation in one pass over the data (sum and sum of squares), at least float32."""

    max_groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        groups = next(g for g in range(min(self.max_groups, channels), 0, -1) if channels % g == 0)
        grouped = at_least_float32(x).reshape(n, height * width, groups, channels // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = (grouped**2).mean((1, 3), keepdims=True) - mean**2
        normal = (grouped - mean) * lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = normal.reshape(x.shape) * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
        return y.astype(x.dtype)


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
