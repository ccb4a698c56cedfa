"""scikit-learn's digits: real 8 x 8 images, offline; what `make demo` runs.

    configs/digits.py        about 5 minutes in all on 2 CPU cores
    configs/digits.py:full   the paper's budgets: S 10, EOT 15, 40 iterations; hours on 2 CPU cores
    configs/digits.py:pgd_at, :trades   the same classifier by adversarial training, within a minute

Expected: 97 to 99 % clean accuracy undefended. eps was chosen so that PGD-40 leaves the undefended
classifier under 25 %; the purifiers' constants are the paper's.
"""

from configs.base import attack, base, transfer

EPS = 0.15
VARIANTS = ("", "full", "pgd_at", "trades")
PURIFIERS = ("noise_only", "one_step", "schedule", "adp")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"digits.py:{variant} is unknown; known variants: {VARIANTS[1:]}")
    config = base()
    config.data.name = "digits8x8"

    config.classifier.network.update(widths=(24, 48), blocks=1)
    config.classifier.train.update(
        num_steps=600, learning_rate=2e-3, warmup_steps=50, ema_decay=0.99, augment="crop"
    )
    config.classifier.adversarial.update(eps=EPS, step_size=EPS / 4, num_steps=7)
    config.score.network.update(widths=(16, 32))
    config.score.train.update(num_steps=4000, learning_rate=2e-3, schedule="cosine")

    gradient_attack = dict(eps=EPS, num_steps=15, eot_samples=4)
    config.defense.num_runs = 5
    config.attacks.blind = attack("blind", eps=EPS)
    config.attacks.bpda = attack("bpda", **gradient_attack)
    config.attacks.exact = attack("exact", **gradient_attack, defenses=PURIFIERS, num_images=100)

    if variant in ("pgd_at", "trades"):
        config.classifier.adversarial.method = variant
        # Chosen on validation images: from shifted ones it learns less in as many steps.
        config.classifier.train.update(learning_rate=5e-3, augment="none")
        return config
    # The baseline that purification has to beat: no purifier, the classifier of digits.py:pgd_at.
    config.variants.pgd_at = dict(purifier="identity", classifier="runs/digits_pgd_at")
    config.eval.defenses = ("identity", "pgd_at", *PURIFIERS)
    config.attacks.exact.defenses = ("pgd_at", *PURIFIERS)
    if variant == "full":
        config.defense.num_runs = 10
        config.eval.update(num_images=400, num_draws=10)
        budget = dict(eps=EPS, num_steps=40, eot_samples=15)
        purifiers = dict(defenses=PURIFIERS)
        defended = dict(defenses=("pgd_at", *PURIFIERS))
        config.attacks.bpda = attack("bpda", **budget)
        config.attacks.exact = attack("exact", **budget, **defended)
        config.attacks.exact_margin = attack("exact", **budget, **defended, loss="margin")
        of_mean = budget | dict(eot="loss_of_mean", eot_samples=0)
        config.attacks.bpda_loss_of_mean = attack("bpda", **of_mean)
        config.attacks.exact_loss_of_mean = attack("exact", **of_mean, **defended)
        config.attacks.detached = attack("exact_detached_step", **budget, defenses=("adp",))
        config.attacks.straight = attack("exact_straight_through", **budget, **purifiers)
        config.attacks.surrogate = attack(
            "surrogate", **budget, surrogate="schedule", defenses=("adp",)
        )
        config.attacks.selective = attack(
            "exact", **budget, **purifiers, eot="selective", loss="margin"
        )
        # The paper's own adaptive attacks, weaker than the exact gradient.
        stepwise = dict(defenses=("schedule", "adp"))
        config.attacks.joint_score = attack("bpda", **budget, **stepwise, direction="score")
        config.attacks.joint_full = attack("bpda", **budget, **stepwise, direction="full")
        config.attacks.one_step_unrolling = attack("one_step_unrolling", **budget, **stepwise)
        config.attacks.approximate_input = attack("approximate_input", **budget, **purifiers)
        config.attacks.fixed_key = attack("exact", **budget, **purifiers, fixed_key=True)
        config.attacks.mim = attack("exact", **budget, **defended, momentum=1.0)
        config.attacks.apgd = attack("exact", attack="apgd", **budget, **defended)
        config.attacks.apgd_dlr = attack("exact", attack="apgd", **budget, **defended, loss="dlr")
        config.attacks.apgd_targeted = attack(
            "exact", attack="apgd", **budget, **defended, loss="margin", targets=3
        )
        config.attacks.l2 = attack("exact", **budget | dict(eps=1.0), **defended, norm="l2")
        config.attacks.l1 = attack(
            "exact", attack="apgd", **budget | dict(eps=4.0), **defended, norm="l1"
        )
        config.attacks.square = attack(
            "none", attack="square", eps=EPS, num_steps=1000, eot_samples=5
        )
        config.attacks.fab = attack("exact", attack="fab", eps=EPS, eot_samples=15, **defended)
        config.attacks.carlini_wagner = attack(
            "exact", attack="carlini_wagner", eps=1.0, norm="l2", eot_samples=15, **defended
        )
        config.attacks.rays = attack("none", attack="rays", eps=EPS, eot_samples=5)
        config.attacks.spsa = attack(
            "none", eps=EPS, num_steps=40, estimate="spsa", loss="margin", defenses=("adp",)
        )
        # What fools the cheaper purifiers, on ADP as it is and to climb from.
        cheaper = [
            f"{name}-{how}" for name in ("one_step", "schedule") for how in ("bpda", "exact")
        ]
        for source in cheaper:
            name = f"from_{source.replace('-', '_')}"
            config.attacks[name] = transfer(source, defenses=("adp",))
        starts = dict(starts=("blind", *cheaper), loss="margin", defenses=("adp",))
        config.attacks.apgd_from_points = attack("exact", attack="apgd", **budget, **starts)
        first = ("blind", "bpda", "exact")  # the others may start from what they found
        config.eval.attacks = (*first, *(name for name in config.attacks if name not in first))
    return config
