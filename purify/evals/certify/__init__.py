"""--mode=certify: L2 certificates of "purify, then classify", by randomised smoothing."""

import dataclasses
import functools
from pathlib import Path

from purify.evals.certify import show
from purify.evals.certify.measure import measure
from purify.evals.certify.numbers import numbers
from purify.evals.certify.plan import CertifyOptions, SmoothedRow, plan
from purify.evals.core import mode
from purify.evals.core.defenses import defense_settings, purifier_options
from purify.evals.core.engine import Engine, Job
from purify.evals.core.inputs import load_inputs
from purify.options import read
from purify.runtime.messages import counted

FIELD = "config.certify"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certification(mode.Task):
    """Certificates of every row."""

    options: CertifyOptions
    rows: list[SmoothedRow]
    mode = "certify"
    shown = show.SHOWN

    @property
    def asked(self) -> str:
        return counted(len(self.rows), "row")

    @property
    def jobs(self) -> list[Job]:
        return [row.job for row in self.rows]

    def signature(self, engine: Engine) -> dict[str, int]:
        return {"chunk": self.options.chunk}

    @functools.cached_property
    def settings(self) -> dict:
        smoothed = {
            row.name: defense_settings(self.config, row.defense_name)
            | {"sigma": row.sigma, "num_samples": row.num_samples}
            for row in self.rows
        }
        options = {field: getattr(self.options, field) for field in ("num_selection", "alpha")}
        return {**options, "smoothed": smoothed, **self.inputs.settings(self.config)}

    @property
    def title(self) -> str:
        data, options = self.config.data, self.options
        return (
            f"{data.name} {data.test_split}: certified L2 radii, alpha {options.alpha:g}, "
            f"{counted(options.num_selection, 'sample')} to select the class"
        )

    def limited(self, max_images: int) -> "Certification":
        rows = [
            dataclasses.replace(row, num_images=min(row.num_images, max_images))
            for row in self.rows
        ]
        return dataclasses.replace(self, rows=rows)

    def measure(self, engine: Engine) -> None:
        measure(engine, self.rows, self.options, self.inputs.num_classes)

    def numbers(self, engine: Engine) -> dict:
        done = [(row, engine.records(row.job)) for row in self.rows]
        return numbers(done, self.options, seed=self.config.seed)


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Certify what config.certify asks for, print the tables, and write results and curves."""
    options = read(CertifyOptions, config.certify.to_dict(), FIELD)
    for field, names in (("defenses", options.defenses), ("budgets entry", options.budgets)):
        for name in names:
            purifier_options(config, name, field=f"{FIELD}.{field}")
    inputs = load_inputs(config, workdir, options.defenses)
    rows = plan(options, lambda name: inputs.defense(config, name), len(inputs.labels), field=FIELD)
    inputs = inputs.first(max(row.num_images for row in rows))
    task = Certification(config=config, inputs=inputs, options=options, rows=rows)
    mode.run(task, workdir, max_images)
