"""--mode=report: one HTML file of finished evaluations."""

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

from purify.evals.report.modes import MODES
from purify.evals.report.runs import Run, find_runs
from purify.evals.report.sections import provenance, sections
from purify.evals.report.summary import summary
from purify.runtime.messages import counted, printable_lines, shown
from purify.runtime.paths import split_paths
from purify.saving.jsonl import write_text

HERE = Path(__file__).parent


def run(config, workdir: Path | None, input: str | None, output: str | None) -> None:
    """Write the page and say where it is.

    input: 'RUN[,RUN...]', folders of evaluations, or workdirs, for all finished ones in them; the
    workdir by default. output: an .html file that does not exist; by default report.html in the
    workdir, which is replaced.

    Raises NeedsMode where an evaluation is not finished or not there, ValueError for anything else
    that does not fit.
    """
    if not input and workdir is None:
        raise ValueError(
            "--mode=report needs --input=RUN[,RUN...], folders of evaluations or workdirs, or "
            "--workdir=DIR or --config=FILE"
        )
    given = split_paths(input) if input else [workdir]
    found = find_runs(given)
    path = _output(output) if output else (workdir or found.runs[0].workdir) / "report.html"
    write_text(path, render(found.runs, found.points))
    for run in found.runs:
        print(f"read: {shown(run.folder)}")
    for folder in found.unfinished:
        print(f"left out, not finished: {shown(folder)}")
    print(f"\nwritten:\n  {shown(path)}  ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"open it in a browser: {path.absolute().as_uri()}")


def _output(output: str) -> Path:
    path = Path(output)
    if path.suffix.lower() != ".html":
        raise ValueError(f"--output='{shown(path)}' must end in .html")
    if os.path.lexists(path):
        raise ValueError(
            f"'{shown(path)}' exists already; choose another --output, or move it away"
        )
    if not path.parent.is_dir():
        raise ValueError(f"--output='{shown(path)}' needs a folder '{shown(path.parent)}': make it")
    return path


def _shown(value: object) -> object:
    """A text without what could turn, end or break it; all else as it is."""
    return printable_lines(value) if type(value) is str else value


def render(runs: Sequence[Run], points: Sequence[Run] = ()) -> str:
    """The page: HTML that loads nothing, not even where a text in it tries to.

    points: more evaluations under attack, of which only curves are shown.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = hashlib.sha256(script.encode()).digest()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        style=style,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        runs=runs,
        newest=max((run.results for run in runs), key=lambda results: results.get("time", "")),
        modes=MODES,
        sections=sections(runs, points),
        summary=summary,
        provenance=provenance,
        counted=counted,
        data=", ".join(dict.fromkeys(_data(run) for run in runs)),
    )


def _data(run: Run) -> str:
    data = run.results["config"]["data"]
    return f"{data['name']} {data['test_split']}"
