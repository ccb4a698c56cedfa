"""--mode=check_gradients: whether attacks on the configured defence see its gradient."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from attacks.gradients import attacked_purifier
from purify.defense import Defense
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.programs import check_finite
from purify.evals.attacked.rows import Row
from purify.evals.core.defenses import build_purifier, purifier_options, purifier_settings
from purify.evals.core.inputs import load_inputs, tell_seen
from purify.evals.core.result_files import write_results
from purify.evals.core.show import Shown
from purify.evals.core.store import Store
from purify.evals.core.tables import Badge, Cell, Column, Table
from purify.evals.core.terminal import (
    print_reservations,
    print_table,
    tell_written,
    telling_done_before,
)
from purify.evals.gradients.checks import (
    FAIL,
    LEVEL,
    NOT_INFORMATIVE,
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
from purify.evals.gradients.probes import Local, Probe, derivative_errors, probe_batch
from purify.options import choose
from purify.runtime import parallel
from purify.runtime.messages import counted, shown
from purify.runtime.progress import progress
from purify.types import Purifier

STILL_FAIL = f"{FAIL}: masked or under-optimised"
CURED = f"{PASS} at twice the budget"


def exact(defense: Defense) -> Defense:
    """The defence as the attack of its exact gradient differentiates it."""
    return dataclasses.replace(defense, purifier=attacked_purifier("exact", defense.purifier))


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
    """The verdicts of checks.CHECKS on a defence.

    A check that fails is made again with twice the iterations and EOT samples on both sides, where
    it compares attacks: STILL_FAIL, or CURED where the budget was what it lacked.

    images: float32 [n, H, W, C] in [0, 1], labels: int [n]. Their keys are folded from the seed and
        their positions.
    attacked_fn: defence -> what the attacks of the exact gradient differentiate. It is also applied
        to a copy of the defence with a small score model.
    surrogate: a purifier to attack in the place of the defence's, None for none.
    batch_size: of the compiled batches, all images at once by default.
    store: for the records, so that an interrupted report goes on; by default they are not kept.

    RuntimeError where an attacked image leaves its ball or [0, 1].
    """
    with contextlib.ExitStack() as stack:
        if store is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = stack.enter_context(Store(folder, "check_gradients", {}))
        positions = np.arange(len(images))
        evaluation = Evaluation(
            store, images, labels, positions, seed=seed, batch_size=batch_size or len(images)
        )
        attacked = attacked_fn(defense)
        transferred = (
            None if surrogate is None else exact(dataclasses.replace(defense, purifier=surrogate))
        )
        rows = attack_rows(defense, attacked, transferred, budget, num_images=len(images))
        evaluation.run(list(rows.values()))
        measured = Measured(
            {name: _correct(store, row) for name, row in rows.items()},
            _probe(
                evaluation,
                rows["exact"],
                Probe(defense, attacked, budget.norm, budget.eps, budget.loss),
            ),
            derivative_errors(defense, attacked_fn, seed=seed),
            num_classes=jax.eval_shape(defense.classifier, images[0]).size,
            stochastic=defense.purifier.stochastic,
        )
        return _judge_twice(evaluation, rows, measured)


def _judge_twice(evaluation: Evaluation, rows: dict[str, Row], measured: Measured) -> list[Verdict]:
    """The verdicts, after every comparison of attacks that fails was made again."""
    findings = find(measured)
    verdicts = judge(findings)
    failed = [v.check for v in verdicts if v.verdict == FAIL and rows_of(v.check)]
    for name in failed:
        again = {row: doubled(rows[row]) for row in rows_of(name)}
        evaluation.run(list(again.values()))
        correct = {row: _correct(evaluation.store, twice) for row, twice in again.items()}
        changed = dataclasses.replace(measured, correct={**measured.correct, **correct})
        findings[name] = find(changed)[name]
    after = {FAIL: STILL_FAIL, PASS: CURED}
    return [
        v._replace(verdict=after.get(v.verdict, v.verdict)) if v.check in failed else v
        for v in judge(findings)
    ]


def _correct(store: Store, row: Row) -> np.ndarray:
    """bool [n, N], in the order of the images."""
    records = store.records(row.name)
    return np.array([records[index]["correct"] for index in sorted(records)])


def _probe(evaluation: Evaluation, row: Row, probe: Probe) -> Local:
    """The probe of every image of a row, each field [n], in batches as of that row; what is in the
    store already is not computed."""
    store, probe = evaluation.store, parallel.replicate(probe)
    pending, size = evaluation.pending("probe", row), evaluation.row_size(row)
    with progress(total=len(pending), unit="image", disable=not pending) as evaluation.progress:
        for at in evaluation.batches(pending, size, "gradients at single points"):
            batch = evaluation.batch(at, evaluation.images, size, "defense", "attack")
            found, _ = evaluation.timed(probe_batch, probe, *batch)
            probed = np.stack(found, axis=1)[: len(at)]
            what = f"{row.name}: gains by the gradient, or logits, of the defence"
            check_finite(probed, evaluation.indices[at], what)
            each = zip(at, *found, strict=False)  # the shorter `at` leaves the padding out
            store.append(
                "probe",
                [
                    {"index": int(i)} | dict(zip(Local._fields, map(float, values), strict=True))
                    for i, *values in each
                ],
            )
            evaluation.progress.update(len(at))
    records = [record for _, record in sorted(store.records("probe").items())]
    return Local(*(np.array([record[field] for record in records]) for field in Local._fields))


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
    defense = inputs.defense(config, name)
    budget = _budget(config)
    available = len(inputs.labels)
    if not 1 <= cfg.num_images <= available:
        raise ValueError(f"config.check.num_images={cfg.num_images} must be from 1 to {available}")
    inputs = inputs.first(cfg.num_images)
    images, labels = inputs.images, inputs.labels
    settings = _settings(config, surrogate, budget, defense) | inputs.settings(config)
    with Store(workdir, "check_gradients", settings) as store:
        print(f"checking {name} on {counted(len(labels), 'image')}, into {shown(store.folder)}")
        tell_seen(config.data, inputs, range(len(labels)))
        other = build_purifier(config, surrogate, inputs.networks) if surrogate else None
        given = dict(surrogate=other, seed=config.seed, batch_size=config.eval.batch_size)
        with telling_done_before(store):
            verdicts = check(defense, images, labels, budget, store=store, **given)
        title = (
            f"gradients of {name} on {config.data.name} {config.data.test_split}, n {len(labels)}, "
            f"S {defense.num_runs}: {budget.norm} {budget.eps:.3g}, {budget.loss}, "
            f"{budget.restarts} x {budget.num_steps} steps, EOT {budget.eot_samples}"
        )
        results = {
            "title": inputs.titled(title),
            "checks": [verdict._asdict() for verdict in verdicts],
            **settings,
            **store.computed_by(),
            "trained": inputs.trained(),
            "config": config.to_dict(),
        }
        written = write_results(store.folder, results)
        print_table(results_table(results))
        print(conclusion(results))
        print_reservations(results)
        tell_written([written, store.folder / "images.jsonl"])


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


def _settings(config, surrogate: str, budget: Budget, defense: Defense) -> dict:
    """Everything that decides the verdicts, but for the networks and images."""
    name = config.defense.purifier

    def purifier(of: str) -> dict:
        return {"name": of} | purifier_settings(config, of)

    settings = {
        "defense": purifier(name) | {"num_runs": defense.num_runs, "average": defense.average},
        "surrogate": purifier(surrogate) if surrogate else None,
        "budget": dataclasses.asdict(budget),
    }
    if defense.couples_batch:
        settings["batch_size"] = config.eval.batch_size
    return settings


def results_table(results: Mapping) -> Table:
    """A line for each check of results.json."""
    lines = []
    for found in results["checks"]:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in found["numbers"].items())
        p = "" if found["p"] is None else f"{found['p']:.2g}"
        lines.append((found["check"], _badge(found["verdict"]), p, numbers))
    columns = Column("check"), Column("verdict"), Column("p", numeric=True)
    decides = Column("what decides", wraps=True)
    return Table(results["title"], [*columns, decides], [lines], CAPTION)


def _badge(verdict: str) -> Cell:
    tones = {PASS: "pass", FAIL: "fail", NOT_INFORMATIVE: "neutral"}
    tone = next((tone for begin, tone in tones.items() if verdict.startswith(begin)), "")
    return Badge(verdict, tone) if tone else verdict or "(no verdict)"


def conclusion(results: Mapping) -> str:
    """What the report as a whole says."""
    failed = [found["check"] for found in results["checks"] if found["verdict"].startswith(FAIL)]
    return f"FAIL: {'; '.join(failed)}" if failed else "no check failed"


CAPTION = f"""\
rows: accuracy by the mean of draws, in [0, 1], on the same images and draws of the defence
p: of as much against the check by chance, corrected for all of them; FAIL from {LEVEL:g} down;
  NOT INFORMATIVE where nothing could fail"""
SHOWN = Shown(
    "Whether attacks see the gradient", conclusion, lambda results: [results_table(results)]
)
