"""One convolution for every network: on CPUs as matrix products, and differentiable fast.

XLA's CPU backend reaches half the machine's matrix-product rate in convolutions, and a fifth where
there are only a few channels; plain 3 x 3 convolutions in float32 are therefore written as matrix
products there, of few and of many channels (see `_form`), and 1 x 1 convolutions everywhere.
benchmarks/convolution.py measures each form.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from purify.types import Array

FEW_CHANNELS = 4
MANY_CHANNELS = 32  # below, Winograd's form is no faster and takes five times as long to compile

# F(2 x 2, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), eq.
# 12: the kernel's transform G. Those of tiles and results are sums, written out below.
_KERNEL_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def _tile_transform(d):
    """B^T, of 4 values."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _result_transform(m):
    """A^T, of 4 values."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _spread_transform(r):
    """A, of 2 values."""
    return r[0], r[0] + r[1], r[0] - r[1], -r[1]


def _taps(height: int, width: int) -> list[tuple[int, slice, slice]]:
    """Of a 3 x 3 kernel: (number, rows, columns) of the padded image that each tap reads."""
    return [
        (3 * i + j, slice(i, i + height), slice(j, j + width)) for i in range(3) for j in range(3)
    ]


def _product(x: Array, matrix: Array) -> Array:
    """x @ matrix by way of two dimensions, which spares the kernel's gradient a transposition."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)


def _outer(x: Array, y: Array) -> Array:
    """x^T y over all dimensions but the last."""
    return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])


def pointwise_convolve(x: Array, kernel: Array) -> Array:
    """One product: for 1 x 1 kernels."""
    return _product(x, kernel[0, 0])


def gather_convolve(x: Array, kernel: Array) -> Array:
    """One product with the nine neighbours of each pixel: for few input channels."""
    n, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = [padded[:, rows, cols] for _, rows, cols in _taps(height, width)]
    return _product(jnp.concatenate(columns, -1), kernel.reshape(9 * channels, -1))


def scatter_convolve(x: Array, kernel: Array) -> Array:
    """One product that gives each pixel's share in its nine neighbours: for few output channels."""
    n, height, width, channels = x.shape
    features = kernel.shape[3]
    shares = _product(x, jnp.moveaxis(kernel, 2, 0).reshape(channels, 9 * features))
    padded = jnp.pad(shares, ((0, 0), (1, 1), (1, 1), (0, 0)))
    received = [
        padded[:, rows, cols, tap * features : (tap + 1) * features]
        for tap, rows, cols in _taps(height, width)
    ]
    return functools.reduce(jnp.add, received)


def winograd_convolve(x: Array, kernel: Array) -> Array:
    """A^T [(G k G^T) (B^T d B)] A over 4 x 4 tiles d: 16 products instead of 36 (Winograd)."""
    n, height, width, _ = x.shape
    transform = jnp.asarray(_KERNEL_TRANSFORM, kernel.dtype)
    kernels = jnp.einsum("ai,bj,ijco->abco", transform, transform, kernel)
    products = [
        [_product(tile, k) for tile, k in zip(row, row_kernels, strict=True)]
        for row, row_kernels in zip(_tiles(x), kernels, strict=True)
    ]
    columns = [_result_transform(column) for column in zip(*products, strict=True)]
    y = jnp.stack(
        [jnp.stack(_result_transform(row), 3) for row in zip(*columns, strict=True)], 2
    )  # [n, tiles_y, 2, tiles_x, 2, features]
    return y.reshape(n, 2 * y.shape[1], 2 * y.shape[3], -1)[:, :height, :width]


def winograd_kernel_gradient(cotangent: Array, x: Array) -> Array:
    """G^T [(B^T d B)^T (A c A^T)] G, summed over 4 x 4 tiles d and 2 x 2 of the cotangent c."""
    products = [
        [_outer(tile, spread) for tile, spread in zip(row, spread_row, strict=True)]
        for row, spread_row in zip(_tiles(x), _spread_tiles(cotangent), strict=True)
    ]
    gradient = jnp.stack([jnp.stack(row) for row in products])
    transform = jnp.asarray(_KERNEL_TRANSFORM, gradient.dtype)
    return jnp.einsum("ai,bj,abco->ijco", transform, transform, gradient)


def _tiles(x: Array) -> list[tuple[Array, ...]]:
    """B^T d B of 4 x 4 tiles, two pixels apart: [N, H, W, C] -> 4 x 4 of [N, tiles, tiles, C]."""
    return _transform_tiles(x, _tile_transform, range(4))


def _spread_tiles(cotangent: Array) -> list[tuple[Array, ...]]:
    """A c A^T of the 2 x 2 tiles: [N, H, W, F] -> 4 x 4 of [N, tiles, tiles, F]."""
    # Read from the padded array, though nothing of the border is needed: XLA writes that array
    # once, where it would compute an unpadded cotangent anew for each of the 16.
    return _transform_tiles(cotangent, _spread_transform, range(1, 3))


def _transform_tiles(x: Array, transform: Callable, offsets: range) -> list[tuple[Array, ...]]:
    """The transform of both axes, of tiles that start at every other pixel of x in zeros."""
    tiles_y, tiles_x = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + x.shape[1] % 2), (1, 1 + x.shape[2] % 2), (0, 0)))
    rows = transform([padded[:, i::2][:, :tiles_y] for i in offsets])
    return [transform([row[:, :, j::2][:, :, :tiles_x] for j in offsets]) for row in rows]


def xla_convolve(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
    """XLA's own convolution."""
    padding = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _form(x, kernel, *, stride: int, dilation: int) -> Callable[[Array, Array], Array]:
    """The function above that computes this convolution, by the arguments' shapes and dtype."""
    *size, channels, features = kernel.shape
    if stride == 1 and size == [1, 1]:
        return pointwise_convolve
    # Winograd's sums would cost bfloat16 digits that it does not have.
    if stride == dilation == 1 and size == [3, 3] and _on_cpu() and x.dtype != jnp.bfloat16:
        if channels <= FEW_CHANNELS:
            return gather_convolve
        if features <= FEW_CHANNELS:
            return scatter_convolve
        if min(channels, features) >= MANY_CHANNELS:
            return winograd_convolve
    return functools.partial(xla_convolve, stride=stride, dilation=dilation)


def _convolve(x: Array, kernel: Array, *, precision: str | None, **how) -> Array:
    with jax.default_matmul_precision(precision):
        return _form(x, kernel, **how)(x, kernel)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _input_gradient(cotangent: Array, x: Array, kernel: Array, *, stride: int, **how):
    if stride > 1:  # back where they came from, zeros between and behind
        spread = [(0, 0, 0)] * 4
        for axis in (1, 2):
            reached = stride * (cotangent.shape[axis] - 1) + 1
            spread[axis] = (0, x.aval.shape[axis] - reached, stride - 1)
        cotangent = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), spread)
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return _conv2d_p.bind(cotangent, flipped, stride=1, **how)


def _kernel_gradient(cotangent: Array, x: Array, kernel, *, precision: str | None, **how) -> Array:
    form = _form(x, kernel.aval, **how)
    with jax.default_matmul_precision(precision):
        if form is winograd_convolve:
            return winograd_kernel_gradient(cotangent, x)
        (gradient,) = jax.linear_transpose(lambda k: form(x, k), kernel.aval)(cotangent)
        return gradient


def _batch(args, dims, **how):
    (x, kernel), (x_dim, kernel_dim) = args, dims
    if kernel_dim is not None:  # networks in parallel: the plain operation has a rule for that
        return jax.vmap(functools.partial(_convolve, **how), in_axes=dims)(x, kernel), 0
    x = jnp.moveaxis(x, x_dim, 0)
    merged = _conv2d_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return merged.reshape(*x.shape[:2], *merged.shape[1:]), 0


def _abstract(x, kernel, *, stride: int, **_):
    height, width = (-(-side // stride) for side in x.shape[1:3])
    return jax.core.ShapedArray((x.shape[0], height, width, kernel.shape[3]), x.dtype)


_conv2d_p = Primitive("conv2d")
_conv2d_p.def_impl(jax.jit(_convolve, static_argnames=("stride", "dilation", "precision")))
_conv2d_p.def_abstract_eval(_abstract)
mlir.register_lowering(_conv2d_p, mlir.lower_fun(_convolve, multiple_results=False))
batching.primitive_batchers[_conv2d_p] = _batch
ad.defbilinear(_conv2d_p, _input_gradient, _kernel_gradient)


def conv2d(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1) -> Array:
    """[N, H, W, I] by [h, w, I, O] -> [N, ceil(H / stride), ceil(W / stride), O]; h, w odd.

    Every side is padded by dilation * (h // 2) zeros, as PyTorch's convolutions of these networks
    are ('SAME' of XLA differs where stride > 1).

    The same as `lax.conv_general_dilated` but for rounding, and its gradient with respect to the
    input is again a forward convolution, with the flipped kernel. XLA's CPU backend runs the usual
    (transposed-layout) gradient five to seven times slower inside scan and while loops, which is
    where a purifier is differentiated; benchmarks/conv_gradient.py measures it.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"kernel {kernel.shape[:2]} must have odd sides")
    # Lowered later, outside of what `with jax.default_matmul_precision(...)` encloses now.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _conv2d_p.bind(x, kernel, stride=stride, dilation=dilation, precision=precision)
