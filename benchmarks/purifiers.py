"""What a cheaper purifier costs: its speed-up beside its paired accuracy differences.

    python -m benchmarks.purifiers runs/cifar10_resnet20/eval_robust/HASH

For an evaluation that is done: one draw of each of its defences (S purifications, averaged logits)
on the first images that it attacked, all defences alternating; how much faster than the headline
defence each is; and, from its results.json, how much more or less accurate under each attack, in
points with a paired 95 % interval. A replacement is a faster purifier that is shown to lose less
than 10 points, clean, through BPDA and under the exact gradient, on at least 100 images each.
"""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import best_times
from purify.defense import classify
from purify.evals.core.defenses import build_defense
from purify.evals.core.inputs import load_networks, network_runs
from purify.random import image_keys

ROUNDS, BATCH = 4, 8
MARGIN, MIN_IMAGES = 0.10, 100


def programs(results: dict, folder: Path) -> dict:
    """Name of each defence -> one draw of it on the same images."""
    config, workdir = ConfigDict(results["config"]), folder.parent.parent
    networks = load_networks(network_runs(config, workdir, config.eval.defenses))
    images = np.load(min((folder / "attacked").glob("*.npz")))["images"][:BATCH]
    keys = image_keys(config.seed, range(len(images)))
    draws = {}
    for name in config.eval.defenses:
        defense = build_defense(config, name, networks)
        draws[name] = functools.partial(classify, defense, keys, images)
    return draws


def verdict(differences: dict[str, dict], gradients: dict[str, str]) -> str:
    """differences: attack -> comparison of the headline (a) with this defence (b)."""
    needed = {"clean", "bpda", "exact"}
    entries = [(gradients.get(attack, attack), entry) for attack, entry in differences.items()]
    decisive = [entry for gradient, entry in entries if gradient in needed]
    shown = needed <= {gradient for gradient, _ in entries} and all(
        entry["num_images"] >= MIN_IMAGES and -entry["high"] > -MARGIN for entry in decisive
    )
    return "replacement" if shown else "not shown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an evaluation's, with results.json")
    folder = parser.parse_args().folder.resolve()
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    headline = results["config"]["defense"]["purifier"]
    gradients = {row["attack"]: row["gradient"] for row in results["rows"] if row["gradient"]}
    nfe = {
        row["defense"]["name"]: row["defense_nfe_per_image"]
        for row in results["rows"]
        if row["attack"] == "clean"
    }
    best = best_times(programs(results, folder), ROUNDS)
    for name, seconds in best.items():
        differences = {
            entry["a"].removeprefix(f"{headline}-"): entry
            for entry in results["comparisons"]
            if entry["b"].startswith(f"{name}-") and name != headline
        }
        speed_up = best[headline] / seconds
        note = f"; {verdict(differences, gradients)}" if differences and speed_up > 1 else ""
        print(
            f"{name}: {1e3 * seconds / BATCH:.1f} ms and {nfe[name]:.0f} network evaluations an "
            f"image and draw, {speed_up:.2f} times as fast{note}"
        )
        for attack, entry in differences.items():
            value, low, high = (-100 * entry[k] for k in ("mean_difference", "high", "low"))
            n = entry["num_images"]
            print(f"    {attack:8} {value:+6.1f} points [{low:+.1f}, {high:+.1f}], n {n}")


if __name__ == "__main__":
    main()
