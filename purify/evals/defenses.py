"""The defences of a config, by name: a purifier, variants of it, and a classifier behind it."""

import re
from collections.abc import Mapping

from purify import purifiers
from purify.defense import Defense
from purify.networks import Classifier, Score
from purify.tables import choose
from purify.types import Purifier


def purifier_options(config, name: str, *, field: str = "defence") -> tuple[str, dict]:
    """(entry of PURIFIERS, its options) of a defence: config.<name>, or of config.variants.<name>
    the purifier that it names, with what it changes."""
    variants = config.variants.to_dict()
    choose(field, dict.fromkeys([*purifiers.PURIFIERS, *variants]), name)
    changes = variants.get(name, {"purifier": name})
    if name in variants and (name in purifiers.PURIFIERS or not re.fullmatch(r"\w+", name)):
        raise ValueError(
            f"config.variants.{name}: the name must be of letters, digits and _, and no purifier's"
        )
    kind = changes.get("purifier")
    choose(f"config.variants.{name}.purifier", purifiers.PURIFIERS, kind)
    own = {field: changes[field] for field in changes if field not in ("purifier", "classifier")}
    return kind, config[kind].to_dict() | own


def classifier_run(config, name: str) -> str:
    """The run whose classifier the defence of that name has: 'classifier', the evaluation's own, or
    '<workdir>/classifier' of the workdir in config.variants.<name>.classifier."""
    workdir = config.variants.to_dict().get(name, {}).get("classifier", "")
    if not isinstance(workdir, str):
        raise ValueError(f"config.variants.{name}.classifier={workdir!r} must be a workdir's path")
    return f"{workdir}/classifier" if workdir else "classifier"


def build_purifier(config, name: str, score: Score | None) -> Purifier:
    """The purifier of the defence of that name, with its options in the config."""
    kind, options = purifier_options(config, name)
    return purifiers.build(kind, score, **options)


def build_defense(
    config, name: str, *, classifiers: Mapping[str, Classifier], score: Score | None
) -> Defense:
    """The defence of that name: its purifier, and its classifier by `classifier_run`.

    A purifier that draws nothing gives the same output every time: one run of it is enough.
    """
    purifier = build_purifier(config, name, score)
    cfg = config.defense
    return Defense(
        purifier,
        classifiers[classifier_run(config, name)],
        num_runs=cfg.num_runs if purifier.stochastic else 1,
        average=cfg.average,
        chunk=cfg.chunk or None,
    )
