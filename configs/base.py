"""What all configs share: the paper's constants for purifiers, and the shape of everything else.

A data set's config starts from `base()` and changes what is its own. Attacks and networks of other
names can be added freely; everything else is fixed, and a field that does not exist is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def base() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.name = ""
    config.data.dir = ""  # where TFDS keeps prepared data; '' means TFDS_DATA_DIR or its default
    config.data.path = ""  # of data sets made from files: the folder or .npz
    config.data.train_split = "train"
    config.data.test_split = "test"

    config.classifier = _classifier()
    config.score = _score()
    config.update(_purifiers())
    # More defences, by name: {"purifier": one of these, and what is different}.
    config.variants = ConfigDict(dict(two_levels=dict(purifier="adp", second_sigma=0.1)))

    config.defense = ConfigDict()
    config.defense.purifier = "adp"  # the headline defence, and what --mode=purify runs
    config.defense.num_runs = 10  # S
    config.defense.average = "logits"  # or 'softmax', 'vote'
    config.defense.chunk = 0  # runs computed at once, 0 for all; fewer need less memory

    config.attacks = ConfigDict()  # by name; see attack() and suite()
    config.attack_lists = ConfigDict()  # by name: names of attacks

    config.check = _check()
    config.certify = _certify()
    config.corruptions = _corruptions()
    config.detect = _detect()
    config.sample = _sample()
    config.ablate = _ablate()

    config.eval = ConfigDict()
    config.eval.defenses = ("identity", "noise_only", "one_step", "schedule", "adp")
    config.eval.attacks = ("blind", "bpda", "exact")
    config.eval.attack_list = ""  # of config.attack_lists, to take instead
    config.eval.bpda_alone = ()  # rows, as 'adp-bpda', without an exact gradient beside them
    config.eval.num_images = 200
    config.eval.num_draws = 4  # N fresh draws of the defence per image
    config.eval.batch_size = 50  # at most; changes rounding only, except with adp_reference
    return config


def _classifier() -> ConfigDict:
    """What is defended, and how it is trained."""
    classifier = ConfigDict()
    classifier.network = ConfigDict(dict(arch="resnet", widths=(32, 64), blocks=2))
    classifier.label_smoothing = 0.0
    classifier.adversarial = ConfigDict(
        dict(
            method="",  # or 'pgd_at', 'trades': learn from attacked images
            norm="linf",
            eps=8 / 255,
            step_size=0.0,
            num_steps=10,
            beta=6.0,  # of 'trades'
        )
    )
    _step_by_eps(classifier.adversarial)
    classifier.train = _train()
    classifier.train.update(schedule="cosine", weight_decay=1e-4)
    return classifier


def _score() -> ConfigDict:
    """The score model, and how it is trained."""
    score = ConfigDict()
    score.network = ConfigDict(dict(arch="unet", widths=(32, 64), blocks=1))
    score.head = "score"  # or 'energy', 'denoiser'
    # Purification needs noise up to about the injected level; the paper trains up to sigma 50.
    score.sigma_max = 0.6
    score.sigma_min = 0.01
    score.num_levels = 40
    # What it learns to undo: 'gaussian' noise, or for common corruptions 'dct', noise at the same
    # levels that falls with the frequency, or 'augmix', which has no levels (sigma_max to
    # num_levels do not matter); see purify/training/perturbations.py.
    score.perturbation = "gaussian"
    score.dct = ConfigDict(dict(power=1.0))  # 0: white
    score.augmix = ConfigDict(dict(severity=3.0, width=3, depth=3))
    score.train = _train()
    return score


def _purifiers() -> ConfigDict:
    """By name; see purify/purifiers/__init__.py and adp.py."""
    # One injected noise level for all purifiers, so that --config.adp.sigma changes them together.
    sigma = FieldReference(0.25)
    purifiers = ConfigDict()
    purifiers.adp = ConfigDict()
    purifiers.adp.sigma = sigma
    purifiers.adp.lam = 0.05
    purifiers.adp.tau = 1e-3
    purifiers.adp.alpha_min = 1e-5
    purifiers.adp.alpha_max = 0.1
    purifiers.adp.delta = 1e-3  # of finite differences
    purifiers.adp.num_steps = 10
    purifiers.adp.curvature = "jvp"  # or 'finite_difference', as the paper, or 'secant'
    # The published code, quirks included; a defence only where config.eval.defenses names it.
    purifiers.adp_reference = ConfigDict(
        dict(
            sigma=sigma,
            lam=0.05,
            tau=1e-3,
            alpha_min=1e-5,
            alpha_max=0.1,
            delta=1e-3,
            num_steps=10,
        )
    )
    purifiers.schedule = ConfigDict(dict(sigma=sigma, sigma_min=0.01, num_steps=5))
    purifiers.one_step = ConfigDict(dict(sigma=sigma))
    purifiers.noise_only = ConfigDict(dict(sigma=sigma))
    purifiers.identity = ConfigDict()
    # Its parts: a purifier, and what is different of the above.
    purifiers.detect_then_purify = ConfigDict(
        dict(
            threshold=0.0,  # of the score norm: 0 suspects every image
            natural=dict(purifier="schedule", sigma=0.1),
            suspected=dict(purifier="adp"),
        )
    )
    return purifiers


def _check() -> ConfigDict:
    """Of --mode=check_gradients, on config.defense.purifier; see evals/gradient_checks.py."""
    check = ConfigDict()
    check.attack = "exact"  # of config.attacks, whose ball and loss are taken
    check.surrogate = "one_step"  # attacked in the place of the purifier, '' for none
    check.num_images = 50
    check.num_draws = 4
    check.num_steps = 10  # halved in one of the checks, as eot_samples in another
    check.restarts = 1  # doubled in one
    check.eot_samples = 4
    check.proposals = 50  # of each restart of Square
    check.directions = 8  # of each gradient that SPSA estimates
    return check


def _certify() -> ConfigDict:
    """Of --mode=certify; see purify/evals/certify/smoothing.py."""
    certify = ConfigDict()
    certify.defenses = ("noise_only", "one_step")  # plain, and denoised smoothing
    certify.sigmas = (0.25,)  # of the certificates' noise, the only one that is injected
    certify.num_selection = 100  # samples that select the class
    certify.num_samples = 10_000  # that certify it
    certify.alpha = 1e-3
    certify.num_images = 100
    certify.budgets = ConfigDict()  # by defence: other num_images, num_samples
    certify.chunk = 1000  # samples of a block; two blocks are computed at once
    certify.radii = (0.0, 0.1, 0.25, 0.5, 0.75)  # of the table; all these samples reach 0.8
    return certify


def _sample() -> ConfigDict:
    """Of --mode=sample; see purify/langevin.py."""
    sample = ConfigDict()
    sample.num_images = 64  # samples, 0 for none
    sample.start = "noised"  # images of the test split, or 'prior': mid-grey, so noise alone
    sample.sigma_max = 0.0  # of the first level and the noise at the start, 0: as it was trained
    sample.sigma_min = 0.0  # 0: as it was trained, too
    sample.num_levels = 0  # and so here
    sample.steps_per_level = 5
    sample.step_size = 0.0  # alpha_i / sigma_i^2, 0: by NCSNv2's rule
    sample.purifiers = ("one_step", "schedule", "adp")  # whose paths are shown
    sample.positions = (0, 1, 2, 3)  # of the images whose paths these are, () for none
    return sample


def _corruptions() -> ConfigDict:
    """Of --mode=eval_corruptions; see purify/corruptions. S is config.defense.num_runs."""
    corruptions = ConfigDict()
    corruptions.names = ()  # () for all that there are
    corruptions.severities = (1, 2, 3, 4, 5)
    corruptions.defenses = ("identity", "noise_only", "one_step", "adp")
    corruptions.num_images = 200
    corruptions.num_draws = 1  # of each corrupted image: fresh ones
    return corruptions


def _detect() -> ConfigDict:
    """Of --mode=detect; see purify/detectors.py."""
    detect = ConfigDict()
    detect.statistics = ()  # () for all that the score model has
    detect.purifier = "one_step"  # whose reconstruction and whose predictions are compared
    detect.defense = "identity"  # behind the detector: what attacked images have to fool
    # Of natural images, by which thresholds are set: none that trained a network, if possible.
    detect.calibration_split = "test[50%:]"
    detect.num_images = 200  # of the test split
    detect.attack = "blind"  # of config.attacks, whose ball and steps all attacks have
    detect.weights = (0.3, 1.0, 3.0, 10.0, 30.0)  # of a statistic, for attackers who know of it
    detect.eot_samples = 4  # of these, where anything draws
    detect.num_draws = 4  # that are scored, where anything draws; as many choose the strongest
    detect.corruptions = ("gaussian_noise", "defocus_blur", "brightness", "contrast")
    detect.severity = 3  # of these natural images
    return detect


def _ablate() -> ConfigDict:
    """Of --mode=ablate: the evaluations of config.defense.purifier that have one factor at another
    value than the config, which is the default that all of them share."""
    eot = ("attacks.bpda.eot_samples", "attacks.exact.eot_samples")
    eps = ("attacks.blind.eps", "attacks.bpda.eps", "attacks.exact.eps")
    purifiers = ("identity", "noise_only", "one_step", "schedule", "two_levels")
    ablate = ConfigDict()
    ablate.attacks = ("blind", "exact")  # of config.attacks, with what they have there
    ablate.num_images = 100
    # Of the factors.
    ablate.names = ("sigma", "lam", "T", "S", "curvature", "eps", "eot", "purifier")
    # By name: fields of this config that change together, and the values at which they are tried
    # beside the default; where `at` names none, `times` are multiples of whatever the default is.
    ablate.factors = ConfigDict(
        dict(
            sigma=dict(fields=("adp.sigma",), at=(0.05, 0.1, 0.15, 0.2, 0.3, 0.35, 0.4)),
            lam=dict(fields=("adp.lam",), at=(0.02, 0.1, 0.2)),
            T=dict(fields=("adp.num_steps",), at=(2, 5, 20)),
            S=dict(fields=("defense.num_runs",), at=(1, 5, 20)),
            curvature=dict(fields=("adp.curvature",), at=("finite_difference", "secant")),
            eps=dict(fields=eps, at=(), times=(0.25, 0.5, 2.0)),
            eot=dict(fields=eot, at=(1, 5, 50)),
            purifier=dict(fields=("defense.purifier",), at=purifiers),
        )
    )
    return ablate


def _train() -> ConfigDict:
    train = ConfigDict()
    train.num_steps = 1000
    train.batch_size = 64
    train.learning_rate = 1e-3
    train.warmup_steps = 100
    train.algorithm = "adam"  # or 'sgd'
    train.schedule = "constant"  # or 'cosine'
    train.beta1 = 0.9
    train.weight_decay = 0.0
    train.clip_norm = 10.0  # 0: none
    train.ema_decay = 0.999
    train.augment = "none"  # or 'flip', 'crop', 'flip_crop'
    train.accumulate = 1  # parts of a batch one after the other, where memory or caches are small
    train.precision = "float32"  # or 'bfloat16', of the network's arithmetic
    train.log_every = 100
    train.checkpoint_every = 1000
    return train


# Of attacks by gradients, true or estimated, and of the others.
_ASCENT = dict(
    num_steps=40,
    restarts=1,
    random_start=True,
    keep="best",  # or 'last': the last iterate, as published attacks do
    ranking_draws=4,  # by which iterates are ranked, at least
    targets=0,  # wrong classes to aim at one after the other, at most; 0 for untargeted
    selectivity=1.0,  # of eot 'selective', and the rounds of its weights
    selection_steps=3,
    penalty=0.0,  # on a score norm above the detector's threshold, of defences that have one
    starts=(),  # rows, as 'schedule-exact', or 'blind', whose images it climbs from as well
    estimate="",  # of the gradient by values of the loss: 'spsa' or 'nes'
    directions=64,  # of an estimate
    delta=0.01,
)
_OWN = {
    # momentum 1 is MIM; direction: 'score' and 'full' are the paper's joint attacks
    "pgd": _ASCENT | dict(step_size=0.0, momentum=0.0, direction=""),
    "apgd": _ASCENT,
    "square": dict(num_steps=500, restarts=1, share=0.8, remeasure=True),
    "fab": dict(num_steps=100, targets=9, restarts=1),
    "fmn": dict(num_steps=100),
    "carlini_wagner": dict(num_steps=200, learning_rate=0.01, searches=9, first_c=0.1),
    "rays": dict(num_steps=1000, tolerance=1e-3),
}


def attack(
    gradient: str, *, eps: float, attack: str = "pgd", norm: str = "linf", **changes
) -> ConfigDict:
    """The options of one attack; PGD has steps of eps / 4, as 2/255 is to 8/255."""
    options = ConfigDict()
    options.attack = attack
    options.gradient = gradient  # 'none' for attacks that see values only
    options.surrogate = ""  # the purifier that gradient='surrogate' differentiates
    options.fixed_key = False  # the attacker knows the keys of the one draw that is scored
    options.norm = norm
    options.eps = eps
    options.loss = "margin" if attack not in ("pgd", "apgd") else "cross_entropy"  # or 'dlr'
    options.eot = "mean_of_loss"  # or 'loss_of_mean'; of ascents also 'sign_vote', 'selective'
    options.eot_samples = 1  # 0 means S
    options.average = ""  # of runs, in 'loss_of_mean'; '' for the defence's own
    options.selection_draws = 32  # at least that many
    options.chunk = 0  # draws computed at once, 0 for all; fewer need less memory
    options.update(_OWN.get(attack, {}))  # what is not told there is as the attack has it
    if attack == "pgd":
        _step_by_eps(options)
    options.defenses = ()  # against which of config.eval.defenses, () for all
    options.num_images = 0  # on the first so many images only, 0 for all
    options.update(changes)
    return options


def add_attacks(
    config, *, eps: float, purifiers: tuple, stepwise: tuple, cheaper: tuple, **budget
) -> None:
    """The attacks of a config, all in one Linf ball, and the lists of them that it can be asked
    for: 'quick', 'paper' (its own adaptive attacks, too, weaker than the exact gradient) and
    'strong'; and AutoAttack's three, with the budgets that they were published with.

    purifiers: whose exact gradient is taken; stepwise: those with steps; cheaper: those whose
    attacked images are tried on the headline defence. budget: num_steps, eot_samples, chunk.
    """
    headline = dict(defenses=(config.defense.purifier,))
    ball = dict(eps=eps, **budget)
    exact = dict(**ball, defenses=purifiers)
    own = dict(**ball, defenses=stepwise)
    several = {k: v for k, v in ball.items() if k != "num_steps"}

    def add(**attacks):  # not an update: a field that follows another cannot be updated
        for name, options in attacks.items():
            config.attacks[name] = options

    add(blind=attack("blind", eps=eps), bpda=attack("bpda", **ball), exact=attack("exact", **exact))
    add(joint_score=attack("bpda", **own, direction="score"))
    add(joint_full=attack("bpda", **own, direction="full"))
    add(one_step_unrolling=attack("one_step_unrolling", **own))
    add(approximate_input=attack("approximate_input", **own))
    # 1,280 queries a step, as published; each direction has draws of its own.
    by_values = dict(estimate="spsa", directions=640, eot_samples=1, loss="margin")
    by_values["chunk"] = budget.get("chunk", 64)
    add(spsa=attack("none", **ball | headline | by_values))

    add(exact_margin=attack("exact", **exact, loss="margin"))
    of_mean = dict(eot="loss_of_mean", eot_samples=0)
    add(exact_loss_of_mean=attack("exact", **exact | of_mean))
    add(selective=attack("exact", **exact, eot="selective", loss="margin"))
    add(apgd=attack("exact", attack="apgd", **exact))
    add(apgd_dlr=attack("exact", attack="apgd", **exact, loss="dlr"))
    add(apgd_targeted=attack("exact", attack="apgd", **exact, loss="margin", targets=3))
    add(fab=attack("exact", attack="fab", **several, defenses=purifiers))
    add(fmn=attack("exact", attack="fmn", **several, defenses=purifiers))
    add(square=attack("none", attack="square", **several | dict(num_steps=1000, eot_samples=5)))
    points = [f"{name}-{gradient}" for name in cheaper for gradient in ("bpda", "exact")]
    transfers = {f"from_{point.replace('-', '_')}": transfer(point, **headline) for point in points}
    add(**transfers)
    starts = dict(starts=("blind", *points), loss="margin", **headline)
    add(apgd_from_points=attack("exact", attack="apgd", **ball | starts))

    quick = ("blind", "bpda", "exact")
    paper = ("joint_score", "joint_full", "one_step_unrolling", "approximate_input", "spsa")
    strong = ("exact_margin", "exact_loss_of_mean", "selective", "apgd", "apgd_dlr")
    strong += ("apgd_targeted", "fab", "fmn", "square", *transfers, "apgd_from_points")
    lists = dict(quick=quick, paper=(*quick, *paper), strong=(*quick, *strong))
    config.attack_lists = ConfigDict(lists)
    _add_autoattack(config, eps=eps, chunk=budget.get("chunk", 0))


def _add_autoattack(config, *, eps: float, chunk: int) -> None:
    """AutoAttack (Croce and Hein, ICML 2020) as suites. Of 'plus' the untargeted FAB is left out:
    the targeted one aims at every wrong class."""
    ball = dict(eps=eps, chunk=chunk)
    by_gradient = dict(attack="apgd", num_steps=100, **ball)
    dlr, targeted = dict(loss="dlr"), dict(loss="dlr", targets=9)
    stages = dict(
        ce=attack("exact", **by_gradient),
        ce_5=attack("exact", **by_gradient, restarts=5),
        ce_20=attack("exact", **by_gradient, eot_samples=20),
        dlr_5=attack("exact", **by_gradient, **dlr, restarts=5),
        dlr_20=attack("exact", **by_gradient, **dlr, eot_samples=20),
        targeted=attack("exact", **by_gradient, **targeted),
        fab=attack("exact", attack="fab", **ball),
        square=attack("none", attack="square", num_steps=5000, **ball),
    )
    config.attacks.update({f"autoattack_{name}": options for name, options in stages.items()})
    suites = dict(
        standard=("ce", "targeted", "fab", "square"),
        plus=("ce_5", "dlr_5", "square", "targeted", "fab"),
        rand=("ce_20", "dlr_20"),
    )
    for name, parts in suites.items():
        config.attacks[f"autoattack_{name}"] = suite(*(f"autoattack_{part}" for part in parts))


def add_corruptions(config, *more: str, **changes) -> None:
    """The defences of --mode=eval_corruptions: injected noise hurts where a corruption has removed
    detail, so ADP with less of it, and with none, stands there too.

    more: other defences. changes: of config.corruptions.
    """
    config.variants.update(adp_s0=dict(purifier="adp", sigma=0.0))
    config.variants.update(adp_s10=dict(purifier="adp", sigma=0.10))
    defenses = ("identity", "noise_only", "one_step", "adp_s0", "adp_s10", "adp", *more)
    config.corruptions.update(defenses=defenses, **changes)


def set_eps(config, eps: float) -> None:
    """Another radius for all attacks and adversarial training under Linf; the steps follow."""
    for options in (*config.attacks.values(), config.classifier.adversarial):
        if options.get("norm") == "linf":
            options.eps = eps
            if "step_size" in options:
                _step_by_eps(options)


def _step_by_eps(options) -> None:
    """Steps of a quarter of the radius, also where that is changed later."""
    options.step_size = options.get_oneway_ref("eps") / 4


def following(options: ConfigDict) -> ConfigDict:
    """The same options, which keep the values of these, also where those are changed later, until
    they are changed themselves."""
    return ConfigDict({name: options.get_oneway_ref(name) for name in options})


def transfer(source: str, *, defenses: tuple, num_images: int = 0) -> ConfigDict:
    """The attacked images of another row, as 'schedule-exact', on other defences."""
    options = dict(attack="transfer", gradient="transfer", fixed_key=False, source=source)
    return ConfigDict(options | dict(defenses=defenses, num_images=num_images))


def suite(*stages: str, survivors: bool = True, defenses: tuple = (), num_images: int = 0):
    """Several attacks, one after the other, as one; of each image the strongest result counts.

    stages: their names in config.attacks. survivors: each attacks only the images that those
    before it left standing.
    """
    options = dict(attack="suite", gradient="chosen", fixed_key=False, stages=stages)
    return ConfigDict(options | dict(survivors=survivors, defenses=defenses, num_images=num_images))
