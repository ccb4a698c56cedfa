"""Records, settings, results and reports that are changed anywhere: each is read, or is an error
that names the file; nothing is written."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzzing_results import TARGETS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))  # of each target, in place of those of the CI
DRAWN = {f"report of {mode}" for mode in ("eval_robust", "certify", "eval_corruptions", "ablate")}
VALUES = st.sampled_from(
    [
        *(None, True, -1, 0, 3, 2**31, 2**64, 10**400, 0.5, -0.5, 1e300, 5e-324),
        *(float("nan"), float("inf"), "", "x", "3", "..", "../../x", "/etc/passwd", "a\x00b"),
        *("\x1b[31m", "\ud800", "\u202e", "$\\frac{$", "_", "<script>", "x" * 5000, "mean"),
        *([], {}, [[]], [{}], {"": {}}, {"\ud800": 1}, [None], ["x"], [0.5, 0.5], {"name": "x"}),
    ]
)


def places(value):
    """(holder, key) of every value within a value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def changed(data, value):
    """The value, changed at a place or two: another value there, another name, or nothing."""
    for _ in range(data.draw(st.integers(1, 2))):
        found = list(places(value))
        if not found:
            return data.draw(VALUES)
        holder, key = found[data.draw(st.integers(0, len(found) - 1))]
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder["another"] = holder.pop(key)
        else:
            holder[key] = data.draw(VALUES)
    return value


def damaged(data, content: bytes) -> bytes:
    """The content, with bytes of it cut off, changed or doubled."""
    at = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(at, min(at + 20, len(content))))
    return data.draw(
        st.sampled_from(
            [
                content[:at],
                content[:at] + content[until:],
                content[:at] + data.draw(st.binary(max_size=8)) + content[until:],
                content + content[at:until],
            ]
        )
    )


def change_file(data, path: Path) -> None:
    """In its structure, if it is JSON, or in its bytes."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl") or data.draw(st.integers(0, 4)) == 0:
        path.write_bytes(damaged(data, content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(data, json.loads(content))))
    else:
        lines = content.splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(changed(data, json.loads(lines[at]))).encode()
        path.write_bytes(b"".join(line + b"\n" for line in lines))


def contents(folder: Path) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def examples(name: str) -> int:
    return EXAMPLES or (3 if name in DRAWN else 10 if name.startswith("report") else 25)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_changed_anywhere_is_read_or_named(name, capsys):
    target = TARGETS[name]

    @settings(
        max_examples=examples(name),
        derandomize=not EXAMPLES,
        database=None,
        phases=[Phase.generate],  # to shrink what takes a second an example takes long
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "folder"
            folder.mkdir()
            target.make(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            path = data.draw(st.sampled_from(files))
            change_file(data, path)
            before = contents(Path(place))
            try:
                target.read(folder)
            except ValueError as error:
                assert path.name in str(error) or str(folder) in str(error), error
            assert contents(Path(place)) == before

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_read(name, tmp_path):
    TARGETS[name].make(tmp_path)
    assert TARGETS[name].read(tmp_path)
