"""Words that tell evaluations apart: the settings in which they differ."""

from collections.abc import Iterator, Mapping, Sequence

# Settings that nobody can read, of which others say why they differ.
HASHED = ("weights", "images", "networks", "calibration_images", "files")
MOST, LONGEST = 3, 40  # settings of a label, letters of one


def labels(settings: Sequence[Mapping]) -> list[str]:
    """For each settings.json, what it has otherwise than the others, as 'sigma 0.1, num_runs 5';
    '' where the settings that all of them have are the same."""
    flat = [dict(_leaves(each)) for each in settings]
    varying = [
        name
        for name in flat[0]
        if all(name in each for each in flat) and len({str(each[name]) for each in flat}) > 1
    ]
    return [_label({name: each[name] for name in varying}) for each in flat]


def _label(fields: Mapping[str, object]) -> str:
    said = dict.fromkeys(_said(*field) for field in fields.items())  # eps of all attacks once
    short = [each for each in said if len(each) <= LONGEST]
    return ", ".join([*short[:MOST], *(["..."] if len(said) > len(short[:MOST]) else [])])


def _said(name: str, value) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        shown = ", ".join(map(str, value)) or "none"
    return shown if name in ("data.name", "data.path") else f"{name.rpartition('.')[2]} {shown}"


def _leaves(settings: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            if name not in HASHED:
                yield from _leaves(value, f"{prefix}{name}.")
        elif name not in HASHED:
            yield f"{prefix}{name}", value
