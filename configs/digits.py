"""scikit-learn's digits: real 8 x 8 images, offline; what `make demo` runs.

    configs/digits.py        4.5 to 12 minutes in all on 2 CPU cores
    configs/digits.py:full   the paper's budgets: S 10, EOT 15, 40 iterations; hours on 2 CPU cores
    configs/digits.py:detect   detect, then purify: attacks that know of the detector
    configs/digits.py:perturbations   common corruptions, by score models that learnt to undo others
    configs/digits.py:pgd_at, :trades   the same classifier by adversarial training, within a minute
    configs/digits.py:samples   a score model trained on more noise, to draw digits from noise alone

Expected: 97 to 99 % clean accuracy undefended. eps was chosen so that PGD-40 leaves the undefended
classifier under 25 %; the purifiers' constants are the paper's.
"""

from configs.base import add_attacks, add_corruptions, attack, base, following, transfer

EPS = 0.15
VARIANTS = ("", "full", "detect", "perturbations", "pgd_at", "trades", "samples")
PURIFIERS = ("noise_only", "one_step", "schedule", "adp")
# On 8 x 8 pixels flakes, drops, ice, a pixel's shift and smears of several hide the digit, a zoom
# by a few per cent moves nothing; and greyscale has no saturation.
DIGITS = ("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "fog", "brightness")
DIGITS += ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
DIGITS += ("speckle_noise", "gaussian_blur")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"digits.py:{variant} is unknown; known variants: {VARIANTS[1:]}")
    config = base()
    config.data.name = "digits8x8"

    config.classifier.network.update(widths=(24, 48), blocks=1)
    config.classifier.train.update(
        num_steps=600, learning_rate=2e-3, warmup_steps=50, ema_decay=0.99, augment="crop"
    )
    config.classifier.adversarial.update(eps=EPS, num_steps=7)
    config.score.network.update(widths=(16, 32))
    config.score.train.update(num_steps=4000, learning_rate=2e-3, schedule="cosine")

    config.defense.num_runs = 5

    trained_robust: tuple = ()
    if variant in ("pgd_at", "trades"):
        config.classifier.adversarial.method = variant
        # Chosen on validation images: from shifted ones it learns less in as many steps.
        config.classifier.train.update(learning_rate=5e-3, augment="none")
    else:  # the baseline that purification has to beat: the classifier of digits.py:pgd_at
        trained_robust = ("pgd_at",)
        config.variants.pgd_at = dict(purifier="identity", classifier="runs/digits_pgd_at")
    config.eval.defenses = ("identity", *trained_robust, *PURIFIERS)
    against = dict(
        purifiers=(*trained_robust, *PURIFIERS), stepwise=PURIFIERS[2:], cheaper=PURIFIERS[1:3]
    )
    if variant == "full":
        config.defense.num_runs = 10
        config.eval.update(num_images=400, num_draws=10)
        add_attacks(config, eps=EPS, num_steps=40, eot_samples=15, **against)
    else:
        add_attacks(config, eps=EPS, num_steps=15, eot_samples=4, **against)
        config.attacks.exact.num_images = 100
        config.ablate.factors.sigma.at = (0.05, 0.1, 0.2, 0.3, 0.4)
        config.ablate.factors.eot.at = (1, 16)
    if trained_robust:  # what fools another classifier
        config.attacks.from_pgd_at_exact = transfer("pgd_at-exact", defenses=PURIFIERS)
        config.attack_lists.strong += ("from_pgd_at_exact",)
    if variant == "full":
        _more_attacks(config, **against)
    # 94.5 % of the score norms of validation images are below.
    config.detect_then_purify.threshold = 0.42
    config.detect.calibration_split = "validation"
    config.certify.defenses = ("noise_only", "one_step", "adp")
    config.certify.budgets.adp = dict(num_images=20, num_samples=1000)
    for name in ("noise_only", "one_step"):  # with as few samples as ADP, to compare it with
        config.variants[f"{name}_1k"] = dict(purifier=name)
        config.certify.defenses += (f"{name}_1k",)
        config.certify.budgets[f"{name}_1k"] = following(config.certify.budgets.adp)
    add_corruptions(config, "detect_then_purify", names=DIGITS, num_draws=2)
    if variant == "detect":
        _detect(config)
    if variant == "perturbations":  # what ADP does by score models that learnt to undo other things
        for name in ("dct", "augmix"):
            other = dict(purifier="adp", sigma=0.0, score=f"runs/digits_{name}")
            config.variants[f"adp_{name}_s0"] = other
            config.corruptions.defenses += (f"adp_{name}_s0",)
    if variant == "samples":
        # Two training images are at most 4.65 apart: noise of that size forgets where it started
        # (Song and Ermon 2020, technique 1).
        config.score.sigma_max = 5.0
        # With the demo's network and budget more of the samples are no digits.
        config.score.network.widths = (32, 64)
        config.score.train.num_steps = 8000
        config.sample.update(start="prior", steps_per_level=20)
    return config


def _detect(config) -> None:
    """Attacks that know the detector: they trade their margin for a low score norm, through the
    whole defence and with the switch held at natural images, by weights from too low to too high;
    or give up on it, with the switch held at suspected ones."""
    defended = ("detect_then_purify",)
    config.eval.defenses += defended
    config.variants.lightly = following(config.detect_then_purify.natural)
    config.attacks.exact.defenses = (*config.attacks.exact.defenses, *defended)
    knowing = dict(
        # Steps that can settle where the penalty begins, as those of one length cannot, also from
        # images that fool the defence, of which the penalty is to be lowered.
        **dict(attack="apgd", loss="margin", starts=("detect_then_purify-exact",)),
        **dict(eps=EPS, num_steps=15, eot_samples=4, num_images=100, defenses=defended),
    )
    # ADP alone meets the same, without a detector to know of.
    alone = knowing | dict(starts=("adp-exact",), defenses=("adp",))
    own = {"climbed": attack("exact", **alone)}
    own["suspected"] = attack("surrogate", surrogate="adp", **knowing)
    # 1, 3 and 10 for a standard deviation of clean images' norms, 0.058.
    for weight in (17, 52, 170):
        penalised = knowing | dict(penalty=weight)
        own[f"penalised_{weight}"] = attack("exact", **penalised)
        own[f"natural_{weight}"] = attack("surrogate", surrogate="lightly", **penalised)
    config.attacks.update(own)
    config.eval.attacks += tuple(own)


def _more_attacks(config, *, purifiers: tuple, **_) -> None:
    """Other gradients, norms and attackers than the lists have."""
    budget = dict(eps=EPS, num_steps=40, eot_samples=15)
    exact, headline = dict(**budget, defenses=purifiers), dict(**budget, defenses=("adp",))
    l2 = dict(eps=1.0, norm="l2")
    own = dict(
        bpda_loss_of_mean=attack("bpda", **budget | dict(eot="loss_of_mean", eot_samples=0)),
        detached=attack("exact_detached_step", **headline),
        straight=attack("exact_straight_through", **budget, defenses=PURIFIERS),
        surrogate=attack("surrogate", **headline, surrogate="schedule"),
        fixed_key=attack("exact", **budget, defenses=PURIFIERS, fixed_key=True),
        mim=attack("exact", **exact, momentum=1.0),
        rays=attack("none", attack="rays", eps=EPS, eot_samples=5),
        l2=attack("exact", **exact | l2),
        carlini_wagner=attack(
            "exact", attack="carlini_wagner", **l2, eot_samples=15, defenses=purifiers
        ),
        l1=attack("exact", attack="apgd", **exact | dict(eps=4.0, norm="l1")),
    )
    config.attacks.update(own)
    lists = config.attack_lists
    # The strong list begins with what others start from.
    config.eval.attacks = tuple(dict.fromkeys((*lists.strong, *lists.paper, *own)))
