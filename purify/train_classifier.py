"""--mode=train_classifier: a classifier of clean images, by cross-entropy."""

from pathlib import Path

import flax.linen as nn

from purify.losses import cross_entropy
from purify.networks import Classifier
from purify.train import LossFn, run_training


def run(config, workdir: Path) -> None:
    smoothing = config.classifier.label_smoothing
    precision = config.classifier.train.precision

    def make_loss_fn(network: nn.Module) -> LossFn:
        def loss_fn(variables, key, image, label):
            classifier = Classifier(variables, network, precision)
            return cross_entropy(classifier, image, label, label_smoothing=smoothing)

        return loss_fn

    run_training(
        "classifier", config, workdir, make_loss_fn, extra_settings={"label_smoothing": smoothing}
    )
