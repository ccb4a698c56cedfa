"""Adversarial purification with score-based generative models.

from purify import classify, image_keys, load_defense

defense = load_defense("runs/digits", "adp", num_runs=10)
logits = classify(defense, image_keys(0, range(len(images))), images)
"""

from purify.adp import ADP
from purify.checkpoint import load_classifier, load_defense, load_score
from purify.compilation import jit
from purify.defense import Defense, classify
from purify.networks import Classifier, Score
from purify.purifiers import PURIFIERS, Identity, NoiseOnly, OneStep, Schedule
from purify.random import image_keys

__all__ = [
    "ADP",
    "PURIFIERS",
    "Classifier",
    "Defense",
    "Identity",
    "NoiseOnly",
    "OneStep",
    "Schedule",
    "Score",
    "classify",
    "image_keys",
    "jit",
    "load_classifier",
    "load_defense",
    "load_score",
]
