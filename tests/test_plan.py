"""What an evaluation will do: every config's rows, their cost, and what the attacker sees."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

import attacks
from attacks.apgd import APGD
from attacks.directions import PurifiedDirection, ScoreDirection
from attacks.gradients import BPDA, ApproximateInput, Blind
from attacks.square import Square
from configs import base, cifar10, digits
from configs.base import suite
from purify import models
from purify.detectors import Penalty, ScoreNorm
from purify.evals.attacked.plan import plan
from purify.evals.attacked.rows import crafting, limited, main_ball, with_stages, without_exact
from purify.evals.core.defenses import network_run
from purify.evals.core.inputs import network_runs
from purify.evals.robust import purifiers_of
from purify.models.networks import Classifier, Score
from purify.purifiers import ADP, PURIFIERS, Schedule
from purify.saving.settings import differing_fields
from tests.test_ascent import NORMS_OF

CIFAR_LIKE = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "tiny_imagenet")
CONFIGS = [("digits", variant) for variant in digits.VARIANTS]
CONFIGS += [(name, variant) for name in CIFAR_LIKE for variant in cifar10.VARIANTS]


def make(name: str, variant: str = "", num_classes: int = 10, **changes):
    """(config, its rows) with networks that have no parameters: nothing is computed here."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config(variant)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    network = models.build(**config.classifier.network.to_dict(), num_classes=num_classes)
    field = models.build(**config.score.network.to_dict())
    networks = {}
    for run in network_runs(config, Path("runs"), purifiers_of(config)):
        score = run.endswith("score")
        networks[run] = (
            Score({"run": run}, field, config.score.head)
            if score
            else Classifier({"run": run}, network)
        )
    return config, {row.name: row for row in plan(config, networks, 10_000)}


def test_of_few_classes_all_wrong_ones_are_aimed_at():
    for chosen in (dict(eval__attack_list="strong"), dict(eval__attacks=("autoattack_standard",))):
        _, rows = make("cifar10", "resnet20", num_classes=4, **chosen)
        targets = {
            stage.attack.targets
            for row in with_stages(rows.values())
            for stage in (row, *row.stages)
            if getattr(stage.attack, "targets", 0)
        }
        assert targets == {3}
    with pytest.raises(ValueError, match="loss='dlr' needs [34] classes, the classifier has 2"):
        make("cifar10", "resnet20", num_classes=2, eval__attack_list="strong")


def test_a_surrogate_may_have_a_score_model_of_its_own():
    changes = dict(variants__other=dict(purifier="adp", score="elsewhere"))
    changes |= dict(attacks__exact__gradient="surrogate", attacks__exact__surrogate="other")
    _, rows = make("digits", eval__attacks=("blind", "exact"), **changes)
    assert rows["adp-exact"].attacked.purifier.score.variables == {"run": "elsewhere/score"}
    assert rows["adp-exact"].defense.purifier.score.variables == {"run": "score"}


@pytest.mark.parametrize("name", CIFAR_LIKE)
def test_the_robust_baseline_is_what_the_same_config_trains(name):
    config, _ = make(name, "strong")
    assert config.variants.pgd_at.classifier == f"runs/{name}_pgd_at"


@pytest.mark.parametrize("name, variant", CONFIGS)
def test_every_config_plans_the_baselines_and_exact_beside_bpda(name, variant):
    config, rows = make(name, variant)
    if variant == "strong":
        return  # it has a test of its own
    if variant == "tuning":
        assert config.eval.attacks == ("blind",) and config.data.test_split == "train[3500:4000]"
        assert config.data.train_split == "train[:3500]"
        return
    adp = config.defense.purifier
    for defense in ("identity", "noise_only", "one_step", adp):
        assert {f"{defense}-clean", f"{defense}-blind"} <= rows.keys()
    lam = 0.1 if variant in ("resnet20", "tiny", "pgd_at") and name != "digits" else 0.05
    assert rows[f"{adp}-clean"].defense.purifier.lam == config[adp].lam == lam
    bpda, exact = rows[f"{adp}-bpda"], rows[f"{adp}-exact"]
    assert bpda.attack == exact.attack  # same loss, EOT, iterations and starts: only the gradient
    assert isinstance(bpda.attacked.purifier, BPDA)
    assert exact.attacked.purifier.loop == "scan" and exact.defense.purifier.loop == "while"
    assert isinstance(rows[f"{adp}-blind"].attacked.purifier, Blind)
    names = [name for name in PURIFIERS if f"{name}-clean" in rows]
    purifiers = [rows[f"{name}-clean"].defense.purifier for name in names]
    sigmas = {getattr(purifier, "sigma", config.adp.sigma) for purifier in purifiers}
    assert sigmas == {config.adp.sigma}


@pytest.mark.parametrize("name", CIFAR_LIKE)
def test_an_unknown_variant_lists_those_there_are(name):
    with pytest.raises(
        ValueError,
        match="'huge' is unknown; known: reference, resnet20, tiny, tuning, strong, pgd_at",
    ):
        make(name, "huge")


@pytest.mark.parametrize("variant", cifar10.VARIANTS)
@pytest.mark.parametrize("name", CIFAR_LIKE[1:])
def test_configs_differ_from_cifar10_only_where_they_must(name, variant):
    """In the data, its mean and standard deviation, its radius, what may be mirrored, where samples
    start (the noise that hides an image grows with its size), and where its baseline lies."""
    ours, theirs = (make(name, variant)[0].to_dict() for name in (name, "cifar10"))
    fields = {line.split(":")[0] for line in differing_fields(theirs, ours)}
    allowed = r"data\.name|classifier\.network\.(mean|std)|.*\.(eps|step_size|augment)"
    allowed += r"|variants\.pgd_at\.classifier"
    allowed += r"|sample\.start" if name == "tiny_imagenet" else ""
    assert fields and all(re.fullmatch(allowed, field) for field in fields), fields
    signs = name in ("mnist", "svhn")  # a mirrored one is another sign
    mirrored = [ours[role]["train"]["augment"] for role in ("classifier", "score")]
    assert mirrored == (["crop", "none"] if signs else ["flip_crop", "flip"])


def test_the_reference_variant_is_the_published_attack():
    _, rows = make("cifar10", "reference")
    blind, votes = rows["adp_reference-blind"].attack, rows["adp_reference-bpda_votes"].attack
    assert blind.eps == 8 / 256 and (votes.eot, votes.eot_samples) == ("sign_vote", 15)
    for attack in (blind, votes):
        assert (attack.num_steps, attack.keep, attack.random_start) == (40, "last", False)
        assert attack.loss == "cross_entropy"


def test_one_sigma_moves_all_purifiers():
    _, rows = make("digits", adp__sigma=0.1)
    for name in ("noise_only", "one_step", "schedule", "adp"):
        assert rows[f"{name}-clean"].defense.purifier.sigma == 0.1


def test_variants_are_purifiers_with_changes():
    secant = dict(purifier="adp", curvature="secant", sigma=0.1)
    changes = {
        "variants.adp_secant": secant,
        "eval.defenses": ("identity", "noise_only", "adp_secant"),
    }
    config, rows = make("digits", eval__attacks=(), **changes)
    assert isinstance(rows["adp_secant-clean"].defense.purifier, ADP)
    assert config.adp.sigma == 0.25 and config.adp.curvature == "jvp"
    purifier = rows["adp_secant-clean"].defense.purifier
    assert (purifier.sigma, purifier.curvature, purifier.lam) == (0.1, "secant", config.adp.lam)


@pytest.mark.parametrize(
    "name, variant, said",
    [
        ("adp", {"purifier": "schedule"}, "config.variants.adp: the name must be"),
        ("no-name", {"purifier": "adp"}, "config.variants.no-name: the name must be"),
        ("thick", {"purifier": "wall"}, "'wall' is unknown; known: identity"),
        ("thick", {"sigma": 0.1}, "config.variants.thick.purifier None is unknown"),
        ("thick", {"purifier": "adp", "width": 3}, "adp has no option width"),
        (
            "other",
            {"purifier": "adp", "classifier": 3},
            "variants.other.classifier=3 must be a wor",
        ),
    ],
)
def test_variants_that_do_not_fit_are_refused(name, variant, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make("digits", eval__defenses=(name,), **{f"variants.{name}": variant})


def test_bpda_alone_must_be_asked_for_by_name():
    changes = dict(eval__attacks=("blind", "bpda"), eval__defenses=("identity", "adp"))
    config, rows = make("digits", eval__bpda_alone=("adp-bpda",), **changes)
    alone = [row.name for row in without_exact(list(rows.values()))]
    assert alone == ["adp-bpda", "adp-strongest"]
    with pytest.raises(ValueError, match="BPDA on 'adp'"):
        make("digits", eval__bpda_alone=("adp-other",), **changes)


@pytest.mark.parametrize("beside", ["exact_detached_step", "fixed_key", "suite"])
def test_what_only_looks_like_an_exact_gradient_is_none(beside):
    """Step sizes held constant, an attacker who knows the keys, and BPDA hidden in a suite."""
    changes = {"eval.defenses": ("adp",), "eval.attacks": ("bpda", "exact")}
    if beside == "suite":
        changes |= {"attacks.both": suite("blind", "bpda"), "eval.attacks": ("both",)}
    elif beside == "fixed_key":
        changes["attacks.exact.fixed_key"] = True
    else:
        changes["attacks.exact.gradient"] = beside
    with pytest.raises(ValueError, match="BPDA on 'adp' .* but no attack with the exact gradient"):
        make("digits", **changes)
    make("digits", **changes | {"eval.attacks": (*changes["eval.attacks"], "exact_margin")})


def test_costs_by_hand():
    _, rows = make("digits")
    row = rows["adp-exact"]
    # 15 steps of 4 samples and 4 to rank; best, last and clean image on 32 draws; T 10 at 2
    # evaluations a step.
    assert row.attack_queries == 15 * (4 + 4) + 3 * 32
    assert row.attack_nfe == row.attack_queries * 20 and row.attack_nge == 15 * 4 * 20
    assert row.score_nfe == 4 * 5 * 20
    assert rows["adp-bpda"].attack_nge == 0 and rows["adp-bpda"].attack_nfe == row.attack_nfe
    assert rows["adp-blind"].attack_nfe == 0
    # Deterministic: one draw is all there are, and one run a step ranks as well.
    assert rows["adp-blind"].attack_queries == 40 + 3
    assert not rows["adp-blind"].attack.remeasure and row.attack.remeasure
    assert rows["schedule-exact"].attack_nge == 15 * 4 * 5
    _, energy = make("digits", score__head="energy")
    assert energy["adp-exact"].attack_nfe == 2 * row.attack_nfe


def test_the_full_variant_covers_modes_estimators_and_protocols():
    _, rows = make("digits", "full")
    full = rows["adp-exact_loss_of_mean"].attack
    assert (full.eot, full.eot_samples) == ("loss_of_mean", 10)  # 0 means S
    assert rows["adp-detached"].attacked.purifier.detach_step
    assert rows["adp-straight"].attacked.purifier.straight_through_noise
    assert isinstance(rows["adp-surrogate"].attacked.purifier, Schedule)
    fixed = rows["adp-fixed_key"]
    assert fixed.fixed_key and fixed.num_draws == fixed.attack.eot_samples == 1
    assert fixed.attack_queries == (40 + 3) * 10  # each takes all S runs of the known draw
    assert fixed.attack_nge == 40 * 10 * 20
    assert rows["adp-l2"].attack.norm == "l2" and rows["adp-mim"].attack.momentum == 1
    assert isinstance(rows["adp-l1"].attack, APGD) and rows["adp-l1"].attack.norm == "l1"
    black_box = rows["adp-square"]
    assert isinstance(black_box.attack, Square) and black_box.attack.remeasure
    assert not rows["identity-square"].attack.remeasure  # deterministic
    assert black_box.attack_nge == rows["adp-spsa"].attack_nge == 0
    assert black_box.attack_queries == 2 * 1000 * 5 + 2 * 32
    # 1,280 a step, 4 to rank the iterate, and the choice among the best, the last and the clean.
    assert rows["adp-spsa"].attack_queries == 40 * (1280 + 4) + 3 * 32
    assert rows["adp-fab"].attack.budget == "9 targets x 1 x 100 steps, EOT 15"
    assert rows["adp-fab"].attack_nge == 9 * 100 * 15 * 20
    assert rows["adp-rays"].attack.budget == "1000 questions, each the majority of 5"
    assert black_box.attacked.purifier is black_box.defense.purifier
    targeted = rows["adp-apgd_targeted"].attack
    assert targeted.targets == 3 and targeted.budget == (
        "margin, 3 targets x 1 x 40 steps, EOT 15 mean_of_loss"
    )


def test_images_are_tried_on_another_defence_where_they_were_made():
    _, rows = make("digits", eval__attack_list="strong")
    assert rows["schedule-exact"].num_images == 100 < rows["adp-clean"].num_images
    assert rows["adp-from_schedule_exact"].num_images == 100
    assert rows["adp-from_schedule_bpda"].num_images == rows["schedule-bpda"].num_images == 200


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_a_config_can_have_every_attack_there_is(name):
    """With what configs/base.py tells of it, which is to be the attack's own, if anything."""
    gradient = "exact" if attacks.build(name).gradient_queries else "none"
    tried = base.attack(gradient, attack=name, eps=0.1, norm=NORMS_OF[name][0])
    _, rows = make("digits", attacks__tried=tried.to_dict(), eval__attacks=("tried",))
    row = rows["adp-tried"]
    assert type(row.attack) is attacks.ATTACKS[name] and row.attack_queries > 0


def test_the_papers_own_adaptive_attacks_and_their_costs():
    _, rows = make("digits", "full")
    bpda = rows["adp-bpda"]
    score, full = rows["adp-joint_score"], rows["adp-joint_full"]
    for row, kind in ((score, ScoreDirection), (full, PurifiedDirection)):
        assert isinstance(row.direction, kind) and isinstance(row.attacked.purifier, BPDA)
        assert row.attack == bpda.attack and row.attack_queries == bpda.attack_queries
    assert full.direction.purifier is full.defense.purifier and bpda.direction is None
    # At each of 40 steps a look of the score model, or 15 purifications of 20 evaluations.
    assert score.attack_nfe == bpda.attack_nfe + 40
    assert full.attack_nfe == bpda.attack_nfe + 40 * 15 * 20
    one_step = rows["adp-one_step_unrolling"]
    assert one_step.attacked.purifier.num_steps == 1 and one_step.defense.purifier.num_steps == 10
    assert one_step.attack_nge == 40 * 15 * 2
    approximate = rows["adp-approximate_input"]
    assert isinstance(approximate.attacked.purifier, ApproximateInput)
    # One purification, after which there is nothing random: one run a step, a choice of three.
    assert (approximate.attack_queries, approximate.attack_nge) == (40 + 3, 0)
    assert approximate.attack_nfe == 20 and approximate.num_draws == 10
    selective = rows["adp-selective"].attack
    assert (selective.eot, selective.eot_samples, selective.loss) == ("selective", 15, "margin")


def test_whether_a_search_asks_the_defence_is_known():
    _, rows = make("digits", "full")
    asked = {name for name, row in rows.items() if row.asks_defense}
    assert {"adp-bpda", "adp-exact", "adp-square", "adp-fixed_key", "identity-blind"} <= asked
    others = ("clean", "blind", "surrogate", "one_step_unrolling", "approximate_input")
    assert not {f"adp-{name}" for name in others} & asked
    # Of an undefended classifier neither: what those attacks see is another one's.
    changes = dict(attacks__from_pgd_at_exact__defenses=(), eval__attack_list="strong")
    _, rows = make("digits", **changes)
    assert rows["identity-blind"].asks_defense and rows["pgd_at-bpda"].asks_defense
    assert not rows["identity-from_pgd_at_exact"].asks_defense


def test_a_choice_computes_no_more_at_once_than_its_attacks():
    changes = dict(defense__chunk=3, attacks__exact__chunk=2)
    _, rows = make("digits", **changes)
    assert rows["adp-blind"].attack.chunk is None and rows["adp-strongest"].attack.chunk == 2
    assert make("digits")[1]["adp-strongest"].attack.chunk is None
    assert make("digits", defense__chunk=1)[1]["adp-strongest"].attack.chunk == 1


def test_a_direction_is_that_of_the_purifier_that_the_attacker_knows():
    changes = {"gradient": "surrogate", "surrogate": "schedule", "direction": "full"}
    _, rows = make("digits", **{f"attacks__exact__{k}": v for k, v in changes.items()},
                   eval__defenses=("identity", "adp"), eval__attacks=("exact",))  # fmt: skip
    assert isinstance(rows["adp-exact"].direction.purifier, Schedule)


def test_the_average_of_the_defence_is_the_average_attacked():
    for average, attacked in (("logits", "logits"), ("softmax", "softmax"), ("vote", "logits")):
        _, rows = make("digits", defense__average=average)
        assert rows["adp-exact"].attack.average == attacked
    _, rows = make("digits", defense__average="softmax", attacks__exact__average="logits")
    assert rows["adp-exact"].attack.average == "logits"


def test_a_vote_is_attacked_through_both_of_its_smooth_averages():
    """Where the attack averages runs: otherwise there is no average to choose."""
    vote = dict(defense__average="vote", attacks__exact__eot_samples=0)
    _, rows = make("digits", attacks__exact__eot="loss_of_mean", **vote)
    attacks = [row.attack for name, row in rows.items() if name.startswith("adp-exact")]
    assert [a.average for a in attacks] == ["logits", "softmax"]
    assert rows["adp-exact_softmax"].crafted == "adp-exact_softmax"
    known = dict(attacks__exact__fixed_key=True, eval__attacks=("blind", "exact"))
    _, rows = make("digits", **known, **vote)
    assert "adp-exact_softmax" in rows
    _, rows = make("digits", **vote)
    assert "adp-exact_softmax" not in rows
    said = dict(attacks__exact__eot="loss_of_mean", attacks__exact__average="softmax")
    _, rows = make("digits", **said, **vote)
    assert "adp-exact_logits" not in rows and rows["adp-exact"].attack.average == "softmax"
    config = importlib.import_module("configs.digits").get_config()
    with pytest.raises(ValueError, match="two attacks have the same name"):
        make("digits", eval__attacks=(*config.eval.attacks, "exact"))


def test_an_attack_meets_those_of_its_defences_that_are_evaluated():
    _, rows = make("digits", eval__defenses=("identity", "adp"))
    assert "adp-exact" in rows and "one_step-exact" not in rows


def test_chunks_reach_attacks_and_defences():
    _, rows = make("digits", defense__chunk=2, attacks__exact__chunk=3)
    row = rows["adp-exact"]
    assert row.defense.chunk == row.attacked.chunk == 2 and row.attack.chunk == 3
    _, rows = make("digits")
    assert rows["adp-exact"].defense.chunk is None is rows["adp-exact"].attack.chunk


def test_rows_that_attack_the_same_function_share_its_images():
    """A blind attack sees the classifier alone: those who have the same share the images."""
    _, rows = make("digits")
    blind = {row.defense_name: row.crafted for name, row in rows.items() if name.endswith("-blind")}
    assert blind.pop("pgd_at") == "pgd_at-blind"
    assert len(blind) == 5 and set(blind.values()) == {"blind"}
    names = [row.crafted for row in crafting(list(rows.values()))]
    assert len(names) == len(set(names)) == 2 + 6 + 5 + 6  # the strongest, of each defence


def test_a_variant_has_the_classifier_that_it_names():
    """Attacked and scored; with any purifier in front of it, which it changes nothing about."""
    other, third = dict(classifier="runs/other"), dict(classifier="runs/third")
    changes = {
        "variants.bare": dict(purifier="identity", **other),
        "variants.behind": dict(purifier="adp", lam=0.2, **other),
        "variants.third": dict(purifier="identity", **third),
        "eval.defenses": ("identity", "behind", "bare", "adp", "third"),
        "eval.attacks": ("blind", "exact"),
        "attacks.exact.defenses": ("adp", "behind"),
    }
    config, rows = make("digits", **changes)
    runs = {"behind": "runs/other/classifier", "bare": "runs/other/classifier"}
    runs |= {"third": "runs/third/classifier"}
    for row in rows.values():
        run = runs.get(row.defense_name, "classifier")
        assert network_run(config, row.defense_name, "classifier") == run
        for defense in (row.defense, row.attacked or row.defense):
            assert defense.classifier.variables == {"run": run}
    assert rows["behind-clean"].defense.purifier == dataclasses.replace(
        rows["adp-clean"].defense.purifier, lam=0.2
    )
    assert {name: row.crafted for name, row in rows.items() if row.attack and not row.stages} == {
        "identity-blind": "blind",
        "adp-blind": "blind",
        "behind-blind": "behind-blind",
        "bare-blind": "behind-blind",
        "third-blind": "third-blind",
        "adp-exact": "adp-exact",
        "behind-exact": "behind-exact",
    }


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(eval__attacks=("fly",)), "'fly' is unknown; known: apgd, apgd_dlr, apgd_from"),
        (dict(eval__defenses=("wall",)), "'wall' is unknown; known: identity, noise_only"),
        (dict(attacks__bpda__loss="hinge"), "known: cross_entropy, margin, dlr"),
        (dict(attacks__bpda__gradient="adjoint"), "known: exact"),
        (dict(attacks__bpda__gradient="none"), "'none' does not fit: the attack takes gradients"),
        (dict(attacks__exact__estimate="nes"), "sees values only, so say 'none'"),
        (dict(attacks__bpda__gradient="surrogate"), "needs the name of the surrogate"),
        (dict(attacks__exact__gradient="exact_detached_step"), "does not apply to Identity"),
        (dict(attacks__bpda__norm="l7"), "known: linf, l2"),
        (dict(attacks__bpda__eps=-1.0), "eps=-1.0"),
        (dict(attacks__exact__defenses=("wall",)), "known: identity"),
        (dict(adp__curvature="flat"), "known: finite_difference, jvp, secant"),
        (dict(adp__num_steps=0), "num_steps=0"),
        (dict(schedule__sigma_min=0.5), "sigma_min=0.5"),
        (dict(defense__average="median"), "known: logits, softmax, vote"),
        (dict(defense__num_runs=0), "num_runs=0"),
        (dict(eval__num_images=10_001), "from 1 to 10000"),
        (dict(eval__num_draws=0), "num_draws=0"),
        (dict(eval__defenses=()), "config.eval.defenses is empty"),
        (dict(attacks__exact__num_images=-1), "num_images=-1"),
        (dict(eval__attacks=("blind", "bpda")), "BPDA on 'adp' (linf 0.15) but no attack"),
        (dict(attacks__exact__eps=0.1), "BPDA on 'adp' (linf 0.15) but no attack"),
        (dict(attacks__exact__selection_draws=8), "selection_draws=8 must be at least 32"),
        (dict(attacks__exact__average="vote"), "average='vote'"),
        (dict(attacks__exact__direction="up"), "direction='up' is unknown; known: score, full"),
        (dict(attacks__exact__direction="score"), "does not apply to Identity: it has no score"),
        (dict(attacks__blind__direction="full"), "a blind attacker knows no purifier"),
        (dict(attacks__exact__gradient="one_step_unrolling"), "does not apply to Identity"),
        (
            dict(attacks__bpda__gradient="approximate_input", attacks__bpda__fixed_key=True),
            "fixed_key=True does not fit gradient='approximate_input'",
        ),
        (
            dict(attacks__bpda__direction="full", attacks__bpda__fixed_key=True),
            "fixed_key=True does not fit direction='full'",
        ),
        (dict(attacks__exact__penalty=-1.0), "config.attacks.exact.penalty=-1.0 must be at least"),
        (dict(attacks__exact__penalty=float("nan")), "config.attacks.exact.penalty=nan must be at"),
        (dict(attacks__exact__eps=float("inf")), "config.attacks.exact: eps=inf must be positive"),
        (dict(attacks__exact__penalty=1.0), "config.attacks.exact: penalty=1.0 does not apply to"),
        (
            dict(attacks__bpda__penalty=1.0, attacks__bpda__fixed_key=True),
            "config.attacks.bpda.fixed_key=True does not fit penalty=1.0",
        ),
        (
            dict(
                eval__defenses=("detect_then_purify",),
                detect_then_purify__natural__purifier="detect_then_purify",
            ),
            "natural.purifier='detect_then_purify' has parts itself",
        ),
        (
            dict(
                eval__defenses=("detect_then_purify",),
                detect_then_purify__suspected__purifier="wall",
            ),
            "config.detect_then_purify.suspected.purifier 'wall' is unknown",
        ),
        (dict(attacks__exact__eot="selective"), "margin or dlr, not loss='cross_entropy'"),
        (dict(attacks__exact__loss="dlrr"), "config.attacks.exact: loss='dlrr' is unknown; known"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_anything_runs(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make("digits", **changes)


def test_attacks_that_know_of_a_detector_keep_below_its_threshold():
    config, rows = make("digits", "detect")
    defended, attacked = (
        rows["detect_then_purify-penalised_52"],
        rows["detect_then_purify-natural_52"],
    )
    purifier = defended.defense.purifier
    assert purifier.natural == Schedule(purifier.score, sigma=0.1)
    assert purifier.suspected.num_steps == config.adp.num_steps
    for row in (defended, attacked):
        assert row.beside == {"penalty_fn": Penalty(ScoreNorm(purifier.score), 0.42, 52.0)}
    assert attacked.attacked.purifier == purifier.natural
    queries = defended.attack.gradient_queries + defended.attack.selection_queries
    assert (purifier.nfe, purifier.nge) == (1 + 5 + 20, 5 + 20)
    assert defended.attack_nfe == queries * (purifier.nfe + 1)
    assert attacked.attack_nfe == queries * (5 + 1)
    assert attacked.attack_nge == attacked.attack.gradient_queries * (5 + 1)
    assert not rows["detect_then_purify-exact"].beside
    assert defended.starts == attacked.starts == ("detect_then_purify-exact",)
    held = rows["detect_then_purify-suspected"].attacked.purifier
    assert held == dataclasses.replace(purifier.suspected, loop="scan")


def test_a_variant_can_have_another_score_model():
    """Trained to undo something else, say; its surrogate too, and the classifier stays."""
    config, rows = make(
        "digits",
        **{
            "variants": {"augmix": dict(purifier="adp", sigma=0.0, score="runs/digits_augmix")},
            "eval.defenses": ("adp", "augmix"),
            "eval.attacks": ("exact",),
            "attacks.exact.defenses": ("augmix",),
        },
    )
    for defense in (rows["augmix-clean"].defense, rows["augmix-exact"].attacked):
        assert defense.purifier.score.variables == {"run": "runs/digits_augmix/score"}
        assert defense.classifier.variables == {"run": "classifier"}
    assert rows["adp-clean"].defense.purifier.score.variables == {"run": "score"}


def test_a_direction_is_for_pgd_alone():
    config = importlib.import_module("configs.digits").get_config("full")
    config.attacks.apgd.unlock()
    config.attacks.apgd.direction = "score"
    config.eval.defenses = digits.PURIFIERS
    network = models.build("resnet", num_classes=10)
    score = Score({}, models.build("unet"))
    with pytest.raises(ValueError, match="apgd.direction='score' does not fit: only pgd takes one"):
        plan(config, {"classifier": Classifier({}, network), "score": score}, 400)


def test_a_penalty_is_for_attacks_that_maximise_a_loss():
    config = importlib.import_module("configs.digits").get_config("detect")
    config.attacks.fab.unlock()
    config.attacks.fab.penalty = 3.0
    changes = {"attacks": config.attacks, "eval.attacks": ("fab",)}
    changes |= {"attacks.fab.defenses": (), "eval.defenses": ("detect_then_purify",)}
    with pytest.raises(ValueError, match="config.attacks.fab.penalty=3.0 does not fit: fab takes"):
        make("digits", "detect", **changes)


def test_the_headline_defence_and_the_attacks_names_are_checked():
    with pytest.raises(ValueError, match="config.defense.purifier 'one' is unknown; known: ident"):
        make("digits", defense__purifier="one")
    config = importlib.import_module("configs.digits").get_config()
    config.attacks.clean = config.attacks.bpda.copy_and_resolve_references()
    config.eval.update(attacks=("clean",), defenses=("identity", "adp"))
    network = models.build("resnet", num_classes=10)
    score = Score({}, models.build("unet"))
    with pytest.raises(ValueError, match="attack name 'clean' must be"):
        plan(config, {"classifier": Classifier({}, network), "score": score}, 400)


# The strongest of several attacks


def test_the_main_ball_is_that_of_most_attacks():
    """Of the published code's blind attack, which comes first, it is not: its radius is 8/256."""
    _, rows = make("cifar10", "reference")
    assert main_ball(rows.values()) == ("linf", cifar10.EPS) != rows["adp_reference-blind"].ball
    names = [row.attack_name for row in rows["adp_reference-strongest"].stages]
    assert names == ["bpda_votes", "bpda", "exact"]
    assert main_ball([rows["identity-clean"]]) is None


def test_a_limit_holds_for_stages_too():
    _, rows = make("digits")
    few = limited(list(rows.values()), 5, 50)
    assert {row.num_images for row in with_stages(few)} == {5}
    _, rows = make("cifar10", "reference", eval__num_images=7)
    with pytest.raises(ValueError, match="max_images=5 must be a multiple of"):
        limited(list(rows.values()), 5, 50)
    limited(list(rows.values()), 9, 50)  # cuts nothing


def test_every_defence_and_ball_with_several_attacks_has_a_row_of_the_strongest():
    _, rows = make("digits", "full")
    strongest = rows["adp-strongest"]
    names = {row.attack_name for row in strongest.stages}
    assert {"blind", "bpda", "exact", "apgd", "square"} <= names
    assert not names & {"fixed_key", "l2", "carlini_wagner", "strongest"}
    assert {row.attack.norm for row in strongest.stages} == {"linf"} == {strongest.attack.norm}
    assert strongest.attack.selection_queries == (len(names) + 1) * 80  # 8 draws of S = 10
    assert {row.attack_name for row in rows["adp-strongest_l2_1"].stages} == {
        "l2",
        "carlini_wagner",
    }
    assert "adp-strongest_l1_4" not in rows  # one attack is the strongest of itself
    identity = rows["identity-strongest"].attack
    assert (identity.eot_samples, identity.queries_per_candidate) == (1, 1)
    _, rows = make("digits")
    assert [row.attack_name for row in rows["adp-strongest"].stages] == ["blind", "bpda", "exact"]
    assert rows["adp-strongest"].num_images == 100  # those that all of them have


@pytest.mark.parametrize("name", ["quick", "paper", "strong"])
@pytest.mark.parametrize(
    "config_name, variant", [c for c in CONFIGS if c[1] not in ("reference", "tuning", "strong")]
)
def test_every_config_has_its_lists_of_attacks(config_name, variant, name):
    config, rows = make(config_name, variant, **{"eval.attack_list": name})
    headline = config.defense.purifier
    attacked = {row.attack_name for row in rows.values() if row.defense_name == headline}
    assert {"blind", "bpda", "exact", "strongest"} <= attacked
    expected = {
        "quick": set(),
        "paper": {"joint_score", "joint_full", "approximate_input", "spsa"},
        "strong": {"apgd", "apgd_targeted", "selective", "square", "fab", "apgd_from_points"},
    }
    assert expected[name] <= attacked
    assert len({(row.attack.norm, row.attack.eps) for row in rows.values() if row.attack}) == 1


def test_autoattack_is_a_suite_with_its_published_budget():
    names = tuple(f"autoattack_{name}" for name in ("standard", "plus", "rand"))
    config, rows = make("digits", **{"eval.attacks": names})
    standard, plus, rand = (rows[f"adp-{name}"] for name in names)
    assert [row.attack_name for row in standard.stages] == [
        *("autoattack_ce", "autoattack_targeted", "autoattack_fab", "autoattack_square"),
    ]
    assert all(row.attack.survivors for row in (standard, plus, rand))
    ce, targeted, fab, square = (row.attack for row in standard.stages)
    assert (ce.loss, ce.num_steps, ce.restarts) == ("cross_entropy", 100, 1)
    assert (targeted.loss, targeted.targets, fab.targets) == ("dlr", 9, 9)
    assert square.num_steps == 5000
    assert {row.attack.eot_samples for row in rand.stages} == {20}
    assert [row.attack.restarts for row in plus.stages[:2]] == [5, 5]
    assert "adp-autoattack_ce" not in rows  # a stage is no row of its own
    identity = rows["identity-autoattack_rand"].stages[0].attack
    assert identity.eot_samples == identity.selection_draws == 1


def test_an_attack_list_stands_for_the_names_in_it():
    changes = {"attack_lists": {"two": ("bpda", "exact")}, "eval.attack_list": "two"}
    _, rows = make("digits", **changes)
    assert {row.attack_name for row in rows.values()} == {"clean", "bpda", "exact", "strongest"}
    with pytest.raises(ValueError, match="config.eval.attack_list 'three' is unknown; known: two"):
        make("digits", **changes | {"eval.attack_list": "three"})


@pytest.mark.parametrize(
    "stages, said",
    [
        (("blind", "nope"), "config.attacks.both.stages entry 'nope' is unknown; known: "),
        (("blind", "both"), "'both' is a suite itself"),
        (("exact", "l2"), "of several balls"),
        (("exact", "fixed_key"), "who knows the keys"),
        ((), "config.attacks.both.stages is empty"),
    ],
)
def test_suites_that_do_not_fit_are_refused(stages, said):
    both = suite(*stages, defenses=("adp",))
    with pytest.raises(ValueError, match=re.escape(said)):
        make("digits", "full", **{"attacks.both": both, "eval.attacks": ("both",)})


# Points of other attacks: to climb from, and as they are


def test_an_attack_can_climb_from_what_others_found():
    _, rows = make("digits", "full")
    row = rows["adp-apgd_from_points"]
    assert row.starts == (
        *("blind", "one_step-bpda", "one_step-exact", "schedule-bpda", "schedule-exact"),
    )
    assert (row.attack.restarts, row.attack.given_starts) == (1, 5)
    other = rows["adp-apgd"].attack
    assert row.attack.gradient_queries == 6 * other.gradient_queries
    transferred, source = rows["adp-from_schedule_exact"], rows["schedule-exact"]
    assert transferred.crafted == source.crafted == "schedule-exact"
    assert transferred.attack == source.attack and transferred.attacked is source.attacked
    assert transferred.defense is rows["adp-clean"].defense and not transferred.asks_defense
    assert transferred in rows["adp-strongest"].stages


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("apgd", {"starts": ("nope-exact",)}, "apgd.starts entry 'nope-exact' is no row that"),
        ("exact", {"starts": ("adp-apgd",)}, "exact.starts entry 'adp-apgd' is no row that comes"),
        ("from_schedule_exact", {"source": "adp-clean"}, "'adp-clean' is no row that comes before"),
    ],
)
def test_points_of_rows_that_do_not_come_before_are_refused(name, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make("digits", "full", **{f"attacks.{name}.{k}": v for k, v in changes.items()})


def test_an_attack_takes_no_more_images_than_the_points_it_climbs_from():
    config = importlib.import_module("configs.digits").get_config("full")
    few = config.attacks.exact.copy_and_resolve_references()
    few.update(defenses=("schedule",), num_images=7)
    changes = {
        "attacks.few": few,
        "eval.attacks": ("blind", "few", "apgd"),
        "attacks.apgd.starts": ("blind", "schedule-few"),
    }
    _, rows = make("digits", "full", **changes)
    assert rows["adp-apgd"].num_images == 7 and rows["adp-blind"].num_images == 400


def test_the_gradients_of_the_strong_variant_share_all_else():
    config, rows = make("cifar10", "strong")
    gradients = ("exact", "exact_detached_step", "exact_straight_through", "bpda")
    for defense in ("adp", "adp_s10"):
        row_of = [rows[f"{defense}-apgd_{gradient}"] for gradient in gradients]
        assert len({row.attack for row in row_of}) == 1
        assert [row.num_images for row in row_of] == [100] * 4
        assert [row.options["gradient"] for row in row_of] == [*gradients]
        assert (row_of[0].attack.num_steps, row_of[0].attack.eot_samples) == (10, 20)
    for loss in ("cross_entropy", "dlr"):
        of_each, of_mean = (rows[f"adp-apgd_{loss}{end}"] for end in ("", "_of_mean"))
        assert of_each.attack == dataclasses.replace(of_mean.attack, eot="mean_of_loss")
        assert of_mean.attack.eot == "loss_of_mean" and of_each.num_images == of_mean.num_images
    square = rows["adp-square"].attack
    assert square.selection_queries - square.choice_queries(1) == 500 * 5
    assert rows["adp-clean"].num_draws == 10
    assert rows["adp-strongest"].num_images == rows["adp-apgd_from_points"].num_images == 50
