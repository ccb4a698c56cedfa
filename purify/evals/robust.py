"""--mode=eval_robust: the attacks of the config against the defence and its baselines."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from purify import data, parallel
from purify.checkpoint import (
    ROLES,
    image_shape,
    load_classifier,
    load_score,
    read_settings,
    weight_hash,
)
from purify.evals import report
from purify.evals.defenses import classifier_run
from purify.evals.evaluation import Evaluation
from purify.evals.plan import attack_names, plan
from purify.evals.rows import Row, crafting, limited, with_stages
from purify.evals.store import Store
from purify.image_io import load_labelled_npz, to_float
from purify.networks import Classifier, Score
from purify.purifiers import PURIFIERS


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Evaluate, print a table, and say what was written.

    input: an .npz of images to score (images, labels, optional index) instead of attacking.
    max_images: stop after that many images of each row. No setting: a later run, with more of them
        or without a limit, is the same evaluation and goes on from there.
    """
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    runs = network_runs(config, workdir, config.eval.defenses)
    classifiers, score_model = load_classifiers(runs), load_score(workdir)
    num_classes = agreed_classes(runs, image_shape(workdir))
    images, labels, indices = load_images(config, image_shape(workdir), num_classes, input)
    rows = plan(config, classifiers, score_model, len(labels), given=bool(input))
    settings = _settings(config, runs, classifiers, score_model, rows)
    # Files of the same name may hold other images.
    settings["images"] = weight_hash({"images": images, "labels": labels, "indices": indices})
    settings["given"] = bool(input)
    needed = max(row.num_images for row in rows)
    images, labels, indices = images[:needed], labels[:needed], indices[:needed]
    if max_images:
        rows = limited(rows, max_images, config.eval.batch_size)
    taken = max(row.num_images for row in rows)
    with Store(workdir, "eval_robust", settings) as store:
        crafted = crafting(with_stages(rows))
        nfe = sum(row.num_images * row.score_nfe for row in rows)
        nfe += sum(row.num_images * row.attack_nfe for row in crafted)
        nge = sum(row.num_images * row.attack_nge for row in crafted)
        print(
            f"{len(rows)} rows on {taken} images: at most {nfe:,} network evaluations and {nge:,} "
            f"network gradients; into {store.folder}"
        )
        if not input:
            tell_seen(config.data, runs, taken)
        evaluation = Evaluation(
            store, images, labels, indices, seed=config.seed, batch_size=config.eval.batch_size
        )
        evaluation.run(rows)
        if parallel.is_first_process():
            report.write(config, evaluation, rows, settings, runs)
    tell_stopped(taken, needed, max_images)


def tell_stopped(taken: int, needed: int, max_images: int | None) -> None:
    """Say it where --max_images left images for later."""
    if taken < needed:
        print(
            f"stopped after {taken} of {needed} images (--max_images={max_images}); the same "
            "command with more of them, or without it, goes on from here"
        )


def network_runs(config, workdir: Path, defenses: Iterable[str]) -> dict[str, Path]:
    """The folders of the runs that made the networks: by role those of `workdir`, and by their
    `classifier_run` the classifiers that these defences have from elsewhere."""
    names = (classifier_run(config, name) for name in defenses)
    own = {role: workdir / role for role in ROLES}
    return own | {name: Path(name) for name in names if name not in own}


def load_classifiers(runs: Mapping[str, Path]) -> dict[str, Classifier]:
    """All but the score model of `network_runs`."""
    return {name: load_classifier(run.parent) for name, run in runs.items() if name != "score"}


def agreed_classes(runs: Mapping[str, Path], shape: tuple) -> int:
    """The number of classes; ValueError where another classifier has others, or other images."""
    num_classes = read_settings(runs["classifier"])["network"]["num_classes"]
    for name in runs.keys() - set(ROLES):
        settings = read_settings(runs[name])
        found = tuple(settings["image_shape"]), settings["network"]["num_classes"]
        if found != (shape, num_classes):
            raise ValueError(
                f"{name} is for images of shape {found[0]} in {found[1]} classes, the evaluation's "
                f"own classifier for {shape} in {num_classes}"
            )
    return num_classes


def load_images(
    config, shape: tuple, num_classes: int, input: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images float32 in [0, 1], labels, dataset indices) of the test split, or of `input`."""
    if input:
        return load_labelled_npz(input, shape, num_classes=num_classes)
    cfg = config.data
    dataset = data.load(cfg.name, cfg.test_split, data_dir=cfg.dir, path=cfg.path)
    if dataset.images.shape[1:] != shape:
        raise ValueError(
            f"{cfg.name} has images of shape {dataset.images.shape[1:]}, the networks were trained "
            f"on {shape}; train in another --workdir"
        )
    if dataset.num_classes > num_classes:
        raise ValueError(
            f"{cfg.name} has {dataset.num_classes} classes, the classifier was trained on "
            f"{num_classes}; train in another --workdir"
        )
    return to_float(dataset.images), dataset.labels, np.arange(len(dataset.labels))


def tell_seen(cfg, runs: Mapping[str, Path], num_images: int) -> None:
    """Say it where a network was trained on images that it is evaluated on."""
    where = dict(data_dir=cfg.dir, path=cfg.path)
    evaluated = data.members(cfg.name, cfg.test_split, **where)[:num_images]
    for name, folder in runs.items():
        trained = read_settings(folder).get("data")
        if not trained or (trained["name"], trained["path"]) != (cfg.name, cfg.path):
            continue
        seen = set(data.members(cfg.name, trained["train_split"], **where)) & set(evaluated)
        if seen:
            print(
                f"note: the {name} was trained on {len(seen)} of these images; config.data."
                f"test_split={cfg.test_split!r}, its train_split={trained['train_split']!r}"
            )


def _settings(
    config,
    runs: Mapping[str, Path],
    classifiers: Mapping[str, Classifier],
    score_model: Score,
    rows: list[Row],
) -> dict:
    """Everything that decides the results: two evaluations with equal settings are the same one."""
    cfg = config.to_dict()
    names = attack_names(config)
    stages = [stage for n in names for stage in cfg["attacks"][n].get("stages", ())]
    evaluated = _without(_without(cfg["eval"], "attack_list"), "bpda_alone") | {"attacks": names}
    if not any(row.defense.couples_batch for row in rows):
        evaluated = _without(evaluated, "batch_size")
    purifiers = {name: cfg[name] for name in PURIFIERS}
    return {
        "defense": _without(cfg["defense"], "chunk"),
        "attacks": {n: _without(cfg["attacks"][n], "chunk") for n in (*names, *stages)},
        "eval": evaluated,
        "variants": _variants(cfg, (*names, *stages)),
        **network_settings(config, runs, classifiers, score_model),
        **purifiers,
    }


def network_settings(
    config, runs: Mapping[str, Path], classifiers: Mapping[str, Classifier], score_model: Score
) -> dict:
    """Of the settings of an evaluation: its seed, data set and networks."""
    networks: dict[str, Classifier | Score] = {**classifiers, "score": score_model}
    return {
        "seed": config.seed,
        "data": _without(config.data.to_dict(), "dir"),
        "weights": {name: weight_hash(network.variables) for name, network in networks.items()},
        "networks": {name: read_settings(run)["network"] for name, run in runs.items()},
        **score_settings(score_model, runs["score"]),
    }


def score_settings(score_model: Score, run: Path) -> dict:
    """What a score model is beside network and weights: its head and, where it was not Gaussian
    noise, the perturbation that its run has learnt to undo."""
    recorded = read_settings(run)
    learnt = {name: recorded[name] for name in ("perturbation",) if name in recorded}
    return {"head": score_model.head, **learnt}


def _variants(cfg: dict, attack_names: Iterable[str]) -> dict:
    """The variants that the evaluation has to do with."""
    used = {*cfg["eval"]["defenses"]}
    used |= {cfg["attacks"][name].get("surrogate") for name in attack_names}
    return {name: changes for name, changes in cfg["variants"].items() if name in used}


def _without(fields: dict, name: str) -> dict:
    """Without a field that decides no result, but rounding, memory or what is refused."""
    return {key: value for key, value in fields.items() if key != name}
