"""The convolution against XLA's own in every derivative; the normalisation against Flax's; and the
contract of every network in the table."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purify import models
from purify.models import convolution
from purify.models.convolution import conv2d
from purify.models.layers import GroupNorm, mean_pool, upsample
from purify.models.networks import Classifier, Score
from tests.oracles import make_score

# What the CPU uses: gathered, scattered, Winograd's, XLA's, a matrix product, XLA's.
KERNELS = [(3, 3, 2, 5), (3, 3, 5, 2), (3, 3, 8, 9), (3, 3, 5, 6), (1, 1, 3, 2), (5, 3, 2, 3)]
# Their Jacobians would be large where Winograd's form begins to pay: here it is taken sooner.
MANY_CHANNELS = 8
# Every convolution below is compared in double precision: sums of at most 9 * 9 products.
ROUNDING = 1e-12


@pytest.fixture(autouse=True, scope="module")
def many_channels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "MANY_CHANNELS", MANY_CHANNELS)
        jax.clear_caches()
        yield
    jax.clear_caches()


def lax_conv(x, kernel, *, stride=1, dilation=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(dilation * (side // 2),) * 2 for side in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def assert_same(transform, *args, **how):
    """transform(conv) gives the same numbers for both convolutions."""
    convs = (functools.partial(conv, **how) for conv in (conv2d, lax_conv))
    ours, theirs = (jax.jit(transform(conv))(*args) for conv in convs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, ROUNDING, ROUNDING), ours, theirs)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(theirs))  # no empty comparison


def curved(conv):
    """A scalar whose second derivatives in (x, kernel), pure and mixed, do not vanish."""
    return lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))


TRANSFORMS = {
    "value": lambda conv: conv,
    "input gradient": lambda conv: jax.grad(curved(conv), 0),
    "kernel gradient": lambda conv: jax.grad(curved(conv), 1),
    "jvp": lambda conv: lambda x, k: jax.jvp(conv, (x, k), (jnp.cos(x), jnp.cos(k))),
    "input second derivative": lambda conv: jax.jacrev(jax.grad(curved(conv), 0), 0),
    "kernel second derivative": lambda conv: jax.jacrev(jax.grad(curved(conv), 1), 1),
    "mixed second derivative": lambda conv: jax.jacrev(jax.grad(curved(conv), 0), 1),
    "forward over reverse": lambda conv: jax.jacfwd(jax.grad(curved(conv), (0, 1)), 0),
}


@pytest.mark.parametrize("shape", KERNELS, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_conv2d_equals_lax_in_value_and_derivatives(x64, transform, shape):
    assert_same(TRANSFORMS[transform], normal(0, 2, 5, 4, shape[2]), normal(1, *shape))


@pytest.mark.parametrize(
    ("stride", "dilation", "side"),
    [(2, 1, 3), (2, 1, 1), (1, 2, 3), (1, 4, 3), (2, 2, 3)],
)
@pytest.mark.parametrize("transform", ["value", "input gradient", "kernel gradient", "jvp"])
def test_strides_and_dilations_equal_lax(x64, transform, stride, dilation, side):
    """On odd and even sides: with a stride the last rows and columns are read by some kernels."""
    for height, width in ((7, 6), (8, 5)):
        x, kernel = normal(0, 2, height, width, 3), normal(1, side, side, 3, 2)
        assert_same(TRANSFORMS[transform], x, kernel, stride=stride, dilation=dilation)


@pytest.mark.parametrize("shape", [(3, 3, 2, 3), (3, 3, 8, 8)], ids=str)
def test_the_precision_asked_for_reaches_every_product_of_value_and_gradient(shape):
    def gradient(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jax.grad(curved(conv2d), (0, 1))(x, kernel)

    text = jax.jit(gradient).lower(normal(0, 1, 4, 4, shape[2]), normal(1, *shape)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST, HIGHEST" in line for line in products), products


@pytest.mark.parametrize(
    "form",
    [
        "pointwise_convolve",
        "gather_convolve",
        "scatter_convolve",
        "winograd_convolve",
        "winograd_kernel_gradient",
    ],
)
def test_every_form_is_used_where_the_cpu_needs_it(form, monkeypatch):
    """And by one of the kernels above: without it, one of their gradients fails."""
    if jax.default_backend() != "cpu":
        pytest.skip("these forms are for CPUs")

    def refuse(*_):
        raise RuntimeError(form)

    jax.clear_caches()
    monkeypatch.setattr(convolution, form, refuse)
    with pytest.raises(RuntimeError, match=form):
        for shape in KERNELS:
            gradient = jax.jit(jax.grad(curved(conv2d), 1))
            gradient.lower(normal(0, 1, 5, 4, shape[2]), normal(1, *shape))


def test_winograd_loses_no_digits():
    """Float32 against float64: as close as XLA's own convolution, within a factor of three."""
    x, kernel = normal(0, 8, 16, 16, 32), normal(1, 3, 3, 32, 32)
    with jax.enable_x64(True):
        exact = np.asarray(
            lax_conv(*(jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel)))
        )
    ours, theirs = (
        np.sqrt(np.mean((np.asarray(jax.jit(conv)(x, kernel)) - exact) ** 2))
        for conv in (convolution.winograd_convolve, lax_conv)
    )
    assert ours < 3 * theirs, (ours, theirs)


@pytest.mark.parametrize(
    ("x_axis", "kernel_axis"), [(0, None), (2, None), (None, 0), (None, 3), (0, 0), (2, 3)]
)
def test_conv2d_equals_lax_under_vmap(x64, x_axis, kernel_axis):
    x, kernel = normal(0, 2, 5, 4, 2), normal(1, 3, 3, 2, 3)
    x = x if x_axis is None else jnp.stack([x, jnp.sin(x), 2 * x], x_axis)
    kernel = (
        kernel if kernel_axis is None else jnp.stack([kernel, -kernel, 2 * kernel], kernel_axis)
    )
    axes = (x_axis, kernel_axis)
    assert_same(lambda conv: jax.vmap(conv, axes), x, kernel)
    assert_same(lambda conv: jax.vmap(jax.grad(curved(conv), (0, 1)), axes), x, kernel)


def test_the_input_gradient_is_a_forward_convolution():
    """The point of having a conv2d at all: no other kind of convolution appears."""
    jaxpr = str(
        jax.make_jaxpr(jax.grad(curved(conv2d)))(normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 3))
    )
    assert jaxpr.count("conv2d") == 2 and "conv_general_dilated" not in jaxpr


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (4, 4)])
def test_even_kernel_sizes_are_refused(size):
    with pytest.raises(ValueError, match="must have odd sides"):
        conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((*size, 1, 1)))


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (6, 6), (10, 5), (11, 1)])
def test_group_norm_equals_flax(channels, groups):
    """Flax is given the largest number of groups up to 8 that divides the channels."""
    x = 3.0 + 2.0 * normal(0, 2, 4, 6, channels)
    ours, theirs = GroupNorm(), nn.GroupNorm(groups, epsilon=1e-5)
    params = {"scale": normal(1, channels), "bias": normal(2, channels)}
    actual, expected = (jax.jit(m.apply)({"params": params}, x) for m in (ours, theirs))
    # One pass instead of two: the variance loses (mean / std)^2 ~ 3 roundings of 6e-8.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_group_norm_of_constants_is_its_bias():
    """In 256 groups, in some of which rounding makes the one-pass variance negative."""
    x = jnp.broadcast_to(100.0 + 900.0 * jax.nn.sigmoid(normal(0, 32, 1, 1, 8)), (32, 3, 3, 8))
    variance = (x**2).mean((1, 2)) - x.mean((1, 2)) ** 2
    assert np.min(variance) < -1e-5  # beyond what epsilon makes up for
    bias = normal(1, 8)
    y = GroupNorm().apply({"params": {"scale": jnp.ones(8), "bias": bias}}, x)
    # A mean of equal numbers is off by about a rounding (6e-5 at 1000), divided by sqrt(1e-5).
    np.testing.assert_allclose(y, jnp.broadcast_to(bias, y.shape), atol=0.1)


def test_mean_pool_averages_blocks_and_upsample_repeats_them():
    x = np.asarray(normal(0, 2, 4, 6, 3))
    blocks = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    np.testing.assert_allclose(mean_pool(x), blocks / 4, atol=1e-6)  # a sum of 4 numbers
    np.testing.assert_array_equal(upsample(x), np.kron(x, np.ones((1, 2, 2, 1), np.float32)))


@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 4, 3, 1)])
def test_mean_pool_refuses_odd_sides(shape):
    with pytest.raises(ValueError, match="cannot be halved"):
        mean_pool(jnp.zeros(shape))


# name -> (small options, output shape for an image [8, 8, 2])
SMALL = {
    "unet": ({"widths": (4, 8), "blocks": 1}, (8, 8, 2)),
    "ncsnv2": ({"features": 4}, (8, 8, 2)),
    "resnet": ({"num_classes": 3, "widths": (4, 8), "blocks": 1}, (3,)),
    "cifar_resnet": ({"num_classes": 3, "depth": 8}, (3,)),
    "wide_resnet": ({"num_classes": 3, "depth": 10, "widen": 1}, (3,)),
}


def small_network(name):
    """A wrapped network and three images; no parameter is zero, which would hide a fault."""
    network = models.build(name, **SMALL[name][0])
    images = jax.nn.sigmoid(normal(0, 3, 8, 8, 2))
    shapes, tree = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0), images[:1]))
    variables = tree.unflatten([0.3 * normal(i, *a.shape) for i, a in enumerate(shapes)])
    if "batch_stats" in variables:  # a variance is not negative
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    is_score = SMALL[name][1] == images[0].shape
    return (Score if is_score else Classifier)(variables, network), images


@jax.jit
def call(network, image):
    return network(image)


def test_every_network_of_the_table_is_tested():
    assert set(SMALL) == set(models.NETWORKS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "ncsnv2" else [])
        for name in models.NETWORKS
    ],
)
def test_network_contract(name):
    network, images = small_network(name)
    single = jnp.stack([call(network, x) for x in images])
    batched = jax.jit(jax.vmap(lambda network, x: network(x), (None, 0)))(network, images)
    assert single.shape == (3, *SMALL[name][1]) and single.dtype == jnp.float32
    assert np.all(np.isfinite(single)) and np.ptp(np.asarray(single), axis=0).min() > 0
    # Float32 sums of up to 9 * 16 products, in another order.
    np.testing.assert_allclose(batched, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.NETWORKS)
def test_networks_keep_double_precision(name):
    network, images = small_network(name)
    expected = call(network, images[0])
    with jax.enable_x64(True):
        network, image = jax.tree.map(lambda a: a.astype(jnp.float64), (network, images[0]))
        actual = call(network, image)
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)  # float32's rounding


def test_resnet_normalises_with_its_mean_and_std():
    network, images = small_network("resnet")
    mean, std = (0.4, 0.6), (0.2, 0.3)
    options = SMALL["resnet"][0]
    inside = Classifier(network.variables, models.build("resnet", mean=mean, std=std, **options))
    outside = Classifier(network.variables, models.build("resnet", mean=(0,), std=(1,), **options))
    normalised = (images[0] - jnp.array(mean).reshape(1, 1, 2)) / jnp.array(std).reshape(1, 1, 2)
    np.testing.assert_allclose(inside(images[0]), outside(normalised), rtol=1e-5, atol=1e-5)


def test_lists_become_tuples_so_that_networks_are_hashable():
    assert models.build("unet", widths=[4, 8]) == models.build("unet", widths=(4, 8))
    hash(models.build("unet", widths=[4, 8]))


def test_build_errors_list_what_exists():
    with pytest.raises(ValueError, match=r"arch 'vgg' is unknown; known: unet, ncsnv2, resnet, "):
        models.build("vgg")
    with pytest.raises(ValueError, match=r"unet has no option depth; known: blocks, widths"):
        models.build("unet", depth=3)


def test_unknown_head_lists_what_exists():
    with pytest.raises(
        ValueError, match=r"head='prior' is unknown; known: score, energy, denoiser"
    ):
        make_score((4, 4, 1), head="prior")


def test_energy_head_is_minus_the_gradient_of_its_energy(x64):
    score = make_score((4, 4, 1), head="energy")
    image, direction = jax.nn.sigmoid(normal(0, 4, 4, 1)), normal(1, 4, 4, 1)
    energy = jax.jit(lambda t: score.energy(image + t * direction))
    step = 1e-5  # the third derivative of E leaves about step^2, rounding 1e-16 / step
    slope = (energy(step) - energy(-step)) / (2 * step)
    np.testing.assert_allclose(-jnp.vdot(call(score, image), direction), slope, rtol=1e-7)


def test_the_score_head_has_no_energy():
    with pytest.raises(ValueError, match="has no energy"):
        make_score((4, 4, 1)).energy(jnp.zeros((4, 4, 1)))
