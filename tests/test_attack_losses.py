"""Attack losses by hand, by their invariances and by finite differences."""

import jax
import numpy as np
import pytest

from attacks.losses import LOSSES, TARGETED, cross_entropy, dlr, margin

LOGITS = np.array([2.0, 5.0, -1.0, 4.0])
every_loss = pytest.mark.parametrize("name", LOSSES)


def random_logits(n: int = 200, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (n, classes)), rng.integers(0, classes, n)


def by_hand(name: str, logits: np.ndarray, label: int) -> float:
    others = np.delete(logits, label)
    ordered = np.sort(logits)[::-1]
    return {
        "cross_entropy": np.log(np.exp(logits - logits[label]).sum()),
        "margin": others.max() - logits[label],
        "dlr": (others.max() - logits[label]) / (ordered[0] - ordered[2]),
    }[name]


@pytest.mark.parametrize(
    ("loss_fn", "label", "expected"),
    [
        (margin, 1, -1.0),  # right, by 5 - 4
        (margin, 0, 3.0),
        (margin, 2, 6.0),
        (dlr, 1, -1 / 3),  # over 5 - 2
        (dlr, 2, 2.0),
        (cross_entropy, 1, np.log(np.exp(-3) + 1 + np.exp(-6) + np.exp(-1))),
        (cross_entropy, 2, np.log(np.exp(3) + np.exp(6) + 1 + np.exp(5))),
    ],
)
def test_losses_of_four_logits_worked_out_by_hand(loss_fn, label, expected, x64):
    assert loss_fn(LOGITS, label) == pytest.approx(expected, rel=1e-12)


@every_loss
def test_losses_are_their_formulas(name, x64):
    for logits, label in zip(*random_logits(), strict=True):
        expected = by_hand(name, logits, label)
        # 1e-12 in the DLR's denominator.
        assert LOSSES[name](logits, label) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss_fn", [margin, dlr])
def test_margin_and_dlr_are_positive_exactly_where_the_label_is_not_the_answer(loss_fn):
    logits, labels = random_logits()
    wrong = logits.argmax(-1) != labels
    assert 20 < wrong.sum() < 180
    np.testing.assert_array_equal(jax.vmap(loss_fn)(logits, labels) > 0, wrong)


def test_dlr_is_invariant_to_shift_and_scale_where_cross_entropy_vanishes(x64):
    logits, labels = random_logits()
    for scale, shift in ((1e4, 0.0), (1e-4, 0.0), (1.0, 100.0), (7.0, -3.0)):
        # Relative to a spread of 1e-4, the 1e-12 in the denominator is 1e-8.
        np.testing.assert_allclose(
            jax.vmap(dlr)(scale * logits + shift, labels), jax.vmap(dlr)(logits, labels), rtol=1e-6
        )
    right = logits.argmax(-1) == labels
    gradient = jax.vmap(jax.grad(cross_entropy))(1e4 * logits.astype(np.float32), labels)
    assert (gradient[right] == 0).mean() > 0.9  # what makes DLR worth having


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes, got 2"):
        dlr(np.zeros(2), 0)


@every_loss
def test_losses_of_equal_logits_are_finite_with_finite_gradients(name):
    value, gradient = jax.value_and_grad(LOSSES[name])(np.zeros(4, np.float32), 1)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every_loss
def test_gradients_are_finite_differences(name, x64):
    logits, labels = random_logits(20)
    step = 1e-6
    for at, label in zip(logits, labels, strict=True):
        difference = [
            (by_hand(name, at + step * e, label) - by_hand(name, at - step * e, label)) / (2 * step)
            for e in np.eye(5)
        ]
        # Central differences: rounding of 1e-16 / 1e-6 at values of order 1 to 10.
        np.testing.assert_allclose(jax.grad(LOSSES[name])(at, label), difference, atol=1e-7)


def test_targeted_losses_worked_out_by_hand(x64):
    """Of logits 2, 5, -1, 4 with label 1 and target 0."""
    expected = {"margin": 2.0 - 5.0, "dlr": (2.0 - 5.0) / (5.0 - (2.0 - 1.0) / 2),
                "cross_entropy": -np.log(1 + np.exp(3) + np.exp(-3) + np.exp(2))}  # fmt: skip
    assert set(expected) == set(TARGETED) == set(LOSSES)
    for name, value in expected.items():
        assert TARGETED[name](LOGITS, 1, 0) == pytest.approx(value, rel=1e-11)


def test_the_largest_targeted_margin_is_the_margin():
    for logits, label in zip(*random_logits(50), strict=True):
        others = [t for t in range(len(logits)) if t != label]
        largest = max(float(TARGETED["margin"](logits, label, t)) for t in others)
        assert largest == pytest.approx(float(margin(logits, label)), rel=1e-6)


def test_the_targeted_dlr_loss_needs_four_classes():
    with pytest.raises(ValueError, match="needs at least 4 classes, got 3"):
        TARGETED["dlr"](np.zeros(3), 0, 1)
