"""Figures are PNG files that hold what was passed in: pixels, bars, lines; bad input is named."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from purify.evals.plots import (
    ablation_panels,
    accuracy_bars,
    accuracy_by_cost,
    accuracy_curves,
    certified_curves,
    corruption_accuracies,
    image_grid,
    image_rows,
    roc_curves,
    training_curves,
)
from purify.evals.plots.style import COLORS, DPI, WIDTH, WRONG, dashed, marked


def result(defense="adp", attack="pgd", accuracy=0.5, low=0.4, high=0.6, num_images=100):
    return {
        "defense": {"name": defense, "sigma": 0.25},
        "attack": attack,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "num_images": num_images,
    }


def read(path) -> np.ndarray:
    """8-bit RGB [H, W, 3] of a PNG that has no transparent pixel."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = np.round(255 * imread(path)).astype(int)
    assert (image[..., 3] == 255).all()
    return image[..., :3]


def where(figure: np.ndarray, color: str) -> np.ndarray:
    return (figure == np.round(255 * np.array(to_rgb(color)))).all(axis=-1)


def columns(mask: np.ndarray) -> int:
    """How many runs of columns hold a pixel of the mask."""
    return int(np.sum(np.diff(mask.any(axis=0), prepend=False) & mask.any(axis=0)))


def contains(figure: np.ndarray, block: np.ndarray) -> bool:
    """Whether `block` stands somewhere in `figure`, pixel for pixel."""
    height, width = block.shape[:2]
    corners = np.argwhere((figure == block[0, 0]).all(axis=-1))
    return any(
        np.array_equal(figure[y : y + height, x : x + width], block) for y, x in corners.tolist()
    )


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((32, 24), 3), ((330, 330), 3)])
def test_every_pixel_of_every_image_is_in_the_figure(tmp_path, size, channels):
    images = np.random.default_rng(0).random((2, *size, channels))
    captions = {"attacked": [("cat", False), ("a caption that is wider than its image", True)]}
    image_rows(tmp_path / "rows.png", {"clean": images, "attacked": 1 - images}, captions)
    figure = read(tmp_path / "rows.png")
    scale = max(1, int(1.6 * DPI / max(size)))  # two images have room for the largest scale
    for image in (*images, *(1 - images)):
        levels = np.round(255 * np.broadcast_to(image, (*size, 3)))
        assert contains(figure, np.kron(levels, np.ones((scale, scale, 1))))


@pytest.mark.parametrize("number", [3, 8, 11])
def test_a_grid_has_every_image_in_reading_order(tmp_path, number):
    images = np.random.default_rng(0).random((number, 8, 8, 1))
    image_grid(tmp_path / "grid.png", images, columns=4)
    figure = np.round(255 * imread(tmp_path / "grid.png")).astype(int)[..., :3]
    assert 0.4 * WIDTH * DPI < figure.shape[1] < 0.6 * WIDTH * DPI
    gap = round(0.02 * DPI)
    side = (figure.shape[1] - gap) // 4
    assert figure.shape[0] == -(-number // 4) * side + gap
    for at, image in enumerate(images):
        y, x = side * np.array(divmod(at, 4)) + gap
        levels = np.round(255 * np.broadcast_to(image, (8, 8, 3)))
        enlarged = np.kron(levels, np.ones((*[(side - gap) // 8] * 2, 1)))
        np.testing.assert_array_equal(figure[y : y + side - gap, x : x + side - gap], enlarged)


def test_notes_and_heads_stand_beside_their_images(tmp_path):
    grey = np.full((3, 8, 8, 1), 0.5)
    texts = [("7", True), ("7", False), ("7", True)]
    plain, noted = tmp_path / "plain.png", tmp_path / "noted.png"
    image_rows(plain, {"a": grey, "b": grey}, {"a": texts})
    notes = {"a": {"score norm": ["0.9"] * 3, "step size": ["", "0.1", "stopped"]}}
    image_rows(noted, {"a": grey, "b": grey}, {"a": texts}, notes=notes, heads=["x", "y", "z"])
    before, after = read(plain), read(noted)
    line = round(0.16 * DPI)
    assert after.shape[0] == before.shape[0] + 3 * line  # two notes, and the heads
    assert columns(where(after, WRONG)) == 1
    gap, side = round(0.05 * DPI), 320
    left = after.shape[1] - 3 * (side + gap)
    assert left > before.shape[1] - 3 * (side + gap)  # "score norm" is wider than "a"
    # Heads, then images, captions, score norms and step sizes: what has ink beside and below what.
    texts = (after != 255).any(-1)
    for y, there in (
        (gap, [False, True, True, True]),
        (gap + 2 * line + side, [True, True, True, True]),
        (gap + 3 * line + side, [True, False, True, True]),
    ):
        middle = texts[y + line // 4 : y + line // 4 + line]
        edges = [0, left, left + side + gap, left + 2 * (side + gap), after.shape[1]]
        found = [middle[:, a:b].any() for a, b in zip(edges, edges[1:], strict=False)]
        assert found == there


def test_many_images_fit_the_width_and_wrong_captions_are_red(tmp_path):
    grey = np.full((10, 28, 28, 1), 0.5)
    ok = [(str(i), True) for i in range(10)]
    image_rows(tmp_path / "ok.png", {"clean": grey, "noised": grey}, {"clean": ok})
    image_rows(tmp_path / "wrong.png", {"clean": grey}, {"clean": [("7", False), *ok[1:]]})
    figure, wrong = read(tmp_path / "ok.png"), read(tmp_path / "wrong.png")
    assert 0.8 * WIDTH * DPI < figure.shape[1] <= WIDTH * DPI
    assert not where(figure, WRONG).any()
    assert columns(where(wrong, WRONG)) == 1


def test_text_with_dollars_is_no_formula(tmp_path):
    image_rows(tmp_path / "a.png", {"$x": np.ones((1, 8, 8, 1))}, {"$x": [("$\\bad{$", True)]})
    accuracy_bars(tmp_path / "b.png", [result("$\\bad{$")])
    assert read(tmp_path / "a.png").size and read(tmp_path / "b.png").size


@pytest.mark.parametrize(
    ("rows", "captions", "message"),
    [
        ({}, None, "empty"),
        ({"clean": np.zeros((8, 8, 1))}, None, "must be"),
        ({"clean": np.zeros((2, 8, 8, 2))}, None, "1 or 3"),
        ({"clean": np.zeros((0, 8, 8, 1))}, None, "clean"),
        ({"a": np.zeros((2, 8, 8, 1)), "b": np.zeros((3, 8, 8, 1))}, None, "first row"),
        ({"noised": np.full((1, 8, 8, 1), 1.2)}, None, r"\[0, 1\]"),
        ({"noised": np.full((1, 8, 8, 1), np.nan)}, None, "nan"),
        ({"clean": np.zeros((2, 8, 8, 1))}, {"clean": [("3", True)]}, "1 entries"),
        ({"clean": np.zeros((1, 8, 8, 1))}, {"other": [("3", True)]}, "other"),
    ],
)
def test_bad_images_are_named(tmp_path, rows, captions, message):
    with pytest.raises(ValueError, match=message):
        image_rows(tmp_path / "rows.png", rows, captions)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"notes": {"other": {"norm": ["1"]}}}, "notes\\['other'\\]\\['norm'\\]"),
        ({"notes": {"clean": {"norm": ["1", "2"]}}}, "2 entries, must be 1"),
        ({"heads": ["a", "b"]}, "heads: 2 entries, must be 1"),
    ],
)
def test_notes_and_heads_of_another_number_are_named(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        image_rows(tmp_path / "rows.png", {"clean": np.zeros((1, 8, 8, 1))}, **texts)
    assert not list(tmp_path.iterdir())


def test_bars_stand_in_the_colour_of_their_attack_and_as_high_as_their_accuracy(tmp_path):
    rows = [
        result("none", "clean", 1.0, 0.97, 1.0),
        result("none", "pgd", 0.0, 0.0, 0.04),
        result("adp", "clean", 0.8, 0.7, 0.9),
        result("adp", "pgd"),
        result("adp", "square", 0.25, 0.15, 0.35),  # not run on the undefended network
    ]
    accuracy_bars(tmp_path / "bars.png", rows)
    figure = read(tmp_path / "bars.png")
    plot = figure[figure.shape[0] // 8 :]  # below the legend
    assert [columns(where(plot, color)) for color in COLORS[:4]] == [2, 1, 1, 0]
    heights = [int(where(plot, color).any(axis=1).sum()) for color in COLORS[:3]]
    assert heights[1] / heights[0] == pytest.approx(0.5, abs=0.02)
    assert heights[2] / heights[0] == pytest.approx(0.25, abs=0.02)


def test_figure_grows_with_the_bars_and_numbers_of_images_may_differ(tmp_path):
    many = [result(f"d{i}", f"a{j}", num_images=i + 1) for i in range(5) for j in range(10)]
    accuracy_bars(tmp_path / "one.png", [result(accuracy=0.4 - 1e-12)])  # rounding is forgiven
    accuracy_bars(tmp_path / "many.png", many)
    one, figure = read(tmp_path / "one.png"), read(tmp_path / "many.png")
    assert one.shape[1] < WIDTH * DPI < figure.shape[1]


def test_many_defences_stand_in_several_lines(tmp_path):
    rows = [result(f"d{i}", attack) for i in range(12) for attack in ("clean", "a", "b")]
    accuracy_bars(tmp_path / "few.png", rows[:9])
    accuracy_bars(tmp_path / "many.png", rows)
    few, many = read(tmp_path / "few.png"), read(tmp_path / "many.png")
    assert many.shape[1] <= 1.6 * WIDTH * DPI
    assert many.shape[0] > 1.5 * few.shape[0]
    first, second = np.array_split(many[len(many) // 10 :], 2)  # below the legend
    defenses = [columns(where(line, COLORS[0])) for line in (first, second)]
    assert defenses == [6, 6]  # as even as can be


def test_cost_figure_puts_dearer_defences_to_the_right_and_better_ones_higher(tmp_path):
    def place(**changes):
        rows = [
            result("cheap", "clean", 0.2, 0.2, 0.2) | {"defense_nfe_per_image": 1.0},
            result("dear", "clean", 0.9, 0.9, 0.9) | {"defense_nfe_per_image": 100.0},
        ]
        accuracy_by_cost(tmp_path / "cost.png", [rows[0], rows[1] | changes])
        figure = read(tmp_path / "cost.png")
        plot = figure[figure.shape[0] // 5 :]  # below the legend
        return [np.argwhere(where(plot, color)).mean(0) for color in COLORS[:2]]

    (cheap_y, cheap_x), (dear_y, dear_x) = place()
    assert cheap_y > dear_y and cheap_x < dear_x  # y counts from the top
    (cheap_y, cheap_x), (dear_y, dear_x) = place(accuracy=0.1, low=0.1, high=0.1)
    assert cheap_y < dear_y and cheap_x < dear_x
    with pytest.raises(ValueError, match="defense_nfe_per_image"):
        accuracy_by_cost(tmp_path / "cost.png", [result()])


@pytest.mark.parametrize("draw", [accuracy_bars, accuracy_by_cost])
def test_a_result_without_an_exact_gradient_beside_it_is_marked(tmp_path, draw, monkeypatch):
    """In the figure and in its note; one that has it, or needs none, is as before."""
    labels = []
    text = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda axes, x, y, s, **how: labels.append(s) or text(axes, x, y, s, **how)
    )

    def drawn(**changes):
        path = tmp_path / "figure.svg"
        draw(path, [result() | {"defense_nfe_per_image": 5.0} | changes])
        return path.read_text()

    plain = drawn()
    assert drawn(exact_beside=True) == drawn(exact_beside=None) == plain
    marked = drawn(exact_beside=False)
    said = "no exact gradient was tried"
    assert said not in plain and said in marked
    if draw is accuracy_bars:
        assert labels == ["50.0", "50.0", "50.0", "50.0?"]
    else:  # hollow, and so is its sample in the legend
        assert marked.count("fill: #ffffff") == plain.count("fill: #ffffff") + 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        ([{"attack": "pgd"}], "no defense, num_images"),
        ([result(low=0.6)], "must rise"),
        ([result(high=float("nan"))], "must rise"),
        ([result(accuracy=50.0, high=60.0)], "must rise"),
        ([result(), result()], "second row of adp under pgd"),
    ],
)
def test_bad_results_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        accuracy_bars(tmp_path / "bars.png", rows)


def test_curves_draw_one_strip_for_each_network(tmp_path):
    classifier = [
        {"step": i, "loss": 2.0 / (i + 1), "accuracy": i / 50, "learning_rate": 0.1}
        for i in range(50)
    ]
    classifier[-1] |= {"val_accuracy": 0.8, "note": "text", "val/loss": None}
    levels = {"loss_by_sigma/0.01": 1.0, "loss_by_sigma/1": float("nan")}
    score = [{"step": i, "loss": -1.0, **levels} for i in range(3)]
    training_curves(tmp_path / "both.png", {"classifier": classifier, "score": score})
    training_curves(tmp_path / "one.png", {"score": score[:1]})
    both, one = read(tmp_path / "both.png"), read(tmp_path / "one.png")
    assert both.shape[1] == one.shape[1] == WIDTH * DPI
    assert both.shape[0] == 2 * one.shape[0]
    top = both[: len(both) // 2]
    assert columns(where(top, COLORS[0])) >= 3  # loss, accuracy, learning rate
    assert where(top, COLORS[1]).any()  # the validation accuracy, a single point


def test_a_resumed_run_draws_the_later_of_two_lines(tmp_path):
    straight = [{"step": i, "loss": 1.0 + i} for i in range(4)]
    resumed = [*straight[:2], {"step": 2, "loss": 90.0}, {"step": 3, "loss": 99.0}, *straight[2:]]
    training_curves(tmp_path / "straight.png", {"score": straight})
    training_curves(tmp_path / "resumed.png", {"score": resumed})
    assert np.array_equal(read(tmp_path / "straight.png"), read(tmp_path / "resumed.png"))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "empty"),
        ({"score": []}, "no metric"),
        ({"score": [{"step": 1, "seconds": 2.0}]}, "seconds"),
        ({"score": [{"loss": 1.0}]}, "no step"),
        ({"score": [{"step": 1, "loss_by_sigma/0": 1.0}]}, "positive"),
    ],
)
def test_bad_curves_are_named(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        training_curves(tmp_path / "curves.png", curves)


def test_pyplot_is_never_imported():
    code = "import sys, purify.evals.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def corrupted(defense, corruption, accuracy, low, high):
    return {"corruption": corruption, **result(defense, None, accuracy, low, high)}


def test_corruptions_have_a_dot_of_each_defence_as_far_right_as_its_accuracy(tmp_path):
    # From one whisker's end to the other is as wide as the share of the axis that it covers.
    spans = {"identity": (0.0, 0.5, 1.0), "adp": (0.25, 0.5, 0.75)}
    entries = [
        corrupted(defense, name, value, low, high)
        for name in ("fog", "$odd{", "snow")
        for defense, (low, value, high) in spans.items()
    ]
    corruption_accuracies(tmp_path / "figure.png", entries)
    figure = read(tmp_path / "figure.png")
    widths = {}
    for defense, color in zip(spans, COLORS, strict=False):
        mask = where(figure, color)
        mask[: int(0.1 * len(mask))] = False  # the legend
        lines = mask.any(axis=1)
        assert np.sum(np.diff(lines, prepend=False) & lines) == 3  # one line for each corruption
        columns_there = np.flatnonzero(mask.any(axis=0))
        widths[defense] = np.ptp(columns_there)
        # Smoothed ends are of another colour: a few of some 1,300 pixels.
        assert abs(np.mean(columns_there[[0, -1]]) - figure.shape[1] * 0.5) < 0.2 * figure.shape[1]
    assert widths["adp"] == pytest.approx(widths["identity"] / 2, abs=6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "empty"),
        ([corrupted("adp", "fog", 0.5, 0.6, 0.7)], "adp on fog: low, accuracy, high are"),
        ([corrupted("adp", "fog", 0.5, 0.4, 1.1)], r"within \[0, 1\]"),
    ],
)
def test_bad_results_on_corruptions_are_named(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        corruption_accuracies(tmp_path / "figure.png", entries)
    assert not list(tmp_path.iterdir())


CERTIFIED = {"num_samples": 1000, "largest_radius": 1.0}


def test_certified_curves_fall_with_the_radius(tmp_path):
    """One colour for each defence; the higher curve's pixels lie above the lower one's."""
    shared = CERTIFIED | {"num_images": 40}
    rows = [
        {"defense": {"name": name, "sigma": 0.25}, "certified_radii": radii} | shared
        for name, radii in (("high", [0.9] * 36 + [0.0] * 4), ("low", [0.4] * 8 + [0.0] * 32))
    ]
    certified_curves(tmp_path / "curves.png", rows)
    figure = read(tmp_path / "curves.png")
    figure = figure[figure.shape[0] // 5 :]  # below the legend
    high, low = (np.argwhere(where(figure, color)) for color in COLORS[:2])
    left = figure.shape[1] // 3  # where both are level
    assert high[high[:, 1] < left][:, 0].min() + 100 < low[low[:, 1] < left][:, 0].min()
    assert high[:, 0].max() > low[:, 0].min()  # it falls as well
    for wrong in ([], [rows[0] | {"certified_radii": []}]):
        with pytest.raises(ValueError, match="at least one"):
            certified_curves(tmp_path / "no.png", wrong)


def test_certified_curves_of_other_budgets_stand_in_another_panel(tmp_path):
    rows = [
        {"defense": {"name": name, "sigma": 0.25}, "certified_radii": [0.5], "num_images": 1}
        | CERTIFIED
        | {"num_samples": num_samples}
        for name, num_samples in (("dear", 1000), ("cheap", 100))
    ]
    certified_curves(tmp_path / "curves.png", rows)
    figure = read(tmp_path / "curves.png")[150:]  # below the legend
    middle = figure.shape[1] // 2
    dear, cheap = (where(figure, color) for color in COLORS[:2])
    assert dear[:, :middle].any() and not dear[:, middle:].any()
    assert cheap[:, middle:].any() and not cheap[:, :middle].any()


def test_accuracy_curves_rise_and_fall_with_their_rows(tmp_path):
    """One colour for each curve: the higher one's pixels lie above the lower one's."""
    curves = {
        name: [{"eps": eps, **result(None, None, *ends)} for eps in (0.0, 0.1, 0.2)]
        for name, ends in (("high", (0.9, 0.85, 0.95)), ("low", (0.3, 0.2, 0.4)))
    }
    accuracy_curves(tmp_path / "curves.png", curves, "eps", "eps")
    figure = read(tmp_path / "curves.png")
    high, low = (np.argwhere(where(figure, color))[:, 0] for color in COLORS[:2])
    legend = len(figure) // 6
    assert high[high > legend].max() + 100 < low[low > legend].min()
    for wrong in ({}, {"none": []}):
        with pytest.raises(ValueError, match="at least one"):
            accuracy_curves(tmp_path / "no.png", wrong, "eps", "eps")


def test_a_figure_can_be_svg_and_is_the_same_each_time(tmp_path):
    for name in ("one.svg", "other.svg"):
        accuracy_bars(tmp_path / name, [result("<adp & co>")])
    one = (tmp_path / "one.svg").read_text()
    assert one == (tmp_path / "other.svg").read_text()
    bars = ET.fromstring(one).iter("{http://www.w3.org/2000/svg}path")
    assert any(COLORS[0].lower() in bar.get("style", "") for bar in bars)


def ablated(factor, value, attack, accuracy, low, high, **more):
    row = result("adp", attack, accuracy, low, high)
    return row | {"factor": factor, "value": value, "default": False} | more


def test_an_ablation_has_a_panel_for_each_factor_with_a_marker_at_each_value(tmp_path):
    """Numbers are joined, names are not; the default stands on grey; costs where they vary."""
    rows = [
        ablated(*(factor, value, attack, middle, middle - 0.1, middle + 0.1), **costs)
        for factor, values, nfe in (("$T", (2, 10), (4, 20)), ("kind", ("adp", "one"), (20, 20)))
        for value, cost in zip(values, nfe, strict=True)
        for attack, middle in (("clean", 0.8), ("exact", 0.3))
        for costs in [{"defense_nfe_per_image": cost, "default": value in (10, "adp")}]
    ]
    ablation_panels(tmp_path / "figure.png", rows)
    figure = read(tmp_path / "figure.png")
    half = figure.shape[1] // 2
    top = int(0.2 * len(figure))  # the legend is above
    for color in COLORS[:2]:
        numbers, names = (where(part, color) for part in np.split(figure[top:], [half], axis=1))
        assert columns(numbers) == 1 and columns(names) == 2
        assert np.ptp(np.flatnonzero(numbers.any(axis=0))) > half / 3
    high, low = (np.flatnonzero(where(figure[top:], color).any(axis=1)) for color in COLORS[:2])
    assert high.max() < low.min()  # 70 to 90 % above 20 to 40 %
    ablation_panels(tmp_path / "plain.png", [row | {"default": False} for row in rows])
    plain = read(tmp_path / "plain.png")
    greyed = np.argwhere((plain == 255).all(-1) & (figure != 255).any(-1))
    beside = [
        np.ptp(side[:, 1]) for side in (greyed[greyed[:, 1] < half], greyed[greyed[:, 1] >= half])
    ]
    assert all(0.3 * half < width < 0.6 * half for width in beside)  # one of two values


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        (
            [ablated("T", 2, "bpda", 0.5, 0.6, 0.7, defense_nfe_per_image=4)],
            "T 2 under bpda: low, accuracy, high are",
        ),
    ],
)
def test_bad_results_of_an_ablation_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        ablation_panels(tmp_path / "figure.png", rows)
    assert not list(tmp_path.iterdir())


# Without colours


@pytest.mark.parametrize("styled", [marked, dashed])
def test_series_differ_in_more_than_their_colour(styled):
    other = "marker" if styled is marked else "ls"
    assert len({styled(i)[other] for i in range(7)}) == 7
    assert len({(styled(i)["color"], styled(i)[other]) for i in range(56)}) == 56


NAMES = ("one", "other", "third", "last")
COST = {"defense_nfe_per_image": 10.0}
AREA = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 10}
# Of each figure with one curve or dot for each of these names.
DRAWN = {
    "accuracy": lambda path: accuracy_by_cost(path, [result(name) | COST for name in NAMES]),
    "ablation": lambda path: ablation_panels(
        path, [ablated("T", 2, name, 0.5, 0.4, 0.6, **COST) for name in NAMES]
    ),
    "corruptions": lambda path: corruption_accuracies(
        path, [corrupted(name, "fog", 0.5, 0.4, 0.6) for name in NAMES]
    ),
    "sweeps": lambda path: accuracy_curves(
        path, {name: [result() | {"eps": 0.1}] for name in NAMES}, "eps", "eps"
    ),
    "certified": lambda path: certified_curves(
        path, [result(name) | CERTIFIED | {"certified_radii": [0.5]} for name in NAMES]
    ),
    "roc": lambda path: roc_curves(
        path, {"a": [{"name": n, "false": [0, 1], "true": [0, 1], **AREA} for n in NAMES]}, rate=0.1
    ),
    "curves": lambda path: training_curves(
        path, {"score": [{"step": i} | {f"{n}/loss": i for n in NAMES} for i in range(2)]}
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_no_series_is_told_by_its_colour_alone(tmp_path, monkeypatch, name):
    figures = []
    monkeypatch.setattr(f"purify.evals.plots.{name}.save", lambda fig, path: figures.append(fig))
    DRAWN[name](tmp_path / "figure.png")
    styles: dict[str, set] = {}
    for line in (line for axes in figures[0].axes for line in axes.lines):
        if line.get_marker() not in ("_", "|"):  # ends of whiskers
            styles.setdefault(line.get_color(), set()).add(
                (line.get_marker(), line.get_linestyle())
            )
    series = [styles[color] for color in COLORS[: len(NAMES)]]
    assert len(set.union(*series)) == len(NAMES) == sum(map(len, series))
