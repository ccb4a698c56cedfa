"""--mode=certify: L2 certificates of "purify, then classify", by randomised smoothing."""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from tqdm import tqdm

from purify import parallel
from purify.checkpoint import image_shape, load_score, read_settings, weight_hash
from purify.compilation import jit
from purify.defense import Defense
from purify.evals import plots, smoothing
from purify.evals.defenses import build_defense, purifier_options
from purify.evals.evaluation import BAR
from purify.evals.report import print_wide
from purify.evals.robust import agreed_classes, load_classifiers, load_images, network_runs
from purify.evals.stats import bootstrap_mean, proportion
from purify.evals.store import Store
from purify.jsonl import write_json
from purify.random import image_keys, index_keys
from purify.types import Array, Key


@dataclasses.dataclass(frozen=True, eq=False)
class SmoothedRow:
    """One smoothed defence: its first noise, sigma, is the certificate's."""

    defense_name: str
    defense: Defense
    sigma: float
    num_images: int
    num_samples: int

    @property
    def name(self) -> str:
        return f"{self.defense_name}-{self.sigma:g}"

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return self.defense.purifier.nfe


@functools.partial(jax.jit, static_argnums=2)
def sample_keys(key: Key, first: int, number: int) -> Key:
    """Keys [number] of an image's samples from `first` on."""
    return index_keys(key, first + jnp.arange(number))


@jit
def predict(defense: Defense, keys: Key, image: Array) -> Array:
    """The class [n] that one run of the defence gives to image [H, W, C] with each of keys [n]."""
    return jax.vmap(lambda key: defense.run(key, image).argmax())(keys)


def smoothed(defense: Defense, sigma: float, name: str) -> Defense:
    """The defence with its injected noise at sigma: the certificate's noise, and the only one.

    Raises ValueError where its first act is not to add that noise to the image, or where its draws
    are not independent.
    """
    purifier = defense.purifier
    if defense.couples_batch:
        raise ValueError(f"{name} decides a batch together: its draws are not independent")
    if "sigma" not in {field.name for field in dataclasses.fields(purifier)}:
        raise ValueError(
            f"{name} cannot be certified: {type(purifier).__name__} does not begin with noise of "
            "its own; choose one that does, as noise_only for smoothing the classifier alone"
        )
    return dataclasses.replace(defense, purifier=dataclasses.replace(purifier, sigma=sigma))


def run(config, workdir: Path, max_images: int | None = None) -> None:
    """Certify, print a table, and write results.json and the curves.

    max_images: stop after so many images of each row; a later run, with more of them or without a
        limit, goes on from there.
    """
    cfg = config.certify
    runs = network_runs(config, workdir, cfg.defenses)
    classifiers, score_model = load_classifiers(runs), load_score(workdir)
    num_classes = agreed_classes(runs, image_shape(workdir))
    images, labels, indices = load_images(config, image_shape(workdir), num_classes, None)
    rows = _plan(config, classifiers, score_model, len(labels))
    needed = max(row.num_images for row in rows)
    images, labels, indices = images[:needed], labels[:needed], indices[:needed]
    settings = _settings(config, runs, classifiers, score_model)
    settings["images"] = weight_hash({"images": images, "labels": labels, "indices": indices})
    if max_images:
        rows = [dataclasses.replace(r, num_images=min(r.num_images, max_images)) for r in rows]
    with Store(workdir, "certify", settings) as store:
        options = {field: cfg[field] for field in ("num_selection", "alpha", "chunk")}
        options |= dict(seed=config.seed, num_classes=num_classes)
        Certification(store, images, labels, indices, **options).run(rows)
        results = {
            "title": _title(config),
            "rows": [_result(row, store, cfg, seed=config.seed) for row in rows],
            "meaning": MEANING,
            **settings,
            **store.signatures()[-1],
            "computed_by": store.signatures(),
            "config": config.to_dict(),
        }
        path = store.folder / "results.json"
        figure = store.folder / "figures" / "certified.png"
        figure.parent.mkdir(exist_ok=True)
        write_json(path, results)
        plots.certified_curves(figure, results["rows"])
        print_table(results, cfg.radii)
        written = "\n".join(f"  {p}" for p in (path, store.folder / "images.jsonl", figure))
        print(f"\nwritten:\n{written}")
    if max_images and max_images < needed:
        print(f"stopped after {max_images} of {needed} images (--max_images); the same command "
              "with more of them, or without it, goes on from here")  # fmt: skip


class Certification:
    """The rows of one certification, image by image, into a Store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], of the dataset.
    num_selection, alpha, chunk: see smoothing.certify; a chunk is computed at once.
    """

    def __init__(
        self,
        store: Store,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        num_classes: int,
        num_selection: int,
        alpha: float,
        chunk: int,
    ):
        self.store, self.images, self.labels, self.indices = store, images, labels, indices
        self._seed, self._chunk, self._num_selection = seed, chunk, num_selection
        self._options = dict(num_classes=num_classes, num_selection=num_selection, alpha=alpha)

    def run(self, rows: list[SmoothedRow]) -> None:
        """Do whatever is not done yet, with a progress bar in units of work."""
        pending = [self._pending(row) for row in rows]
        samples = [row.num_samples + self._num_selection for row in rows]
        total, nfe, work = (
            sum(len(at) * n * cost for at, n, cost in zip(pending, samples, costs, strict=True))
            for costs in ([1] * len(rows), [r.nfe for r in rows], [1 + r.nfe for r in rows])
        )
        print(
            f"{len(rows)} rows: at most {total:,} samples and {nfe:,} network evaluations; into "
            f"{self.store.folder}"
        )
        if total:
            self.store.sign(chunk=self._chunk, devices=jax.device_count())
        with tqdm(total=work, bar_format=BAR, smoothing=0, mininterval=1.0) as progress:
            for row, positions, number in zip(rows, pending, samples, strict=True):
                if positions:
                    progress.set_description(f"{row.name}: compiling")
                    self._compile(row, positions[0])
                    progress.set_description(row.name)
                for count, at in enumerate(positions):
                    record = self._certify(row, at)
                    self.store.append(row.name, [record])
                    progress.update(number * (1 + row.nfe))
                    if not count:
                        progress.write(
                            f"first image of {row.name}: {record['samples']:,} samples, "
                            f"{record['nfe']:,} network evaluations, {record['seconds']:.2f} s"
                        )
            progress.set_description("all rows done")

    def _pending(self, row: SmoothedRow) -> list[int]:
        done = self.store.records(row.name)
        return [at for at in range(row.num_images) if int(self.indices[at]) not in done]

    def _compile(self, row: SmoothedRow, at: int) -> None:
        """For all sizes that will be asked for, so that no image's seconds hold that."""
        whole, rest = min(self._chunk, row.num_samples), row.num_samples % self._chunk
        for number in {self._num_selection, whole, rest} - {0}:
            self._sample(row, at, "selection", 0, number)

    def _certify(self, row: SmoothedRow, at: int) -> dict:
        """The line of the image at a position."""
        start, drawn = time.perf_counter(), 0

        def sample(stream: str, first: int, number: int) -> np.ndarray:
            nonlocal drawn
            drawn += number
            return self._sample(row, at, stream, first, number)

        found = smoothing.certify(
            sample,
            sigma=row.sigma,
            num_samples=row.num_samples,
            chunk=self._chunk,
            **self._options,
        )
        return {
            "index": int(self.indices[at]),
            "label": int(self.labels[at]),
            **found._asdict(),
            "counts": found.counts.tolist(),
            "samples": drawn,
            "nfe": drawn * row.nfe,
            "seconds": time.perf_counter() - start,
        }

    def _sample(
        self, row: SmoothedRow, at: int, stream: str, first: int, number: int
    ) -> np.ndarray:
        """The classes of `number` samples of a stream from `first` on. The key of a sample does not
        depend on how many are computed at once."""
        padded = -(-number // jax.device_count()) * jax.device_count()
        key = image_keys(self._seed, self.indices[at : at + 1], stream=stream)[0]
        keys = parallel.shard(sample_keys(key, first, padded))
        return parallel.fetch(predict(row.defense, keys, self.images[at]))[:number]


def _plan(config, classifiers, score_model, num_images: int) -> list[SmoothedRow]:
    """The rows of config.certify; ValueError names what is wrong before anything is computed."""
    cfg, rows = config.certify, []
    if not cfg.defenses or not cfg.sigmas:
        raise ValueError("config.certify.defenses and config.certify.sigmas must name at least one")
    if cfg.chunk < 1:
        raise ValueError(f"config.certify.chunk={cfg.chunk} must be at least 1")
    for name in cfg.defenses:
        purifier_options(config, name, field="config.certify.defenses")
        budget = {"num_images": cfg.num_images, "num_samples": cfg.num_samples}
        fewer = cfg.budgets.to_dict().get(name, {})
        if unknown := fewer.keys() - budget.keys():
            raise ValueError(
                f"config.certify.budgets.{name} has no {', '.join(sorted(unknown))}; known: "
                f"{', '.join(budget)}"
            )
        budget |= fewer
        if budget["num_images"] < 1:
            raise ValueError(f"config.certify: num_images={budget['num_images']} must be at least 1")
        budget["num_images"] = min(budget["num_images"], num_images)
        defense = build_defense(config, name, classifiers=classifiers, score=score_model)
        for sigma in cfg.sigmas:
            smoothing.check(
                sigma=sigma,
                num_selection=cfg.num_selection,
                num_samples=budget["num_samples"],
                alpha=cfg.alpha,
            )
            rows.append(SmoothedRow(name, smoothed(defense, sigma, name), sigma, **budget))
    return rows


def _settings(config, runs, classifiers, score_model) -> dict:
    """Everything that decides the certificates, but for the images; not the number of the latter,
    nor the chunk, which decides when to look, not what is certified."""
    cfg = config.certify.to_dict()
    networks = {**classifiers, "score": score_model}
    return {
        "seed": config.seed,
        "data": {k: v for k, v in config.data.to_dict().items() if k != "dir"},
        "defenses": {
            name: dict(zip(("purifier", "options"), purifier_options(config, name), strict=True))
            for name in cfg["defenses"]
        },
        "certify": {k: v for k, v in cfg.items() if k not in ("radii", "num_images", "chunk")},
        "weights": {name: weight_hash(network.variables) for name, network in networks.items()},
        "networks": {name: read_settings(run)["network"] for name, run in runs.items()},
        "head": score_model.head,
    }


def _result(row: SmoothedRow, store: Store, cfg, *, seed: int) -> dict:
    """The entry of results.json for one row."""
    records = [record for _, record in sorted(store.records(row.name).items())]
    right = np.array([r["top"] == r["label"] for r in records])
    radii = np.where(right, [r["radius"] for r in records], -np.inf)
    answers = np.array([r["answer"] for r in records])
    abstained = proportion([r["radius"] == 0 for r in records])
    largest = smoothing.largest_radius(row.num_samples, cfg.alpha, row.sigma)
    average = bootstrap_mean(np.maximum(radii, 0.0), seed=seed, bounds=(0.0, largest))
    purifier = row.defense.purifier
    return {
        "defense": {
            "name": row.defense_name,
            "sigma": row.sigma,
            "T": getattr(purifier, "num_steps", 1 if row.nfe else 0),
            "curvature": getattr(purifier, "curvature", None),
        },
        "num_images": len(records),
        "num_samples": row.num_samples,
        "num_selection": cfg.num_selection,
        "alpha": cfg.alpha,
        "average_certified_radius": average.value,
        "low": average.low,
        "high": average.high,
        "largest_radius": largest,
        "abstained": abstained.value,
        "accuracy": float(np.mean([r["answer"] == r["label"] for r in records])),
        "no_answer": float(np.mean(answers == smoothing.ABSTAIN)),
        "certified_radii": [float(max(r, 0.0)) for r in radii],
        "certified": [
            {"radius": float(r), **proportion(radii > r)._asdict()} for r in cfg.radii
        ],
        "nfe_per_image": float(np.mean([r["nfe"] for r in records])),
        "seconds_per_image": float(np.median([r["seconds"] for r in records])),
        "seed": seed,
    }
