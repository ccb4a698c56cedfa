"""Corruptions: a contract over the whole table, and for each what its constants say.

The constants here are copied from make_cifar_c.py (hendrycks/robustness), not from the code.
"""

import io
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from purify.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, blur, corrupt, weather
from purify.data.corruptions.blur import smear, zoomed
from purify.data.corruptions.levels import nearest, truncate
from purify.data.corruptions.weather import ice, plasma
from purify.data.image_io import to_float, to_uint8

SHAPES = [(32, 32, 3), (28, 28, 1), (8, 8, 1)]
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur"}
RANDOM |= {"motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
# Whose constants grow stronger in one sense; of the others some grow in one, and fall in another.
MONOTONE = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur"}
MONOTONE |= {"gaussian_blur", "zoom_blur", "snow", "fog", "brightness", "contrast"}
MONOTONE |= {"pixelate", "jpeg_compression"}
KEY = jax.random.key(0)
LEVEL = 1 / 255

every_name = pytest.mark.parametrize("name", CORRUPTIONS)
every_severity = pytest.mark.parametrize("severity", SEVERITIES)


def by_severity(*constants):
    """A test of each severity with its constants."""
    assert len(constants) == len(SEVERITIES)
    return pytest.mark.parametrize(("severity", "constants"), list(enumerate(constants, 1)))


def picture(shape, seed=0) -> np.ndarray:
    """Smooth blobs with edges and some texture, on 8-bit levels from black to white."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    image = ndimage.gaussian_filter(noise, (2, 2, 0), mode="wrap")
    image = image / image.std() + 0.2 * noise
    image = (image - image.min()) / np.ptp(image)
    return to_float(to_uint8(image.astype(np.float32)))


def raw(name, image, severity, seed=0) -> np.ndarray:
    """What the function of the table gives, before it is put on the 8-bit levels."""
    return CORRUPTIONS[name](np.random.default_rng(seed), image.astype(np.float64), severity)


# The contract


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_name
def test_images_keep_their_shape_and_range_lie_on_levels_and_are_a_function_of_the_key(name, shape):
    image = picture(shape)
    before = image.copy()
    for severity in SEVERITIES:
        out, again, other = (
            corrupt(key, image, name=name, severity=severity)
            for key in (KEY, jax.random.key(0), jax.random.key(1))
        )
        assert out.shape == shape and out.dtype == np.float32
        assert out.min() >= 0 and out.max() <= 1
        np.testing.assert_array_equal(to_float(to_uint8(out)), out)
        np.testing.assert_array_equal(out, again)
        if name not in RANDOM:
            np.testing.assert_array_equal(out, other)
        elif shape[0] == 32:  # 64 pixels may well be spared
            assert (out != other).any()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("level", [0.0, 1.0])
@every_name
def test_images_of_one_colour_stay_finite(name, level):
    for severity in SEVERITIES:
        out = corrupt(KEY, np.full((16, 12, 3), level, np.float32), name=name, severity=severity)
        assert out.shape == (16, 12, 3) and np.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(MONOTONE))
def test_a_higher_severity_goes_further_from_the_clean_image(name):
    images = [picture((32, 32, 3), seed) for seed in range(8)]
    distances = [
        np.mean([np.abs(corrupt(KEY, x, name=name, severity=s) - x).mean() for x in images])
        for s in SEVERITIES
    ]
    assert distances[0] > 0 and (np.diff(distances) > 0).all(), distances


def test_the_table_has_the_fifteen_and_the_four_in_the_order_of_cifar_10_c():
    names = list(CORRUPTIONS)
    assert len(names) == 19 and tuple(names[15:]) == EXTRA
    assert names[:3] == ["gaussian_noise", "shot_noise", "impulse_noise"]
    assert names[12:15] == ["elastic_transform", "pixelate", "jpeg_compression"]
    assert all(function.__name__ == name for name, function in CORRUPTIONS.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(name="rain"), "corruption 'rain' is unknown; known: gaussian_noise, shot_noise"),
        (dict(severity=0), "severity 0 of fog is unknown; known: 1, 2, 3, 4, 5"),
        (dict(severity=6), "severity 6 of fog"),
        (dict(image=np.zeros((8, 8))), r"shape \(8, 8\) cannot"),
        (dict(image=np.zeros((8, 8, 2))), r"shape \(8, 8, 2\) cannot"),
        (dict(image=np.zeros((4, 8, 1))), r"shape \(4, 8, 1\) cannot"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(changes, said):
    given = dict(image=np.zeros((8, 8, 1)), name="fog", severity=1) | changes
    with pytest.raises(ValueError, match=said):
        corrupt(KEY, given.pop("image"), **given)


def test_levels_are_cut_off_but_an_image_on_them_stays():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(truncate(to_float(levels)), levels)
    np.testing.assert_array_equal(truncate(np.array([-1.0, 0.999 / 255, 1.99 / 255, 2.0])),
                                  [0, 0, 1, 255])  # fmt: skip


# Noise: on 128 x 128 x 3 values a standard deviation is off by 1 / sqrt(2 n) = 0.32 % of itself
# (one sigma), a mean by 1 / sqrt(n) = 0.45 % of the standard deviation; allowed are four of these.
# The levels' cut adds a variance of LEVEL^2 / 12, 0.1 % of any here, and takes up to a level.
GREY = np.full((128, 128, 3), 128 * LEVEL, np.float32)
STD, MEAN = 4 * 0.0032 + 0.001, 4 * 0.0045


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)),
        ("speckle_noise", np.array((0.06, 0.10, 0.12, 0.16, 0.20)) * 128 * LEVEL),
        ("shot_noise", np.sqrt(128 * LEVEL / np.array((500, 250, 100, 75, 50)))),
    ],
)
def test_noise_has_the_standard_deviation_of_its_constant(name, scales):
    for severity, scale in zip(SEVERITIES, scales, strict=True):
        # What is clipped lies five standard deviations out, or (shot 5) too rarely to show.
        noise = corrupt(KEY, GREY, name=name, severity=severity).astype(np.float64) - GREY
        assert noise.std() == pytest.approx(scale, rel=STD)
        assert -LEVEL - MEAN * scale < noise.mean() < MEAN * scale


def test_speckle_leaves_black_and_grows_with_brightness():
    image = np.zeros((64, 64, 3), np.float32)
    image[:, 32:] = 0.4
    noise = raw("speckle_noise", image, 3) - image
    assert (noise[:, :32] == 0).all()
    assert noise[:, 32:].std() == pytest.approx(0.12 * 0.4, rel=4 / np.sqrt(2 * 64 * 32 * 3))


@by_severity(0.01, 0.02, 0.03, 0.05, 0.07)
def test_impulses_hit_their_share_half_white_half_black_and_nothing_else(severity, constants):
    share, grey = constants, np.tile(GREY, (4, 4, 1))
    out = corrupt(KEY, grey, name="impulse_noise", severity=severity)
    hit, n = out != grey, grey.size
    assert set(np.unique(out[hit])) == {0.0, 1.0}
    assert hit.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert out[hit].mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(share * n))
    assert (hit.any(-1) & ~hit.all(-1)).any()  # in single channels


# Blur


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Of rows and columns, as scikit-image blurs: the edge goes on outside."""
    return ndimage.gaussian_filter(image, sigma, mode="nearest", axes=(0, 1))


def point(size: int) -> np.ndarray:
    image = np.zeros((size, size, 1))
    image[size // 2, size // 2] = 1.0
    return image


@by_severity(0.4, 0.6, 0.7, 0.8, 1.0)
def test_a_gaussian_blur_keeps_the_sum_and_has_its_variance(severity, constants):
    line = raw("gaussian_blur", point(17), severity).sum((1, 2))
    assert line.sum() == pytest.approx(1.0, abs=1e-9)
    weights = np.exp(-((np.arange(17) - 8) ** 2) / (2 * constants**2))
    np.testing.assert_allclose(line / line[8], weights, atol=5e-4)  # cut at four sigma


@by_severity((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def test_defocus_is_the_mean_over_a_disk_with_a_soft_edge(severity, constants):
    radius, soft = constants
    rows, columns = np.mgrid[-4:5, -4:5]
    disk = (np.hypot(rows, columns) <= radius).astype(np.float64)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), soft, radius=1)  # of 3 x 3 weights
    found = raw("defocus_blur", point(9), severity)[..., 0]
    np.testing.assert_allclose(found, kernel, rtol=1e-9, atol=1e-15)


def test_glass_takes_each_pixel_from_where_it_was_or_one_further_up_or_left():
    image = to_float(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))  # each value once
    out = to_uint8(corrupt(KEY, image, name="glass_blur", severity=1)).astype(int)[..., 0]
    rows, columns = np.divmod(out, 16)
    up, left = np.arange(16)[:, None] - rows, np.arange(16) - columns
    assert set(np.unique(up)) == set(np.unique(left)) == {0, 1}
    assert not up[:2].any() and not left[:, :2].any()
    # Each way half of the time, to four standard deviations of 196 throws.
    assert up[2:, 2:].mean() == pytest.approx(0.5, abs=4 * 0.5 / 14)


@by_severity((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
def test_glass_is_blurred_before_and_after_its_rounds_from_the_last_pixel_on(severity, constants):
    (sigma, rounds), rng = constants, np.random.default_rng(0)
    image = picture((12, 10, 3)).astype(np.float64)
    expected = truncate(gaussian(image, sigma)) / 255
    for _ in range(rounds):
        up, left = rng.integers(0, 2, (2, 10, 8))
        for y in range(11, 1, -1):
            for x in range(9, 1, -1):
                expected[y, x] = expected[y - up[y - 2, x - 2], x - left[y - 2, x - 2]]
    found = raw("glass_blur", image, severity)
    np.testing.assert_allclose(found, gaussian(expected, sigma), rtol=1e-9)


@by_severity((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def test_motion_is_a_smear_at_up_to_45_degrees(severity, constants, monkeypatch):
    image, spy = picture((32, 32, 3)), Mock(wraps=smear)
    monkeypatch.setattr(blur, "smear", spy)
    found = raw("motion_blur", image, severity)
    (radius, sigma), degrees = constants, np.random.default_rng(0).uniform(-45, 45)
    options = dict(radius=radius, sigma=sigma, degrees=degrees)
    np.testing.assert_array_equal(found, nearest(smear(image.astype(np.float64), **options)))
    assert spy.call_args.kwargs == options  # the radius cuts off less than a level shows


def test_a_smear_has_one_sided_gaussian_weights_along_its_line():
    middle, weights = point(15), np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    level = smear(middle, radius=6, sigma=2.0, degrees=0.0)[..., 0]
    # Pixels to the left see it at their right; of the 13 weights 8 fit in.
    np.testing.assert_allclose(level[7, 7::-1], weights[:8] / weights.sum(), rtol=1e-9)
    assert level[7, 8:].sum() == 0 and np.delete(level, 7, 0).sum() == 0
    np.testing.assert_array_equal(smear(middle, radius=6, sigma=2.0, degrees=90.0)[..., 0], level.T)
    diagonal = smear(middle, radius=6, sigma=2.0, degrees=45.0)[..., 0]
    # i cos 45 degrees, rounded.
    steps = np.bincount([0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8], weights)[:8] / weights.sum()
    np.testing.assert_allclose(diagonal, np.diag([*steps[::-1], *np.zeros(7)]), rtol=1e-9)
    np.testing.assert_array_equal(smear(middle, radius=3, sigma=0.01, degrees=30.0), middle)


@by_severity(1.06, 1.11, 1.16, 1.21, 1.26)
def test_zoom_is_the_mean_of_the_image_and_of_all_magnifications_by_hundredths(severity, constants):
    image = picture((32, 32, 3)).astype(np.float64)
    # Rounding takes in the first two of the ends, and so it does in CIFAR-10-C.
    images = [image, *(zoomed(image, factor) for factor in np.arange(1, constants, 0.01))]
    np.testing.assert_allclose(raw("zoom_blur", image, severity), np.mean(images, 0), rtol=1e-9)


def test_a_zoom_by_one_is_the_image_and_a_larger_one_its_middle():
    image = picture((32, 32, 3)).astype(np.float64)
    np.testing.assert_array_equal(zoomed(image, 1.0), image)
    ramp = np.tile(np.linspace(0, 1, 32)[:, None, None], (1, 32, 1))
    slope = np.diff(zoomed(ramp, 1.25)[:, 16, 0])
    # 26 rows become 32: a step of 25 / 31 of the old one (SciPy maps end to end).
    np.testing.assert_allclose(slope, 25 / 31 / 31, rtol=1e-9)


# Weather


def test_fractal_noise_fills_zero_to_one_and_is_rougher_where_it_decays_less():
    def roughness(decay):
        heights = [plasma(np.random.default_rng(seed), (32, 32), decay) for seed in range(8)]
        assert all(h.shape == (32, 32) and h.min() == 0 and h.max() == 1 for h in heights)
        return np.mean([np.abs(np.diff(h, axis=1)).mean() / h.std() for h in heights])

    assert roughness(1.75) > roughness(2.0) > roughness(3.0)
    assert plasma(np.random.default_rng(0), (28, 20), 2.0).shape == (28, 20)


@by_severity((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def test_fog_adds_a_haze_and_the_brightest_stays_and_so_does_black(severity, constants):
    (amount, decay), image = constants, 0.8 * picture((32, 32, 3)).astype(np.float64)
    haze = plasma(np.random.default_rng(0), (32, 32), decay)[..., None]
    expected = (image + amount * haze) * image.max() / (image.max() + amount)
    np.testing.assert_allclose(raw("fog", image, severity), expected, rtol=1e-9)
    assert not raw("fog", np.zeros((8, 8, 1)), severity).any()


@by_severity(
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
def test_snow_is_smeared_flakes_twice_over_a_whitened_image(severity, constants, monkeypatch):
    loc, scale, zoom, least, radius, sigma, kept = constants
    spy, rng = Mock(wraps=smear), np.random.default_rng(0)
    monkeypatch.setattr(weather, "smear", spy)
    image = picture((32, 32, 3)).astype(np.float64)
    found = raw("snow", image, severity)
    flakes = zoomed(rng.normal(loc, scale, (32, 32, 1)), zoom)
    flakes = truncate(flakes * (flakes >= least)) / 255
    options = dict(radius=radius, sigma=sigma, degrees=rng.uniform(-135, -45))
    flakes = nearest(smear(flakes, **options))
    white = np.maximum(image, 1.5 * (image @ [0.299, 0.587, 0.114])[..., None] + 0.5)
    expected = kept * image + (1 - kept) * white + flakes + flakes[::-1, ::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert spy.call_args.kwargs == options  # as in motion


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_severity
def test_snow_never_darkens(severity, shape):
    image = picture(shape)
    out = corrupt(KEY, image, name="snow", severity=severity)
    assert (out >= image).all() and (out > image).any()


def test_frost_adds_ice_that_is_bluish_white_on_an_image_that_is_dimmed():
    black, white = np.zeros((32, 32, 3)), np.ones((32, 32, 3))
    for severity, (kept, amount) in enumerate(
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), start=1
    ):
        added = raw("frost", black, severity)
        assert 0 <= added.min() < added.max() <= amount
        assert (added[..., 2] > added[..., 0]).all()
        np.testing.assert_allclose(raw("frost", white, severity) - added, kept, rtol=1e-9)
    texture = ice(np.random.default_rng(0), (32, 32))
    assert texture.std() > 0.1  # it is a texture, no veil


@by_severity(
    (0.62, 0.1, 0.7, 0.7, 0.5),
    (0.65, 0.1, 0.8, 0.7, 0.5),
    (0.65, 0.3, 1, 0.69, 0.5),
    (0.65, 0.1, 0.7, 0.69, 0.6),
    (0.65, 0.1, 0.5, 0.68, 0.6),
)
def test_water_brightens_and_mud_covers(severity, constants):
    loc, scale, sigma, least, strength = constants
    image = picture((32, 32, 3)).astype(np.float64)
    liquid = gaussian(np.random.default_rng(0).normal(loc, scale, (32, 32)), sigma)
    drops = liquid >= least
    assert 0.01 < drops.mean() < 0.5
    if severity <= 3:
        # How drops shine (_depth) is not pinned here; the brightest place has all of `strength`.
        shine = (drops * np.floor(255 * liquid) * weather._depth(drops))[..., None]
        expected = image + strength * shine / shine.max() * [175 / 255, 238 / 255, 238 / 255]
        assert (expected >= image).all() and (expected > image).any()
    else:
        cover = gaussian(drops.astype(np.float64), strength)[..., None]
        mud = np.array([63, 42, 20]) / 255
        expected = np.where(cover < 0.8, image, image + cover * (mud - image))
    np.testing.assert_allclose(raw("spatter", image, severity), expected, rtol=1e-9)


# Digital


@every_severity
def test_contrast_is_its_formula_cut_to_levels(severity):
    image = picture((32, 32, 3)).astype(np.float64)
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = image.mean((0, 1))
    cut = mean + factor * (image - mean) - corrupt(KEY, image, name="contrast", severity=severity)
    assert cut.min() >= -0.01 * LEVEL and cut.max() < LEVEL


def coloured() -> np.ndarray:
    """Every hue, saturation and value on a grid, black and greys among them."""
    axis = np.linspace(0, 1, 9)
    return np.stack(np.meshgrid(axis, axis, axis), -1).reshape(27, 27, 3)


@every_severity
def test_brightness_is_value_in_hsv(severity):
    hsv = rgb_to_hsv(coloured())
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    hsv[..., 2] = np.minimum(hsv[..., 2] + more, 1.0)
    np.testing.assert_allclose(raw("brightness", coloured(), severity), hsv_to_rgb(hsv), atol=1e-12)
    grey = picture((8, 8, 1))
    np.testing.assert_allclose(
        np.clip(raw("brightness", grey, severity), 0, 1), np.minimum(grey + more, 1.0), atol=1e-6
    )


@every_severity
def test_saturate_is_saturation_in_hsv_and_leaves_greyscale_images(severity):
    hsv = rgb_to_hsv(coloured())
    factor, more = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    hsv[..., 1] = np.clip(factor * hsv[..., 1] + more, 0.0, 1.0)
    np.testing.assert_allclose(raw("saturate", coloured(), severity), hsv_to_rgb(hsv), atol=1e-12)
    grey = picture((28, 28, 1))
    np.testing.assert_array_equal(corrupt(KEY, grey, name="saturate", severity=severity), grey)


def test_pixelate_leaves_as_many_columns_as_it_shrinks_to():
    ramp = np.tile(to_float(np.arange(0, 256, 8, dtype=np.uint8))[None, :, None], (32, 1, 1))
    for severity, left in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        out = corrupt(KEY, ramp, name="pixelate", severity=severity)
        assert len(np.unique(out)) == left and (out == out[:1]).all()


@by_severity(80, 65, 58, 50, 40)
def test_jpeg_is_a_file_of_its_quality(severity, constants):
    for shape in SHAPES:
        image, file = picture(shape), io.BytesIO()
        Image.fromarray(to_uint8(image).squeeze()).save(file, "JPEG", quality=constants)
        found = to_uint8(corrupt(KEY, image, name="jpeg_compression", severity=severity))
        np.testing.assert_array_equal(found.squeeze(), np.asarray(Image.open(file)))


@by_severity(
    (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
)  # fmt: skip
def test_elastic_is_an_affine_map_that_moves_three_points_and_a_smooth_displacement(
    severity, constants
):
    (reach, sigma, shift), rng = 32 * np.array(constants), np.random.default_rng(0)
    grid = np.stack(np.mgrid[:32, :32], -1)
    points = np.array([[26, 26], [6, 26], [6, 6]])  # the centre, and a third of 32 on
    moved = points + rng.uniform(-shift, shift, (3, 2))
    aside = rng.uniform(-1, 1, (2, 32, 32))
    aside = [ndimage.gaussian_filter(each, sigma, mode="reflect", truncate=3) for each in aside]
    back, *_ = np.linalg.lstsq(np.c_[moved, np.ones(3)], points)
    expected = np.append(grid + reach * np.stack(aside, -1), np.ones((32, 32, 1)), -1) @ back
    # Of an image of its own coordinates, each pixel tells where it is from: bilinear is exact.
    image = np.append(grid, np.zeros((32, 32, 1)), -1) / 32
    found = 32 * raw("elastic_transform", image, severity)[..., :2]
    away = np.s_[8:24, 8:24]  # from the borders
    np.testing.assert_allclose(found[away], expected[away], rtol=1e-9)
