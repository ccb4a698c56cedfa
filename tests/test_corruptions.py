"""Corruptions: a contract over the whole table, and for each what its constants say."""

import jax
import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from scipy import ndimage

from purify.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from purify.corruptions.blur import smear, zoomed
from purify.corruptions.levels import truncate
from purify.corruptions.weather import ice, plasma
from purify.image_io import to_float, to_uint8

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


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (3, 0.03), (5, 0.07)])
def test_impulses_hit_their_share_half_white_half_black_and_nothing_else(severity, share):
    out = corrupt(KEY, GREY, name="impulse_noise", severity=severity)
    hit, n = out != GREY, GREY.size
    assert set(np.unique(out[hit])) == {0.0, 1.0}
    assert hit.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert out[hit].mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(share * n))
    assert (hit.any(-1) & ~hit.all(-1)).any()  # in single channels


# Blur


def test_a_gaussian_blur_keeps_the_sum_and_has_its_variance():
    point = np.zeros((17, 17, 1))
    point[8, 8] = 1.0
    for severity in SEVERITIES:
        assert raw("gaussian_blur", point, severity).sum() == pytest.approx(1.0, abs=1e-9)
    variance = ((np.arange(17) - 8) ** 2 * raw("gaussian_blur", point, 5).sum((1, 2))).sum()
    assert variance == pytest.approx(1.0, rel=0.01)  # sampled, and cut at four sigma


def test_defocus_is_the_mean_over_a_disk():
    point = np.zeros((9, 9, 1))
    point[4, 4] = 1.0
    plus, square = (raw("defocus_blur", point, severity)[..., 0] for severity in (4, 5))
    # Radius 1 and 1.5, softened by less than 1e-5.
    np.testing.assert_allclose(plus[3:6, 3:6], np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5,
                               atol=1e-4)  # fmt: skip
    np.testing.assert_allclose(square[3:6, 3:6], np.full((3, 3), 1 / 9), atol=1e-4)
    for severity in SEVERITIES:
        assert raw("defocus_blur", point, severity).sum() == pytest.approx(1.0)


def test_glass_takes_each_pixel_from_where_it_was_or_one_further_up_or_left():
    image = to_float(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))  # each value once
    out = to_uint8(corrupt(KEY, image, name="glass_blur", severity=1)).astype(int)[..., 0]
    rows, columns = np.divmod(out, 16)
    up, left = np.arange(16)[:, None] - rows, np.arange(16) - columns
    assert set(np.unique(up)) == set(np.unique(left)) == {0, 1}
    assert not up[:2].any() and not left[:, :2].any()
    # Each way half of the time, to four standard deviations of 196 throws.
    assert up[2:, 2:].mean() == pytest.approx(0.5, abs=4 * 0.5 / 14)


def test_a_smear_has_one_sided_gaussian_weights_along_its_line():
    point = np.zeros((15, 15, 1))
    point[7, 7] = 1.0
    weights = np.exp(-(np.arange(8) ** 2) / (2 * 2.0**2))
    level = smear(point, radius=6, sigma=2.0, degrees=0.0)[..., 0]
    # Pixels to the left see it at their right; of the 13 weights 8 fit in.
    np.testing.assert_allclose(level[7, 7::-1] / level[7, 7], weights, rtol=1e-9)
    assert level[7, 8:].sum() == 0 and np.delete(level, 7, 0).sum() == 0
    np.testing.assert_array_equal(smear(point, radius=6, sigma=2.0, degrees=90.0)[..., 0], level.T)
    assert level.sum() == pytest.approx(1.0, abs=1e-3)  # of what the image's edge cuts off
    diagonal = smear(point, radius=6, sigma=2.0, degrees=45.0)[..., 0]
    assert diagonal[6, 6] == diagonal[5, 5] > 0 or diagonal[6, 6] > diagonal[5, 5] > 0
    np.testing.assert_array_equal(smear(point, radius=3, sigma=0.01, degrees=30.0), point)


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


def test_fog_is_the_image_at_zero_fog_and_black_stays_black():
    image = picture((32, 32, 3))
    haze = plasma(np.random.default_rng(0), (32, 32), 1.75)[..., None]
    np.testing.assert_allclose(raw("fog", image, 5), (image + 1.5 * haze) / 2.5, rtol=1e-6)
    assert not raw("fog", np.zeros((8, 8, 1)), 5).any()


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


def test_water_brightens_and_mud_covers():
    black, white = np.zeros((32, 32, 3)), np.ones((32, 32, 3))
    for severity in (1, 2, 3):
        drops = raw("spatter", black, severity)
        assert drops.min() == pytest.approx(0, abs=1e-12)
        assert drops.max() == pytest.approx(0.5 * 238 / 255)
        assert (drops[..., 1] >= drops[..., 0]).all()
    for severity in (4, 5):
        out = raw("spatter", white, severity)
        covered = (out < 1).any(-1)
        assert 0 < covered.mean() < 0.5
        mud = np.array([63, 42, 20]) / 255
        assert (out[covered] <= 1 - 0.8 * (1 - mud) + 1e-9).all()
        assert (out[covered] >= mud - 1e-9).all()


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


def test_jpeg_keeps_flat_blocks_and_hardly_changes_what_it_has_changed_already():
    flat = np.full((32, 32, 3), 128 * LEVEL, np.float32)
    image = picture((32, 32, 3))
    for severity in SEVERITIES:
        options = dict(name="jpeg_compression", severity=severity)
        np.testing.assert_array_equal(corrupt(KEY, flat, **options), flat)
        once = corrupt(KEY, image, **options)
        twice = corrupt(KEY, once, **options)
        assert np.abs(twice - once).mean() < 0.3 * np.abs(once - image).mean()


def test_elastic_at_severity_1_is_an_affine_map_and_at_5_is_not():
    """Which keeps a plane a plane, away from the borders."""
    rows, columns = np.mgrid[:32, :32] / 64
    plane = (0.2 + rows + 0.5 * columns)[..., None]
    bends = [
        np.abs(np.diff(raw("elastic_transform", plane, s)[8:24, 8:24, 0], n=2)).max()
        for s in (1, 5)
    ]
    assert bends[0] < 1e-9 < 1e-3 < bends[1]
    assert (raw("elastic_transform", plane, 1) != plane).any()


def test_elastic_moves_three_points_by_at_most_its_constant():
    """So a plane's value there changes by no more than its slope allows."""
    rows, columns = np.mgrid[:32, :32] / 64
    most = 0.08 * 32 / 64
    moved = [
        np.abs(raw("elastic_transform", plane[..., None], 1, seed) - plane[..., None])[16, 16]
        for seed in range(20)
        for plane in (rows, columns)
    ]
    # The centre is the mean of two of them, seen through the map back, which stretches.
    assert most / 2 <= np.max(moved) <= 1.5 * most
