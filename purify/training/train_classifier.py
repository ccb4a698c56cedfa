"""--mode=train_classifier: a classifier, of clean images or of images attacked as it learns."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn

from purify.models.networks import Classifier
from purify.options import check_options
from purify.training.adversarial import METHODS, AdversarialOptions
from purify.training.loop import LossFn, run_training
from purify.training.losses import cross_entropy


def run(config, workdir: Path) -> None:
    cfg = config.classifier
    check_options("config.classifier.adversarial", AdversarialOptions, cfg.adversarial)
    adversarial = AdversarialOptions(**cfg.adversarial)
    if not 0 <= cfg.label_smoothing < 1:
        raise ValueError(
            f"config.classifier.label_smoothing={cfg.label_smoothing} must be at least 0 and "
            "below 1"
        )
    settings: dict[str, object] = {"label_smoothing": cfg.label_smoothing}
    if adversarial.method:  # a run on clean images has nothing to record
        settings["adversarial"] = dataclasses.asdict(adversarial)
    make = functools.partial(
        make_loss_fn,
        adversarial=adversarial,
        label_smoothing=cfg.label_smoothing,
        precision=cfg.train.precision,
    )
    run_training("classifier", config, workdir, make, extra_settings=settings)


def make_loss_fn(
    network: nn.Module, *, adversarial: AdversarialOptions, label_smoothing: float, precision: str
) -> LossFn:
    """What training minimises for one image: cross-entropy, or the adversarial method's loss."""
    method = adversarial.method and METHODS[adversarial.method]

    def loss_fn(variables, key, image, label):
        classifier = Classifier(variables, network, precision)
        if not method:
            return cross_entropy(classifier, image, label, label_smoothing=label_smoothing)
        return method(classifier, key, image, label, adversarial, label_smoothing=label_smoothing)

    return loss_fn
