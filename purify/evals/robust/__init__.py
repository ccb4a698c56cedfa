"""--mode=eval_robust: the attacks of the config against the defence and its baselines."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.plan import attack_names, plan
from purify.evals.attacked.rows import Row, crafting, limited, with_stages
from purify.evals.core.defenses import variant_settings
from purify.evals.core.inputs import Inputs, load_inputs, tell_seen, without
from purify.evals.core.store import Store
from purify.evals.core.terminal import stopped_early, tell_work
from purify.evals.robust import show
from purify.purifiers import PURIFIERS
from purify.runtime import parallel
from purify.runtime.messages import counted

MODE = "eval_robust"


class Cost(NamedTuple):
    """Runs of the classifier, and evaluations and gradients of the score network."""

    runs: int
    nfe: int
    nge: int

    def __str__(self) -> str:
        return (
            f"{counted(self.runs, 'run')} of the classifier, {counted(self.nfe, 'evaluation')} and "
            f"{counted(self.nge, 'gradient')} of the score network"
        )


@dataclasses.dataclass(frozen=True)
class Planned:
    """One evaluation, checked: what is going to be done, on the images that it needs."""

    config: Any
    inputs: Inputs
    rows: list[Row]
    settings: dict

    @property
    def num_images(self) -> int:
        return max(row.num_images for row in self.rows)

    @property
    def cost(self) -> Cost:
        """Of all that is planned, at most: as if no image stopped early."""
        return self._cost(with_stages(self.rows), lambda _, row: row.num_images)

    def cost_left(self, evaluation: Evaluation) -> Cost:
        """The same of what the evaluation has not done; no runs where nothing is left."""
        return self._cost(
            evaluation.attacking(self.rows), lambda name, row: len(evaluation.pending(name, row))
        )

    def _cost(self, attacking: list[Row], count: Callable[[str, Row], int]) -> Cost:
        """count: (name of records, row) -> of how many images."""
        scored = [(row, count(row.name, row)) for row in self.rows]
        crafted = [(row, count(f"attack:{row.crafted}", row)) for row in crafting(attacking)]
        return Cost(
            sum(n * row.num_draws * row.defense.num_runs for row, n in scored)
            + sum(n * row.attack_queries for row, n in crafted),
            sum(n * row.score_nfe for row, n in scored)
            + sum(n * row.attack_nfe for row, n in crafted),
            sum(n * row.attack_nge for row, n in crafted),
        )

    def limited(self, max_images: int | None) -> "Planned":
        """The same, stopped after that many images of each row; None: not at all."""
        if not max_images:
            return self
        rows = limited(self.rows, max_images, self.config.eval.batch_size)
        return dataclasses.replace(self, rows=rows)


def prepare(config, inputs: Inputs, *, given: bool = False) -> Planned:
    """The evaluation that the config describes; ValueError for what does not fit in it.

    given: its images were attacked elsewhere.
    """
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    rows = plan(config, inputs.networks, len(inputs.labels), given=given)
    settings = _settings(config, inputs, rows) | {"given": given}
    needed = max(row.num_images for row in rows)
    return Planned(config, inputs.first(needed), rows, settings)


def purifiers_of(config, *, given: bool = False) -> tuple[str, ...]:
    """The names of its defences and, unless the images are given, of the surrogates that attacks
    on these differentiate."""
    defenses, attacks = config.eval.defenses, config.attacks.to_dict()
    chosen = [] if given else [attacks[name] for name in attack_names(config) if name in attacks]
    chosen += [attacks[s] for own in chosen for s in own.get("stages", ()) if s in attacks]
    meant = (own for own in chosen if not own["defenses"] or {*own["defenses"]} & {*defenses})
    surrogates = (options.get("surrogate") for options in meant)
    return tuple(dict.fromkeys(filter(None, (*defenses, *surrogates))))


def evaluate(planned: Planned, store: Store) -> Evaluation:
    """Whatever of it is not done yet, into the store of its settings."""
    evaluation = planned.inputs.evaluation(planned.config, store)
    evaluation.run(planned.rows)
    return evaluation


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Evaluate, print a table, and say what was written.

    input: an .npz of images to score (images, labels, optional index) instead of attacking.
    max_images: stop after that many images of each row. No setting: a later run, with more of them
        or without a limit, is the same evaluation and goes on from there.
    """
    inputs = load_inputs(config, workdir, purifiers_of(config, given=bool(input)), input)
    whole = prepare(config, inputs, given=bool(input))
    planned = whole.limited(max_images)
    taken = planned.num_images
    stopped = stopped_early(taken, whole.num_images, max_images)
    with Store(workdir, MODE, planned.settings, stopped=stopped) as store:
        asked = f"{counted(len(planned.rows), 'row')} on {counted(taken, 'image')}"
        left = planned.cost_left(inputs.evaluation(config, store))
        tell_work(asked, str(planned.cost), str(left) if left.runs else "", store.folder)
        if not input:
            tell_seen(config.data, inputs, range(taken))
        evaluation = evaluate(planned, store)
        if parallel.is_first_process():
            show.write(config, evaluation, planned.rows, planned.settings, inputs)


def _settings(config, inputs: Inputs, rows: list[Row]) -> dict:
    """Everything that decides the results: two evaluations with equal settings are the same one."""
    cfg = config.to_dict()
    names = attack_names(config)
    stages = [stage for n in names for stage in cfg["attacks"][n].get("stages", ())]
    evaluated = without(without(cfg["eval"], "attack_list"), "bpda_alone") | {"attacks": names}
    if not any(row.defense.couples_batch for row in rows):
        evaluated = without(evaluated, "batch_size")
    purifiers, used = {name: cfg[name] for name in PURIFIERS}, purifiers_of(config)
    return {
        "defense": without(cfg["defense"], "chunk"),
        "attacks": {n: without(cfg["attacks"][n], "chunk") for n in (*names, *stages)},
        "eval": evaluated,
        "variants": {n: variant_settings(config, n) for n in used if n in cfg["variants"]},
        **inputs.settings(config),
        **purifiers,
    }
