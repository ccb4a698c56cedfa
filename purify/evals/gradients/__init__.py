"""--mode=check_gradients: whether attacks on the configured defence see its gradient."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from purify.defense import Defense
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.core import mode
from purify.evals.core.defenses import build_purifier, purifier_options, purifier_settings
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import load_inputs
from purify.evals.core.store import Store
from purify.evals.gradients import show
from purify.evals.gradients.checks import Budget, Verdict
from purify.evals.gradients.measure import Report, exact
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted
from purify.types import Purifier


def check(
    defense: Defense,
    images: np.ndarray,
    labels: np.ndarray,
    budget: Budget,
    *,
    attacked_fn: Callable[[Defense], Defense] = exact,
    surrogate: Purifier | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    store: Store | None = None,
) -> list[Verdict]:
    """The verdicts of checks.CHECKS on a defence, see Report.

    images: float32 [n, H, W, C] in [0, 1], labels: int [n]. Their keys are folded from the seed and
        their positions.
    batch_size: of the compiled batches, all images at once by default.
    store: for the records, so that an interrupted report goes on; by default they are not kept.

    RuntimeError where an attacked image leaves its ball or [0, 1].
    """
    report = Report(defense, budget, len(images), attacked_fn=attacked_fn, surrogate=surrogate)
    arrays = images, labels, np.arange(len(images))
    with contextlib.ExitStack() as stack:
        if store is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = stack.enter_context(Store(folder, "check_gradients", {}))
        engine = Engine(store, *arrays, seed=seed, batch_size=batch_size or len(images))
        with engine.working(report.jobs):
            report.measure(engine)
        return report.verdicts(engine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked(mode.Task):
    """A report on config.defense.purifier.

    surrogate: the name of the purifier that is attacked in its place, '' for none.
    """

    budget: Budget
    surrogate: str
    mode = "check_gradients"
    shown = show.SHOWN

    @functools.cached_property
    def defense(self) -> Defense:
        return self.inputs.defense(self.config, self.config.defense.purifier)

    @functools.cached_property
    def report(self) -> Report:
        other = None
        if self.surrogate:
            other = build_purifier(self.config, self.surrogate, self.inputs.networks)
        num_images = len(self.inputs.labels)
        return Report(self.defense, self.budget, num_images, surrogate=other)

    @property
    def asked(self) -> str:
        name = self.config.defense.purifier
        return f"the checks of {name} on {counted(self.num_images, 'image')}"

    @property
    def title(self) -> str:
        config, budget = self.config, self.budget
        return (
            f"gradients of {config.defense.purifier} on {config.data.name} "
            f"{config.data.test_split}, n {self.num_images}, S {self.defense.num_runs}: "
            f"{budget.norm} {budget.eps:.3g}, {budget.loss}, {budget.restarts} x "
            f"{budget.num_steps} steps, EOT {budget.eot_samples}"
        )

    @property
    def jobs(self) -> list[Job]:
        return self.report.jobs

    @functools.cached_property
    def settings(self) -> dict:
        config, defense = self.config, self.defense

        def purifier(of: str) -> dict:
            return {"name": of} | purifier_settings(config, of)

        own = {"num_runs": defense.num_runs, "average": defense.average}
        couples = {"batch_size": config.eval.batch_size} if defense.couples_batch else {}
        return {
            "defense": purifier(config.defense.purifier) | own,
            "surrogate": purifier(self.surrogate) if self.surrogate else None,
            "budget": dataclasses.asdict(self.budget),
            **couples,
            **self.inputs.settings(config),
        }

    def limited(self, max_images: int) -> "Checked":
        raise ValueError("the checks need all of config.check.num_images")

    def mend(self, engine: Engine) -> None:
        Evaluation(engine).forget_lost(self.report.rows)

    def measure(self, engine: Engine) -> None:
        self.report.measure(engine)

    def numbers(self, engine: Engine) -> dict:
        return {"checks": [verdict._asdict() for verdict in self.report.verdicts(engine)]}


def run(config, workdir: Path) -> None:
    """Check config.defense.purifier within the budget of config.check; print and write verdicts."""
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    name, cfg = config.defense.purifier, config.check
    purifier_options(config, name, field="config.defense.purifier")
    # Of itself the defence is no surrogate: that is the exact gradient.
    surrogate = "" if cfg.surrogate == name else cfg.surrogate
    if surrogate:
        purifier_options(config, surrogate, field="config.check.surrogate")
    inputs = load_inputs(config, workdir, list(filter(None, [name, surrogate])))
    budget, available = _budget(config), len(inputs.labels)
    if not 1 <= cfg.num_images <= available:
        raise ValueError(f"config.check.num_images={cfg.num_images} must be from 1 to {available}")
    inputs = inputs.first(cfg.num_images)
    mode.run(Checked(config=config, inputs=inputs, budget=budget, surrogate=surrogate), workdir)


def _budget(config) -> Budget:
    """config.check, and the ball and loss of the attack that it names."""
    cfg = config.check.to_dict()
    attack = choose("config.check.attack", config.attacks.to_dict(), cfg["attack"])
    if missing := {"norm", "eps", "loss"} - attack.keys():
        raise ValueError(
            f"config.check.attack={cfg['attack']!r} has no {', '.join(sorted(missing))} of its own"
        )
    counts = {field.name for field in dataclasses.fields(Budget)} & cfg.keys()
    try:
        return Budget(
            **{field: cfg[field] for field in counts},
            **{field: attack[field] for field in ("norm", "eps", "loss")},
        )
    except ValueError as error:
        raise ValueError(f"config.check: {error}") from None
