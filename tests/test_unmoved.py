"""An attack whose loss cannot move shows nothing: a mark, and a line that says so."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from attacks.fab import FAB
from purify.defense import Defense
from purify.evals.attacked.evaluation import Evaluation
from purify.evals.attacked.results import result_rows, unmoved
from purify.evals.core.engine import Engine
from purify.evals.core.store import Store
from purify.evals.gradients import exact
from purify.evals.gradients.checks import Budget, attack_rows
from purify.evals.report.summary import summary
from purify.evals.robust.show import results_table
from purify.purifiers import Identity
from purify.runtime import compilation
from tests.oracles import QUICK, LinearClassifier
from tests.written import robust_results

N = 12
BUDGET = Budget(eps=0.01, num_steps=2, num_draws=1)


def linear_rows(scale: float) -> dict:
    """The attacks of a report on an undefended linear classifier of two classes."""
    weights = scale * jnp.stack([jnp.ones(4), -jnp.ones(4)])
    defense = Defense(Identity(), LinearClassifier(weights), num_runs=1)
    return attack_rows(defense, exact(defense), None, BUDGET, num_images=N)


@pytest.fixture
def attacked(tmp_path, monkeypatch):
    """scale of the weights -> the row of the exact gradient, and its records."""
    monkeypatch.setattr(compilation, "compiler_options", lambda: QUICK)

    def attacked(scale: float):
        images = np.random.default_rng(0).uniform(0.4, 0.9, (N, 2, 2, 1)).astype(np.float32)
        row = linear_rows(scale)["exact"]
        labels = np.array([0] * (N - 2) + [1] * 2)  # the last two are wrong already
        with Store(tmp_path, "eval_robust", {"scale": scale}) as store:
            engine = Engine(store, images, labels, np.arange(N), seed=0, batch_size=N)
            Evaluation(engine).run([row])
            return row, [store.records(row.name)[i] for i in range(N)]

    return attacked


def test_a_loss_that_saturates_is_in_the_results(attacked):
    row, records = attacked(1.0)
    assert unmoved(row, records) is None
    assert all("unmoved" not in entry for entry in result_rows(row, records, [], seed=0))
    row, records = attacked(1e30)
    assert sum(record["loss"] == 0 for record in records) == N - 2
    entries = result_rows(row, records, [], seed=0)
    assert {entry["unmoved"] for entry in entries} == {N - 2}
    assert entries[0]["accuracy"] == pytest.approx((N - 2) / N)


def counted(right_and_still: int, right_and_moved: int, wrong_and_still: int) -> int | None:
    def record(right: bool, still: bool) -> dict:
        return {"correct": [right], "loss": 0.0 if still else 0.1, "start_loss": 0.0}

    records = [record(True, True)] * right_and_still + [record(True, False)] * right_and_moved
    return unmoved(linear_rows(1.0)["exact"], records + [record(False, True)] * wrong_and_still)


def test_it_is_told_of_half_of_what_stays_right_and_a_tenth_of_all():
    assert counted(5, 5, 0) == 5 and counted(4, 5, 0) is None
    assert counted(1, 0, 9) == 1 and counted(1, 0, 10) is None and counted(0, 0, 10) is None


def test_other_attacks_are_not_asked():
    records = [{"correct": [True], "loss": 0.0, "start_loss": 0.0}] * N
    row = linear_rows(1.0)["exact"]
    assert unmoved(row, records) == N
    transferred = dataclasses.replace(row, options=row.options | {"gradient": "transfer"})
    assert unmoved(transferred, records) is None
    nearest = dataclasses.replace(row, attack=FAB(eps=0.1))  # its end is its start where it fails
    assert unmoved(nearest, records) is None
    assert unmoved(dataclasses.replace(row, attack=None), records) is None
    assert unmoved(linear_rows(1.0)["square"], records) is None


def test_the_table_and_the_summary_mark_it():
    results = robust_results()
    plain = results_table(results)
    assert not any("!" in str(cell) for line in plain.lines for cell in line)
    for row in results["rows"]:
        if (row["defense"]["name"], row["attack"]) == ("identity", "bpda"):
            row["unmoved"] = 80
    table = results_table(results)
    assert [line[3].after[-1] for line in table.lines] == [" ", "!", " ", " "]
    n = results["rows"][0]["num_images"]
    assert table.caption.endswith(f"it shows nothing. identity under bpda: on 80 of {n} images")
    assert [defended.unmoved for defended in summary(results)] == [True, False]
