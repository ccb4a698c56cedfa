"""What a config derives of its own values follows them, in every config and variant."""

import importlib

import pytest

from configs import cifar10, digits
from configs.base import set_eps
from main import default_workdir
from purify.evals.ablate.plan import changed, factors_of, field_of
from tests.command import ROOT

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "base")
CONFIGS = [
    (name, variant)
    for name in FILES
    for variant in (digits.VARIANTS if name == "digits" else cifar10.VARIANTS)
]
# Steps that were published with a radius, not derived of it.
PUBLISHED = ("blind", "bpda_votes")
EPS = {"digits": 0.15, "mnist": 0.3, "fashion_mnist": 0.1}
every_config = pytest.mark.parametrize(("name", "variant"), CONFIGS)


def make(name: str, variant: str):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def linf_attacks(config) -> dict:
    return {n: own for n, own in config.attacks.items() if own.get("norm") == "linf"}


@every_config
def test_all_attacks_have_the_radius_of_the_data_set(name, variant):
    config, eps = make(name, variant), EPS.get(name, 8 / 255)
    published = {"blind"} if variant == "reference" and name not in EPS else set()
    assert {n for n, own in linf_attacks(config).items() if own.eps != eps} == published
    assert config.classifier.adversarial.eps == eps


@every_config
def test_steps_are_a_quarter_of_the_radius_wherever_that_is_set(name, variant):
    config = make(name, variant)
    fixed = PUBLISHED if variant == "reference" and name not in EPS else ()
    steps = {f"attacks.{n}" for n, own in config.attacks.items() if "step_size" in own}
    steps = {*steps, "classifier.adversarial"} - {f"attacks.{n}" for n in fixed}
    for field in steps:
        assert field_of(config, field).step_size == field_of(config, field).eps / 4
        # As by a flag.
        other = field_of(changed(config, {f"{field}.eps": 0.7}), field)
        assert (other.eps, other.step_size) == (0.7, 0.7 / 4)
        own = field_of(changed(config, {f"{field}.step_size": 0.3, f"{field}.eps": 0.7}), field)
        assert (own.eps, own.step_size) == (0.7, 0.3)
    for attack in fixed:
        assert config.attacks[attack].step_size == 2 / 255


@every_config
def test_ablated_radii_are_multiples_of_the_radius_wherever_that_is_set(name, variant):
    config = make(name, variant)
    if variant == "reference":  # its attacks have no common radius
        assert "eps" not in config.ablate.names
        return
    for eps in (None, 0.2, 0.04):
        if eps:
            set_eps(config, eps)
        eps = EPS.get(name, 8 / 255) if eps is None else eps
        (found,) = (factor for factor in factors_of(config) if factor.name == "eps")
        assert found.default == eps
        assert found.values == (eps / 4, eps / 2, eps, 2 * eps)
    flags = dict.fromkeys(config.ablate.factors.eps.fields, 0.1)
    (found,) = (factor for factor in factors_of(changed(config, flags)) if factor.name == "eps")
    assert found.values == (0.025, 0.05, 0.1, 0.2)
    config.ablate.factors.eps.at = (0.01,)
    (found,) = (factor for factor in factors_of(config) if factor.name == "eps")
    assert found.values == (0.01, 0.04)


@every_config
def test_all_purifiers_have_one_sigma(name, variant):
    config = changed(make(name, variant), {"adp.sigma": 0.11})
    purifiers = ("adp", "adp_reference", "schedule", "one_step", "noise_only")
    assert {config[purifier].sigma for purifier in purifiers} == {0.11}


@every_config
def test_the_baseline_is_read_from_where_its_variant_trains_it(name, variant):
    config = make(name, variant)
    if "pgd_at" in config.variants:
        trained = default_workdir(f"configs/{name}.py:pgd_at")
        assert config.variants.pgd_at.classifier == str(trained)


def test_what_copies_options_follows_them():
    """The natural branch as a purifier of its own, and baselines with as few samples as ADP."""
    config = make("digits", "detect")
    assert config.variants.lightly.to_dict() == dict(purifier="schedule", sigma=0.1)
    changes = {"detect_then_purify.natural.sigma": 0.05, "certify.budgets.adp.num_samples": 500}
    config = changed(config, changes)
    assert config.variants.lightly.to_dict() == dict(purifier="schedule", sigma=0.05)
    for name in ("noise_only_1k", "one_step_1k"):
        assert config.certify.budgets[name].to_dict() == dict(num_images=20, num_samples=500)
    own = changed(config, {"variants.lightly.sigma": 0.2})
    assert own.detect_then_purify.natural.sigma == 0.05 and own.variants.lightly.sigma == 0.2
