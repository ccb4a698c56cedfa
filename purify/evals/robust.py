"""--mode=eval_robust: the attacks of the config against the defence and its baselines."""

from collections.abc import Iterable
from pathlib import Path

from purify import parallel
from purify.evals import robust_report
from purify.evals.evaluation import Evaluation
from purify.evals.inputs import Inputs, load_inputs, tell_seen, without
from purify.evals.plan import attack_names, plan
from purify.evals.rows import Row, crafting, limited, with_stages
from purify.evals.store import Store
from purify.evals.terminal import tell_stopped
from purify.purifiers import PURIFIERS


def run(config, workdir: Path, input: str | None = None, max_images: int | None = None) -> None:
    """Evaluate, print a table, and say what was written.

    input: an .npz of images to score (images, labels, optional index) instead of attacking.
    max_images: stop after that many images of each row. No setting: a later run, with more of them
        or without a limit, is the same evaluation and goes on from there.
    """
    parallel.check_batch_size("config.eval.batch_size", config.eval.batch_size)
    inputs = load_inputs(config, workdir, config.eval.defenses, input)
    rows = plan(config, inputs.classifiers, inputs.score, len(inputs.labels), given=bool(input))
    settings = _settings(config, inputs, rows) | {"given": bool(input)}
    needed = max(row.num_images for row in rows)
    inputs = inputs.first(needed)
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
            tell_seen(config.data, inputs.runs, taken)
        evaluation = Evaluation(
            store,
            inputs.images,
            inputs.labels,
            inputs.indices,
            seed=config.seed,
            batch_size=config.eval.batch_size,
        )
        evaluation.run(rows)
        if parallel.is_first_process():
            robust_report.write(config, evaluation, rows, settings, inputs.runs)
    tell_stopped(taken, needed, max_images)


def _settings(config, inputs: Inputs, rows: list[Row]) -> dict:
    """Everything that decides the results: two evaluations with equal settings are the same one."""
    cfg = config.to_dict()
    names = attack_names(config)
    stages = [stage for n in names for stage in cfg["attacks"][n].get("stages", ())]
    evaluated = without(without(cfg["eval"], "attack_list"), "bpda_alone") | {"attacks": names}
    if not any(row.defense.couples_batch for row in rows):
        evaluated = without(evaluated, "batch_size")
    purifiers = {name: cfg[name] for name in PURIFIERS}
    return {
        "defense": without(cfg["defense"], "chunk"),
        "attacks": {n: without(cfg["attacks"][n], "chunk") for n in (*names, *stages)},
        "eval": evaluated,
        "variants": _variants(cfg, (*names, *stages)),
        **inputs.settings(config),
        **purifiers,
    }


def _variants(cfg: dict, attack_names: Iterable[str]) -> dict:
    """The variants that the evaluation has to do with."""
    used = {*cfg["eval"]["defenses"]}
    used |= {cfg["attacks"][name].get("surrogate") for name in attack_names}
    return {name: changes for name, changes in cfg["variants"].items() if name in used}
