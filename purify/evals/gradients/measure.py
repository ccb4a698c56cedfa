"""What the checks see, image by image: attacks of a report, and probes at single points."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from attacks.gradients import attacked_purifier
from purify.defense import Defense
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.rows import Row, jobs_of
from purify.evals.core.engine import Compute, Cost, Engine, Job
from purify.evals.gradients.checks import (
    FAIL,
    PASS,
    Budget,
    Measured,
    Verdict,
    attack_rows,
    doubled,
    find,
    judge,
    rows_of,
)
from purify.evals.gradients.probes import (
    NUM_DIRECTIONS,
    NUM_KEYS,
    Local,
    Probe,
    derivative_errors,
    probe_batch,
)
from purify.runtime import parallel
from purify.types import Purifier

STILL_FAIL = f"{FAIL}: masked or under-optimised"
CURED = f"{PASS} at twice the budget"


def exact(defense: Defense) -> Defense:
    """The defence as the attack of its exact gradient differentiates it."""
    return dataclasses.replace(defense, purifier=attacked_purifier("exact", defense.purifier))


class Report:
    """The checks of one defence on so many images.

    A check that fails is made again with twice the iterations and EOT samples on both sides, where
    it compares attacks: STILL_FAIL, or CURED where the budget was what it lacked.

    attacked_fn: defence -> what the attacks of the exact gradient differentiate. It is also applied
        to a copy of the defence with a small score model.
    surrogate: a purifier to attack in the place of the defence's, None for none.
    """

    def __init__(
        self,
        defense: Defense,
        budget: Budget,
        num_images: int,
        *,
        attacked_fn: Callable[[Defense], Defense] = exact,
        surrogate: Purifier | None = None,
    ):
        self._defense, self._attacked_fn = defense, attacked_fn
        attacked = attacked_fn(defense)
        transferred = (
            None if surrogate is None else exact(dataclasses.replace(defense, purifier=surrogate))
        )
        self._rows = attack_rows(defense, attacked, transferred, budget, num_images=num_images)
        self._probe = Probe(defense, attacked, budget.norm, budget.eps, budget.loss)
        self._errors: np.ndarray | None = None

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    @property
    def jobs(self) -> list[Job]:
        return [*jobs_of(self.rows), self._probe_job]

    @property
    def _probe_job(self) -> Job:
        defense, attacked = self._probe.defense, self._probe.attacked
        runs = (NUM_DIRECTIONS + 6) * defense.num_runs + NUM_KEYS
        gradients = 2 * defense.num_runs + NUM_KEYS
        cost = Cost(runs, runs * defense.purifier.nfe, gradients * attacked.purifier.nge)
        row = self._rows["exact"]
        return Job("probe", row.num_images, cost, "gradients at single points", row.couples)

    def measure(self, engine: Engine) -> None:
        """Whatever is not done yet."""
        evaluation = Evaluation(engine)
        evaluation.measure(self.rows)
        engine.do(self._probe_job, lambda _: self._prober(engine), doing="probing")
        for name in self._failed(judge(find(self._measured(engine)))):
            evaluation.run([doubled(self._rows[row]) for row in rows_of(name)])

    def verdicts(self, engine: Engine) -> list[Verdict]:
        """Those on what was measured."""
        measured = self._measured(engine)
        findings = find(measured)
        failed = self._failed(judge(findings))
        for name in failed:
            again = {row: _correct(engine, doubled(self._rows[row])) for row in rows_of(name)}
            changed = dataclasses.replace(measured, correct={**measured.correct, **again})
            findings[name] = find(changed)[name]
        after = {FAIL: STILL_FAIL, PASS: CURED}
        return [
            v._replace(verdict=after.get(v.verdict, v.verdict)) if v.check in failed else v
            for v in judge(findings)
        ]

    def _failed(self, verdicts: Sequence[Verdict]) -> list[str]:
        """The comparisons of attacks that failed."""
        return [v.check for v in verdicts if v.verdict == FAIL and rows_of(v.check)]

    def _measured(self, engine: Engine) -> Measured:
        if self._errors is None:
            self._errors = derivative_errors(self._defense, self._attacked_fn, seed=engine.seed)
        probed = engine.records(self._probe_job)
        return Measured(
            {name: _correct(engine, row) for name, row in self._rows.items()},
            Local(*(np.array([record[field] for record in probed]) for field in Local._fields)),
            self._errors,
            num_classes=jax.eval_shape(self._defense.classifier, engine.images[0]).size,
            stochastic=self._defense.purifier.stochastic,
        )

    def _prober(self, engine: Engine) -> Compute:
        job, probe = self._probe_job, parallel.replicate(self._probe)

        def compute(at: np.ndarray) -> list[dict]:
            batch = engine.batch(at, engine.images, engine.size(job), "defense", "attack")
            found, _ = engine.timed(probe_batch, probe, *batch)
            what = f"{self._rows['exact'].name}: gains by the gradient, or logits, of the defence"
            engine.check_finite(np.stack(found, axis=1)[: len(at)], at, what)
            each = zip(at, *found, strict=False)  # the shorter `at` leaves the padding out
            return [
                {"index": engine.index(i)}
                | dict(zip(Local._fields, map(float, values), strict=True))
                for i, *values in each
            ]

        return compute


def _correct(engine: Engine, row: Row) -> np.ndarray:
    """bool [n, N], in the order of the images."""
    return np.array([record["correct"] for record in engine.records(row.score_job)])
