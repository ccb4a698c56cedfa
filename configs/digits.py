"""scikit-learn's digits: real 8 x 8 images, offline; the embedded default.

    configs/digits.py        what `make demo` runs: about 6 minutes in all on 2 CPU cores
    configs/digits.py:full   the paper's budgets: S 10, EOT 15, 40 iterations; hours on 2 CPU cores

Classifier: 97 to 99 % clean accuracy. eps 0.15 is where PGD-40 leaves the undefended classifier
under 25 %; sigma, and every other constant of the purifiers, was fixed on validation images.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

VARIANTS = ("", "full")


def get_config(variant: str = "") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"digits.py:{variant} is unknown; known variants: {VARIANTS[1:]}")
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = "digits8x8"
    config.data.dir = ""  # where TFDS keeps prepared data; '' means TFDS_DATA_DIR or its default
    config.data.path = ""  # for data sets made from files: the folder or .npz
    config.data.train_split = "train"
    config.data.test_split = "test"

    config.classifier = ConfigDict()
    config.classifier.network = dict(arch="resnet", widths=(24, 48), blocks=1)
    config.classifier.label_smoothing = 0.0
    config.classifier.train = dict(
        num_steps=600,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=50,
        schedule="cosine",
        beta1=0.9,
        weight_decay=1e-4,
        clip_norm=1.0,
        ema_decay=0.99,
        augment="crop",
        log_every=50,
        checkpoint_every=300,
    )

    config.score = ConfigDict()
    config.score.network = dict(arch="unet", widths=(16, 32), blocks=1)
    config.score.head = "score"
    config.score.sigma_max = 0.6
    config.score.sigma_min = 0.01
    config.score.num_levels = 40
    config.score.train = dict(
        num_steps=4000,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=100,
        schedule="cosine",
        beta1=0.9,
        weight_decay=0.0,
        clip_norm=10.0,
        ema_decay=0.999,
        augment="none",
        log_every=100,
        checkpoint_every=1000,
    )

    # One injected noise level for all purifiers, so that --config.adp.sigma changes them together.
    sigma = FieldReference(0.25)
    config.adp = ConfigDict()
    config.adp.sigma = sigma
    config.adp.lam = 0.05
    config.adp.tau = 1e-3
    config.adp.alpha_min = 1e-5
    config.adp.alpha_max = 0.1
    config.adp.delta = 1e-3
    config.adp.num_steps = 10
    config.adp.curvature = "finite_difference"
    config.schedule = dict(sigma=sigma, sigma_min=0.01, num_steps=5)
    config.one_step = dict(sigma=sigma)
    config.noise_only = dict(sigma=sigma)
    config.identity = ConfigDict()

    config.defense = ConfigDict()
    config.defense.purifier = "adp"  # the headline defence, and what --mode=purify runs
    config.defense.num_runs = 5  # S
    config.defense.average = "logits"

    # Attacks by name. defenses: which ones it is run against, () for all; num_images: on the first
    # so many images only, 0 for all.
    pgd = dict(
        attack="pgd",
        norm="linf",
        eps=0.15,
        num_steps=15,
        step_size=0.03,
        loss="cross_entropy",
        eot="mean_of_loss",
        eot_samples=4,
        restarts=1,
        random_start=True,
        selection_draws=32,
        gradient="exact",
        surrogate="",
        fixed_key=False,
        defenses=(),
        num_images=0,
    )
    config.attacks = ConfigDict()
    config.attacks.blind = pgd | dict(
        gradient="blind", num_steps=40, step_size=0.0375, eot_samples=1
    )
    config.attacks.bpda = pgd | dict(gradient="bpda")
    config.attacks.exact = pgd | dict(defenses=("one_step", "schedule", "adp"), num_images=100)

    config.eval = ConfigDict()
    config.eval.defenses = ("identity", "noise_only", "one_step", "schedule", "adp")
    config.eval.attacks = ("blind", "bpda", "exact")
    config.eval.num_images = 200
    config.eval.num_draws = 4  # N fresh draws of the defence per image
    config.eval.batch_size = 50  # changes no result beyond rounding

    if variant == "full":
        config.defense.num_runs = 10
        config.eval.num_images = 400
        config.eval.num_draws = 10
        for name in ("bpda", "exact"):
            config.attacks[name].update(num_steps=40, eot_samples=15, num_images=0)
        for name, changes in (
            ("exact_loss_of_mean", dict(eot="loss_of_mean", eot_samples=10)),
            ("exact_margin", dict(loss="margin")),
            ("exact_detached_step", dict(gradient="exact_detached_step", defenses=("adp",))),
            ("exact_straight_through", dict(gradient="exact_straight_through")),
            ("surrogate", dict(gradient="surrogate", surrogate="schedule", defenses=("adp",))),
            ("fixed_key", dict(fixed_key=True)),
        ):
            config.attacks[name] = config.attacks.exact.to_dict() | changes
        config.eval.attacks = tuple(config.attacks)
    return config
