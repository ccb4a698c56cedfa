"""What a record says twice must agree: logits, the predictions of single runs, answers of draws."""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_softmax, logsumexp

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
