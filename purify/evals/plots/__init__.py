"""Figures for a report, each written as one PNG."""

from purify.evals.plots.ablation import ablation_panels
from purify.evals.plots.accuracy import accuracy_bars, accuracy_by_cost
from purify.evals.plots.certified import certified_curves
from purify.evals.plots.corruptions import corruption_accuracies
from purify.evals.plots.curves import training_curves
from purify.evals.plots.images import image_rows

__all__ = [
    "ablation_panels",
    "accuracy_bars",
    "accuracy_by_cost",
    "certified_curves",
    "corruption_accuracies",
    "image_rows",
    "training_curves",
]
