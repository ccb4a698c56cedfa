"""The strongest attack on each image, chosen on draws of the defence that score nothing."""

import dataclasses
import functools

import jax

from attacks.gradients import average_logits, draws
from attacks.losses import margin
from attacks.objective import Expected
from attacks.types import Array, LogitsFn
from purify.defense import Defense
from purify.types import Key

# Fresh runs of the defence on which an attacked image is chosen among candidates, at the least;
# and draws, of S runs each, where these are what is attacked: all of them settle an image.
MIN_SELECTION_DRAWS, MIN_GROUPS = 32, 8


def selection_runs(num_runs: int) -> int:
    """Runs on which attacks are compared, of a defence that averages num_runs."""
    return max(MIN_SELECTION_DRAWS, MIN_GROUPS * num_runs)


@dataclasses.dataclass(frozen=True)
class Strongest(Expected):
    """Of several attacked images and the clean one, that of highest margin.

    A draw of the defence is eot_samples = S runs, and its margin that of their averaged logits; the
    mean over at least selection_draws runs (see selection_runs) decides, on one set of keys for all
    candidates.

    num_candidates: attacked images to choose from.
    survivors: whether an image that every selection draw has wrong is settled: attacks that come
        later leave it out, as AutoAttack does. Behind a randomised defence one lucky draw must not
        settle anything, so it takes all of them.
    """

    loss: str = "margin"
    eot: str = "loss_of_mean"
    num_candidates: int = 1
    survivors: bool = False

    gradient_queries = 0

    @property
    def selection_queries(self) -> int:
        """Runs of logits_fn that choosing takes, per image."""
        return self.choice_queries(self.num_candidates)

    @property
    def queries_per_candidate(self) -> int:
        return self.whole_groups(self.selection_draws)

    @property
    def budget(self) -> str:
        """For people: what is chosen from, and on how much."""
        one_by_one = ", survivors only" if self.survivors else ""
        return f"best of {self.num_candidates}{one_by_one}, on {self.queries_per_candidate} runs"

    def measure(
        self, key: Key, logits_fn: LogitsFn, image: Array, label: Array
    ) -> tuple[Array, Array]:
        """(mean margin, whether every draw is wrong) of one candidate [H, W, C]."""
        runs = draws(logits_fn, self._group, self.chunk)

        def drawn_margin(key, x):
            return margin(average_logits(runs(key, x), self.average), label)

        margins = draws(drawn_margin, self.queries_per_candidate // self._group, 1)(key, image)
        return margins.mean(), (margins > 0).all()


@functools.partial(jax.jit, static_argnames="strongest")
def measure(
    strongest: Strongest, defense: Defense, keys: Key, images: Array, labels: Array
) -> tuple[Array, Array]:
    """Strongest.measure of a batch: keys [B], images [B, H, W, C], labels [B] -> ([B], [B])."""

    def one(key, image, label):
        return strongest.measure(key, defense.run, image, label)

    return jax.vmap(one, axis_name="batch")(keys, images, labels)
