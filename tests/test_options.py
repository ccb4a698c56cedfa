"""The contract of every table's options: a number that is no number, or not finite, is refused."""

import dataclasses
import math

import pytest

from attacks import ATTACKS
from purify.evals.certify import smoothing
from purify.evals.gradients.checks import Budget
from purify.langevin import AnnealedLangevin, balanced_step_size
from purify.purifiers import PURIFIERS, Identity, needs_score
from purify.training.adversarial import AdversarialOptions
from purify.training.losses import noise_levels
from purify.training.options import TrainOptions
from purify.training.perturbations import PERTURBATIONS
from tests.oracles import make_score

SCORE = make_score((4, 4, 1))
PARTS = dict(natural=Identity(), suspected=Identity())
# What has options in range: name -> a function of these options.
MADE = {f"purifier {name}": made for name, made in PURIFIERS.items()}
MADE |= {f"attack {name}": made for name, made in ATTACKS.items()}
MADE |= {f"perturbation {name}": made for name, made in PERTURBATIONS.items()}
MADE |= {
    made.__name__: made for made in (TrainOptions, AdversarialOptions, AnnealedLangevin, Budget)
}
NEEDED = {"TrainOptions": dict(num_steps=1, batch_size=1, learning_rate=1e-3)}
NEEDED["AdversarialOptions"] = dict(
    method="pgd_at", norm="linf", eps=0.1, step_size=0.1, num_steps=1, beta=6.0
)
NEEDED["AnnealedLangevin"] = dict(score=SCORE)
NEEDED |= {f"purifier {name}": dict(score=SCORE) for name in PURIFIERS if needs_score(name)}
NEEDED["purifier detect_then_purify"] |= PARTS


def floats(made) -> list[str]:
    """The fields that hold a float, if they are given."""
    return [field.name for field in dataclasses.fields(made) if "float" in str(field.type)]


CASES = [(name, field) for name, made in MADE.items() for field in floats(made)]


def test_every_table_has_options_to_check():
    assert len(CASES) > 40
    assert {name.partition(" ")[0] for name, _ in CASES} >= {"purifier", "attack", "perturbation"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, field", CASES)
def test_an_option_that_is_not_finite_is_refused_by_its_name(name, field, value):
    """`x < 0` is false of NaN: such a check would let it pass."""
    options = NEEDED.get(name, {})
    MADE[name](**options)
    with pytest.raises(ValueError, match=rf"\b{field}="):
        MADE[name](**options | {field: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_functions_of_noise_levels_refuse_what_is_not_finite(value):
    noise = dict(sigma=0.25, num_selection=10, num_samples=100, alpha=1e-3)
    smoothing.check(**noise)
    for field in ("sigma", "alpha"):
        with pytest.raises(ValueError, match=field):
            smoothing.check(**noise | {field: value})
    levels = dict(sigma_max=0.6, sigma_min=0.01, num_levels=4)
    for field in ("sigma_max", "sigma_min"):
        for function in (noise_levels, lambda **o: balanced_step_size(**o, steps_per_level=5)):
            function(**levels)
            with pytest.raises(ValueError, match=field):
                function(**levels | {field: value})
