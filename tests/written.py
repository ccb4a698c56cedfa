"""Records, and the folder of an evaluation, as evaluations write them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from purify.data.png_jpeg import encode_image
from purify.evals.robust.versions import VERSIONS
from purify.saving.jsonl import write_json, write_lines
from purify.saving.schema import hashes
from tests.command import ROOT

COSTS = {"queries": 0, "nfe": 20, "nge": 0, "seconds": 0.5}


def scored(row: str, index: int, correct: list[bool], label: int = 6) -> dict:
    """What draws of a defence that are right or not said of an image, in two runs each."""
    predictions = [[label if right else label + 1] * 2 for right in correct]
    record = {"row": row, "index": index, "label": label, "correct": correct}
    return (
        record | {"predictions": predictions, "defense_nfe": 10.0, "defense_seconds": 0.1} | COSTS
    )


RECORDS = {
    "scored": scored("adp-clean", 3, [True, False]),
    "attack": {"row": "attack:adp-bpda", "index": 0, "loss": 9.3, "start_loss": 0.1}
    | {"interim_success": True, "distance": 0.03, **COSTS},
    "choice": {"row": "choice:adp-strongest:adp-bpda", "index": 1, "loss": 1.0, "settled": False}
    | COSTS,
    "certified": {"row": "adp-0.25", "index": 2, "label": 1, "top": 1, "answer": -1}
    | {"counts": [3, 4], "p_low": 0.25, "radius": 0.0, "samples": 7, "nfe": 70, "seconds": 1.0},
    "statistics": {"row": "statistics:clean", "index": 0, "score_norm": [0.5], "energy": [1, 2]},
    "probe": {"row": "probe", "index": 0, "gain": 0.1, "predicted": 0.2, "random_gain": -0.1}
    | {"resolution": 1e-5, "gap": 0.0, "cosine": -0.5},
    "path": {"row": "path-adp", "index": 4, "label": 1, "steps": 2, "step_sizes": [0.5, 0.25]}
    | {"score_norms": [1.0, 0.5], "predictions": None, "nfe": 5, "seconds": 0.1},
    "sample": {"row": "samples", "index": 5, "seconds": 0.1},
}
SIGNATURE = {"time": "", "commit": "unknown", "versions": {}, "python": "3", "machine": "m"}

DEFENSES, ATTACKS, N = ("identity", "adp"), ("clean", "bpda"), 3


def robust_results() -> dict:
    """Of two defences under one attack, cut out of the published ones."""
    results = json.loads((ROOT / "docs" / "digits" / "results.json").read_text())
    names = {f"{defense}-{attack}" for defense in DEFENSES for attack in ATTACKS}
    return results | {
        "rows": [
            row
            for row in results["rows"]
            if row["defense"]["name"] in DEFENSES and row["attack"] in ATTACKS
        ],
        "headline": dict.fromkeys(DEFENSES, "bpda"),
        "comparisons": [
            pair | {"share": None}
            for pair in results["comparisons"]
            if {pair["a"], pair["b"]} <= names
        ],
    }


def robust_records() -> list[dict]:
    attack = {"loss": 1.5, "start_loss": 0.5, "interim_success": True, "distance": 0.03}
    rows = [(f"{defense}-{name}", name) for defense in DEFENSES for name in ATTACKS]
    return [
        scored(row, index, [True, index > 1]) | (attack if name == "bpda" else {})
        for row, name in rows
        for index in range(N)
    ]


def rewrite_settings(folder: Path, settings: Mapping) -> None:
    """Give the run of a network other settings, which its checkpoints cannot tell from its own."""
    write_json(folder / "settings.json", settings)
    rewrite_lists(folder)


def rewrite_lists(folder: Path) -> None:
    """Make the lists in a run's checkpoints such as earlier versions wrote: without sizes, and
    without the settings that these were saved with."""
    for path in folder.glob("checkpoints/*/sha256.json"):
        files = hashes(json.loads(path.read_text()))["files"]
        write_json(path, {name: of["sha256"] for name, of in files.items()})


def write_evaluation(folder: Path, settings: Mapping | None = None) -> Path:
    """The folder of a small finished evaluation under attack, with all that a report reads."""
    for name in ("purified", "figures"):
        (folder / name).mkdir(parents=True)
    data = {"name": "digits8x8", "path": "", "train_split": "train", "test_split": "test"}
    write_json(folder / "settings.json", settings or {"seed": 0, "data": data, "images": "0"})
    write_json(folder / "results.json", robust_results())
    write_lines(folder / "images.jsonl", robust_records())
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (N, 8, 8, 1), np.uint8) for name in VERSIONS}
    answers = {f"{name}_answers": np.full(N, 6) for name in VERSIONS}
    places = {"labels": np.full(N, 6), "index": np.arange(N)}
    np.savez(folder / "purified" / "adp-bpda.npz", **images, **answers, **places)
    (folder / "figures" / "training.png").write_bytes(encode_image(images["clean"][0], ".png"))
    return folder
