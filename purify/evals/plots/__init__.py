"""Figures for a report, each written as one file, PNG or SVG."""

from purify.evals.plots.ablation import ablation_panels
from purify.evals.plots.accuracy import accuracy_bars, accuracy_by_cost
from purify.evals.plots.certified import certified_curves
from purify.evals.plots.corruptions import corruption_accuracies
from purify.evals.plots.curves import training_curves
from purify.evals.plots.images import image_grid, image_rows
from purify.evals.plots.roc import roc_curves, statistic_ranges
from purify.evals.plots.sweeps import accuracy_curves

__all__ = [
    "ablation_panels",
    "accuracy_bars",
    "accuracy_by_cost",
    "accuracy_curves",
    "certified_curves",
    "corruption_accuracies",
    "image_grid",
    "image_rows",
    "roc_curves",
    "statistic_ranges",
    "training_curves",
]
