"""--mode=eval_robust: the attacks of the config against the defence and its baselines."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.plan import attack_names, plan
from purify.evals.attacked.rows import Row, jobs_of, limited
from purify.evals.core import mode
from purify.evals.core.defenses import variant_settings
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import Inputs, load_inputs, without
from purify.evals.robust import show
from purify.evals.robust.numbers import numbers
from purify.purifiers import PURIFIERS
from purify.runtime import parallel
from purify.runtime.messages import counted

MODE = "eval_robust"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacked(mode.Task):
    """Every row: a defence without an attack, and under each of them.

    shared: the settings of networks and of all images that there are, needed or not. given: the
    images were attacked elsewhere.
    """

    rows: list[Row]
    shared: Mapping
    given: bool = False
    mode = MODE
    shown = show.SHOWN

    @property
    def asked(self) -> str:
        return f"{counted(len(self.rows), 'row')} on {counted(self.num_images, 'image')}"

    @property
    def title(self) -> str:
        return show.title(self.config, self.rows, self.settings)

    @property
    def jobs(self) -> list[Job]:
        return jobs_of(self.rows)

    @functools.cached_property
    def settings(self) -> dict:
        config, names = self.config, attack_names(self.config)
        cfg = config.to_dict()
        stages = [stage for n in names for stage in cfg["attacks"][n].get("stages", ())]
        evaluated = without(without(cfg["eval"], "attack_list"), "bpda_alone") | {"attacks": names}
        if not any(row.defense.couples_batch for row in self.rows):
            evaluated = without(evaluated, "batch_size")
        used = purifiers_of(config)
        return {
            "defense": without(cfg["defense"], "chunk"),
            "attacks": {n: without(cfg["attacks"][n], "chunk") for n in (*names, *stages)},
            "eval": evaluated,
            "variants": {n: variant_settings(config, n) for n in used if n in cfg["variants"]},
            **self.shared,
            **{name: cfg[name] for name in PURIFIERS},
            "given": self.given,
        }

    @property
    def recorded(self) -> dict:
        return {"weights": self.settings["weights"]}

    def limited(self, max_images: int) -> "Attacked":
        rows = limited(self.rows, max_images, self.config.eval.batch_size)
        return dataclasses.replace(self, rows=rows)

    def mend(self, engine: Engine) -> None:
        Evaluation(engine).forget_lost(self.rows)

    def tell_seen(self) -> None:
        if not self.given:
            super().tell_seen()

    def measure(self, engine: Engine) -> None:
        Evaluation(engine).measure(self.rows)

    def numbers(self, engine: Engine) -> dict:
        done = [(row, engine.records(row.score_job)) for row in self.rows]
        names = {"class_names": self.inputs.class_names}
        return numbers(done, self.config.defense.purifier, seed=self.config.seed) | names

    def write(self, engine: Engine, results: Mapping) -> list[Path]:
        headline = self.config.defense.purifier
        return show.write_images(Evaluation(engine), self.rows, headline, self.inputs)


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Evaluate, print a table, and say what was written.

    input: an .npz of images to score (images, labels, optional index) instead of attacking.
    max_images: as of mode.run.
    """
    inputs = load_inputs(config, workdir, purifiers_of(config, given=bool(input)), input)
    mode.run(prepare(config, inputs, given=bool(input)), workdir, max_images)


def prepare(config, inputs: Inputs, *, given: bool = False) -> Attacked:
    """The evaluation that the config describes; ValueError for what does not fit in it.

    given: its images were attacked elsewhere.
    """
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    rows = plan(config, inputs.networks, len(inputs.labels), given=given)
    needed = inputs.first(max(row.num_images for row in rows))
    shared = inputs.settings(config)
    return Attacked(config=config, inputs=needed, rows=rows, shared=shared, given=given)


def purifiers_of(config, *, given: bool = False) -> tuple[str, ...]:
    """The names of its defences and, unless the images are given, of the surrogates that attacks
    on these differentiate."""
    defenses, attacks = config.eval.defenses, config.attacks.to_dict()
    chosen = [] if given else [attacks[name] for name in attack_names(config) if name in attacks]
    chosen += [attacks[s] for own in chosen for s in own.get("stages", ()) if s in attacks]
    meant = (own for own in chosen if not own["defenses"] or {*own["defenses"]} & {*defenses})
    surrogates = (options.get("surrogate") for options in meant)
    return tuple(dict.fromkeys(filter(None, (*defenses, *surrogates))))
