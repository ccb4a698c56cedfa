"""The table of verdicts, from results.json."""

from collections.abc import Mapping

from purify.evals.core.show import Shown
from purify.evals.core.tables import Badge, Cell, Column, Table
from purify.evals.gradients.checks import FAIL, LEVEL, NOT_INFORMATIVE, PASS


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
    "Whether attacks see the gradient",
    conclusion,
    lambda results: [results_table(results)],
    lambda results: [conclusion(results)],
)
