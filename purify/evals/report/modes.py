"""The modes whose results a report shows, in its order."""

from purify.evals import ablate, certify, corruptions, detect, gradients, robust, sample
from purify.evals.core.show import Shown

MODES: dict[str, Shown] = {
    "eval_robust": robust.show.SHOWN,
    "check_gradients": gradients.show.SHOWN,
    "certify": certify.show.SHOWN,
    "eval_corruptions": corruptions.show.SHOWN,
    "detect": detect.show.SHOWN,
    "ablate": ablate.show.SHOWN,
    "sample": sample.show.SHOWN,
}
