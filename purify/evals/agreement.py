"""What a record says twice must agree: logits, the predictions of single runs, answers of draws;
counts of classes and the certificate that follows from them."""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_softmax, logsumexp

from purify.evals import smoothing

ROUNDING = 1e-5  # of logits, relative to the largest


def check_label(record: Mapping, label: int) -> None:
    """ValueError unless a record is of an image with that label."""
    if record["label"] != label:
        raise ValueError(f"label {record['label']}, of an image of {label}")


def check_scored(record: Mapping) -> None:
    """ValueError unless the answers of a scored record are right where its predictions, label and
    number of runs leave no choice: where all runs of a draw agree, they are its answer."""
    predictions, label = record["predictions"], record["label"]
    if len(predictions) != len(record["correct"]):
        raise ValueError(f"{len(predictions)} draws of predictions, {len(record['correct'])} right")
    for runs, correct in zip(predictions, record["correct"], strict=True):
        if len(set(runs)) == 1 and (runs[0] == label) != correct:
            raise ValueError(f"all runs of a draw say {runs[0]}, the label is {label}, "
                             f"and 'correct' is {correct}")  # fmt: skip


def check_logits(record: Mapping, logits: np.ndarray, average: str) -> None:
    """ValueError unless predictions and answers of a scored record are those of its logits
    [N, S, K], which the defence combines by `average` (see Defense)."""
    if logits.argmax(-1).tolist() != record["predictions"]:
        raise ValueError("the predictions are not those of the logits")
    label, logits = record["label"], logits.astype(np.float64)
    combined = {
        "logits": lambda: logits.mean(1),
        "softmax": lambda: logsumexp(log_softmax(logits, axis=-1), axis=1),
        "vote": lambda: np.eye(logits.shape[-1])[logits.argmax(-1)].mean(1),
    }[average]()
    others = np.delete(combined, label, axis=-1).max(-1) if combined.shape[-1] > 1 else -np.inf
    lead = combined[:, label] - others
    clear = np.abs(lead) > ROUNDING * (1 + np.abs(logits).max())
    if (clear & ((lead > 0) != np.array(record["correct"]))).any():
        raise ValueError("'correct' is not what the logits say")


def check_certified(
    record: Mapping,
    *,
    num_classes: int,
    sigma: float,
    num_selection: int,
    num_samples: int,
    alpha: float,
) -> None:
    """ValueError unless a certificate is what its counts say; options as of smoothing.certify."""
    counts = np.array(record["counts"])
    drawn = int(counts.sum())
    early = 0 < drawn < num_samples and drawn % smoothing.LOOK == 0
    known = len(counts) == num_classes and 0 <= record["top"] < num_classes
    if not known or not (early or drawn == num_samples):
        raise ValueError(f"{drawn} samples of {len(counts)} classes, top {record['top']}")
    if record["samples"] != num_selection + drawn:
        raise ValueError(f"{record['samples']} samples, but counts of {drawn} + {num_selection}")
    expected = smoothing.conclude(
        record["top"], counts, sigma=sigma, num_samples=num_samples, alpha=alpha
    )
    if record["answer"] != expected.answer or not np.allclose(
        [record["p_low"], record["radius"]], [expected.p_low, expected.radius], rtol=1e-6, atol=1e-9
    ):
        raise ValueError("its answer, p_low or radius is not what its counts say")
