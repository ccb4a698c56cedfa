"""CIFAR-10 as in Yoon, Hwang and Lee (ICML 2021): NCSNv2, WideResNet-28-10, Linf 8/255.

    configs/cifar10.py            the paper's experiment, in the clean form of the method
    configs/cifar10.py:reference  the published code: its purifier, its attacks
    configs/cifar10.py:resnet20   a ResNet-20 and a U-Net of 0.6 M parameters, for CPUs
    configs/cifar10.py:tiny       the same code in minutes, for a first look and for tests
    configs/cifar10.py:tuning     purifiers with other constants behind the networks of resnet20, on
                                  training images that its score model did not see (train[3500:]):
                                  what is chosen, is chosen here, never on test images
    configs/cifar10.py:strong     ADP behind the networks of resnet20 under stronger attacks than in
                                  its table: APGD by every gradient, from many starts; Square
    configs/cifar10.py:pgd_at     the ResNet-20 of resnet20 by adversarial training (PGD-AT), short
                                  enough for CPUs

TFDS must have prepared the data set with array_record (the error says how where it is missing);
--config.data.dir or TFDS_DATA_DIR point at a prepared copy.

Score model, as the paper's code trains it: 232 noise levels from 50 to 0.01, Adam with 1e-4, batch
128, 300,000 steps, EMA 0.999. Classifier: WideResNet-28-10 by SGD for 200 epochs, with the decay,
batch and augmentation of Zagoruyko and Komodakis (2016), who report 96.0 %, but a cosine for their
steps of the learning rate, a warm-up and averaged weights. Attacks: 40 iterations, 15 purifications
a gradient, S 10.

Expected, of the published weights (Croce et al., ICML 2022): 86 to 87 % clean and 33 to 34 % under
the exact gradient at sigma 0.25; the paper's own BPDA number is 70 %. Expected cost, from forward
passes of 19.8 (NCSNv2) and 10.5 GFLOP (WideResNet) an image as PyTorch counts them, a gradient as
two more: 2.3e18 FLOP train the score model and 3.1e17 the classifier, 13 and 2 hours at 50 TFLOP/s;
attacking 500 images behind ADP takes 2.6e17 through BPDA and, as its steps are computed twice,
6.1e17 by the exact gradient, 1.5 and 3.4 hours. No number was measured with
this config yet: it wants GPUs or TPUs.
"""

from configs.base import add_attacks, add_corruptions, attack, base, transfer

EPS = 8 / 255
VARIANTS = ("", "reference", "resnet20", "tiny", "tuning", "strong", "pgd_at")
PURIFIERS = ("noise_only", "one_step", "schedule", "adp")


def get_config(variant: str = "", name: str = "cifar10"):
    """name: of the config that takes this one with another data set."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; known: {', '.join(VARIANTS[1:])}")
    config = base()
    config.data.name = "cifar10"

    config.classifier.network = dict(
        arch="wide_resnet",
        depth=28,
        widen=10,
        form="robustbench",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
    config.classifier.train.update(
        algorithm="sgd",
        num_steps=78_000,
        batch_size=128,
        learning_rate=0.1,
        warmup_steps=400,
        weight_decay=5e-4,
        augment="flip_crop",
        clip_norm=0.0,
    )
    config.score.network = dict(arch="ncsnv2", features=128)
    config.score.update(sigma_max=50.0, num_levels=232)
    config.sample.start = "prior"
    config.score.train.update(
        num_steps=300_000,
        batch_size=128,
        learning_rate=1e-4,
        warmup_steps=0,
        augment="flip",
        clip_norm=0.0,
    )

    config.eval.update(num_images=500, num_draws=4, batch_size=64)
    # chunk: 64 images x 4 draws at once; more where memory allows.
    against = dict(purifiers=PURIFIERS, stepwise=PURIFIERS[2:], cheaper=PURIFIERS[1:3])
    add_attacks(config, eps=EPS, num_steps=40, eot_samples=15, chunk=4, **against)

    if variant == "reference":
        _reference(config)
    elif variant:
        _small(config)
        # The baseline to beat, trained by the variant `pgd_at`; a defence where it is named.
        config.variants.pgd_at = dict(purifier="identity", classifier=f"runs/{name}_pgd_at")
    if variant == "tiny":
        _tiny(config)
    elif variant == "tuning":
        _tuning(config)
    elif variant == "strong":
        _strong(config)
    elif variant == "pgd_at":
        _pgd_at(config)
    if not variant:
        add_corruptions(config, num_images=500)
    elif variant != "reference":
        # For the score model in pretrained/: 95 % of the score norms of train[3500:4000], which it
        # did not see, are below.
        config.variants.update(detect=dict(purifier="detect_then_purify", threshold=0.48))
        add_corruptions(config, "detect", num_images=100)
    return config


def _reference(config) -> None:
    """The published purifier under the published attacks; and the exact gradient, which they lack.

    Import the published weights first: --mode=import_weights, --arch=ncsnv2 and --arch=wrn28_10.
    """
    config.defense.purifier = "adp_reference"
    config.eval.defenses = ("identity", "noise_only", "one_step", "adp_reference")
    published = dict(random_start=False, keep="last")
    config.attacks = dict()
    config.attacks.blind = attack("blind", eps=8 / 256, step_size=2 / 255, **published)
    budget = dict(eps=EPS, num_steps=40, eot_samples=15, chunk=4)
    config.attacks.bpda, config.attacks.exact = (attack(g, **budget) for g in ("bpda", "exact"))
    votes = dict(eps=EPS, step_size=2 / 255, eot="sign_vote", eot_samples=15, chunk=4)
    config.attacks.bpda_votes = attack("bpda", **votes, **published)
    config.eval.attacks = ("blind", "bpda_votes", "bpda", "exact")
    config.attack_lists = dict(paper=config.eval.attacks)
    for name in ("bpda_votes", "bpda", "exact"):
        config.attacks[name].defenses = ("noise_only", "one_step", "adp_reference")
    # It has one curvature, and its attacks no common radius.
    config.ablate.names = ("sigma", "lam", "T", "S", "eot", "purifier")
    config.ablate.factors.lam.fields = ("adp_reference.lam",)
    config.ablate.factors.T.fields = ("adp_reference.num_steps",)


def _small(config) -> None:
    config.classifier.network = dict(
        arch="cifar_resnet", depth=20, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    config.score.network = dict(arch="unet", widths=(32, 64, 64), blocks=2)
    # Purification at sigma 0.25 sees no larger noise; 50 is for sampling.
    config.score.update(sigma_max=0.6, num_levels=40)
    config.sample.start = "noised"
    config.score.train.update(
        num_steps=3400,
        batch_size=64,
        accumulate=8,  # eight images at once: two CPU cores' caches hold no more
        learning_rate=1e-3,
        warmup_steps=200,
        schedule="cosine",
        clip_norm=10.0,
    )
    config.defense.num_runs = 5
    # Chosen by the variant `tuning`: no less accurate than the paper's at 56 % of the evaluations.
    config.adp.update(lam=0.1, num_steps=5)
    names = _at_both_sigmas(
        config,
        noise_only=dict(purifier="noise_only"),
        one_step=dict(purifier="one_step"),
        schedule=dict(purifier="schedule"),
        schedule_t10=dict(purifier="schedule", num_steps=10),
        adp=dict(purifier="adp"),
        adp_fd=dict(purifier="adp", curvature="finite_difference"),
        adp_secant=dict(purifier="adp", curvature="secant", lam=0.05, num_steps=6),
    )
    config.variants.adp_paper = dict(purifier="adp", lam=0.05, num_steps=10)
    exact = ("one_step", "schedule", "adp", "adp_secant", "adp_paper")
    config.eval.defenses = ("identity", *names, "adp_paper")
    config.eval.bpda_alone = (
        *(f"{name}-bpda" for name in names if name not in exact),
        *("schedule-bpda_l2", "adp-bpda_l2"),
    )
    # 32 purifications at once, in attacks and in scoring, again for the caches.
    config.eval.update(num_images=500, batch_size=8)
    config.defense.chunk = 1
    config.eval.attacks = ("blind", "bpda", "exact", "blind_l2", "bpda_l2")
    against = dict(purifiers=exact, stepwise=exact[1:], cheaper=exact[:2])
    budget = dict(num_steps=20, eot_samples=8, chunk=4)
    add_attacks(config, eps=EPS, **budget, **against)
    config.attacks.blind_l2 = attack("blind", norm="l2", eps=0.5)
    config.attacks.bpda.num_images = 200
    l2 = dict(norm="l2", eps=0.5, num_images=200, defenses=("schedule", "adp"))
    config.attacks.bpda_l2 = attack("bpda", **budget, **l2)
    config.attacks.exact.num_images = 100
    # At most 44,800 runs of the classifier, half of them behind an evaluation of the score model;
    # 32 at once, for the caches, which divides both numbers of samples: one program does.
    config.certify.update(num_images=20, num_selection=96, num_samples=1024, chunk=32)


def _at_both_sigmas(config, **purifiers: dict) -> list[str]:
    """Sets config.variants to the purifiers at the config's sigma and, named _s10, at 0.10, and the
    one of two levels; returns the names of all but that, also of those that are no variants."""
    purifiers |= {f"{name}_s10": changes | dict(sigma=0.10) for name, changes in purifiers.items()}
    variants = {n: changes for n, changes in purifiers.items() if n not in PURIFIERS}
    config.variants = variants | dict(two_levels=config.variants.two_levels)
    return list(purifiers)


def _tiny(config) -> None:
    config.classifier.network = dict(arch="cifar_resnet", depth=8)
    short = dict(num_steps=60, warmup_steps=10, ema_decay=0.9)
    config.classifier.train.update(batch_size=32, learning_rate=0.05, **short)
    config.score.network = dict(arch="unet", widths=(8, 16), blocks=1)
    config.score.train.update(batch_size=16, accumulate=2, **short)
    config.defense.num_runs = 2
    config.adp.num_steps = 3
    config.schedule.num_steps = 3
    config.eval.update(num_images=8, num_draws=2, batch_size=8)
    config.eval.defenses = ("identity", *PURIFIERS)
    config.eval.bpda_alone = ("noise_only-bpda",)
    config.eval.attacks = ("blind", "bpda", "exact")
    config.attacks.blind.num_steps = 5
    for name in ("bpda", "exact"):
        config.attacks[name].update(num_steps=2, eot_samples=2, num_images=4)
    config.attacks.exact.defenses = PURIFIERS[1:]


def _strong(config) -> None:
    """What ADP's two noise levels withstand, --workdir=runs/cifar10_resnet20; hours on two cores.

    The four gradients of APGD share all else, as do losses of each run and of the runs' mean
    (`_of_mean`). Square's 250 proposals are measured twice each, on 5 runs: 500 queries of 5 runs.
    The baseline pgd_at is the classifier of the variant `pgd_at`, whose weights are in pretrained/.
    """
    both, cheaper = ("adp", "adp_s10"), ("one_step", "schedule")
    baselines = ("pgd_at", "noise_only", "noise_only_s10", "one_step_s10")
    config.eval.update(defenses=("identity", *baselines, *cheaper, *both), num_images=100)
    config.eval.update(num_draws=10, bpda_alone=())
    config.attacks = dict(blind=attack("blind", eps=EPS))
    margin = dict(attack="apgd", loss="margin", eps=EPS, chunk=4, num_steps=10, eot_samples=20)
    for gradient in ("exact", "exact_detached_step", "exact_straight_through", "bpda"):
        config.attacks[f"apgd_{gradient}"] = attack(gradient, **margin, defenses=both)
    config.attacks.apgd_exact.defenses = (*baselines, *cheaper, *both)
    square = dict(attack="square", eps=EPS, num_steps=250, eot_samples=5, chunk=4)
    config.attacks.square = attack("none", **square, defenses=("pgd_at", *both))
    fewer = dict(attack="apgd", eps=EPS, chunk=4, num_steps=20, eot_samples=8, num_images=50)
    for loss in ("cross_entropy", "dlr"):
        config.attacks[f"apgd_{loss}"] = attack("exact", **fewer, loss=loss, defenses=both)
        of_mean = dict(loss=loss, eot="loss_of_mean", defenses=("adp",))
        config.attacks[f"apgd_{loss}_of_mean"] = attack("exact", **fewer | of_mean)
    points = tuple(f"{name}-apgd_exact" for name in cheaper)
    starts = dict(loss="margin", starts=("blind", *points), defenses=("adp",))
    config.attacks.apgd_from_points = attack("exact", **fewer | starts)
    for name, point in zip(cheaper, points, strict=True):
        config.attacks[f"from_{name}"] = transfer(point, defenses=("adp",))
    order = ("blind", "apgd_exact", "apgd_bpda", "square", "apgd_cross_entropy", "apgd_dlr")
    order += ("from_one_step", "from_schedule", "apgd_from_points")
    order += ("apgd_exact_detached_step", "apgd_exact_straight_through")
    order += ("apgd_cross_entropy_of_mean", "apgd_dlr_of_mean")
    config.eval.attacks = order
    config.attack_lists = dict(strong=order)
    config.ablate.attacks = ("blind", "apgd_exact")
    config.ablate.factors.eps.fields = tuple(f"attacks.{a}.eps" for a in config.ablate.attacks)
    config.ablate.factors.eot.fields = ("attacks.apgd_exact.eot_samples",)


def _pgd_at(config) -> None:
    """Steps as Madry et al. (2018) have them; 32 passes over 4,000 images, or 2.6 over 50,000."""
    config.classifier.adversarial.update(method="pgd_at", num_steps=7)
    # Averaged over a tenth of the run: with 0.999 the first weights would still be in it.
    config.classifier.train.update(num_steps=1000, warmup_steps=100, ema_decay=0.99)


def _tuning(config) -> None:
    """How many network evaluations buy how much: larger lambda with fewer steps, fewer levels.

    Clean and blindly attacked, on images that the score model in pretrained/ did not see:
    --workdir=runs/cifar10_resnet20 after `make cifar10`'s imports. The classifier may have seen
    them, so only differences between rows count.
    """
    config.data.update(train_split="train[:3500]", test_split="train[3500:4000]")
    config.adp.update(lam=0.05, num_steps=10)  # the paper's
    names = _at_both_sigmas(
        config,
        one_step=dict(purifier="one_step"),
        schedule=dict(purifier="schedule"),
        schedule_t3=dict(purifier="schedule", num_steps=3),
        schedule_t10=dict(purifier="schedule", num_steps=10),
        adp=dict(purifier="adp"),
        adp_lam10_t5=dict(purifier="adp", lam=0.1, num_steps=5),
        adp_lam20_t3=dict(purifier="adp", lam=0.2, num_steps=3),
        adp_secant=dict(purifier="adp", curvature="secant"),
        adp_secant_t6=dict(purifier="adp", curvature="secant", num_steps=6),
        adp_secant_lam10_t6=dict(purifier="adp", curvature="secant", lam=0.1, num_steps=6),
    )
    defenses = dict.fromkeys(("identity", *PURIFIERS, *names))
    config.eval.update(defenses=tuple(defenses), attacks=("blind",), bpda_alone=())
    config.eval.num_draws = 1
    config.attack_lists = dict(quick=("blind",))
