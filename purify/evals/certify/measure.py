"""Samples of smoothed defences, image by image, and the certificates that follow from them."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from attacks.gradients import numbered_draws
from purify.defense import Defense
from purify.evals.certify import smoothing
from purify.evals.certify.plan import CertifyOptions, SmoothedRow
from purify.evals.core.agreement import check_label
from purify.evals.core.engine import Compute, Engine
from purify.random import image_keys
from purify.runtime import parallel
from purify.runtime.compilation import jit
from purify.types import Array, Key

# Blocks of samples: one of a small network keeps one CPU core busy and a quarter of the next.
AT_ONCE = 2
NO_CLASS = -1


def measure(
    engine: Engine, rows: Sequence[SmoothedRow], options: CertifyOptions, num_classes: int
) -> None:
    """Certify the pending images of the rows, one at a time: the samples of one fill the machine.

    Raises FileError where a record is not what its own counts say.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for row in rows:
            begin = functools.partial(_certifier, engine, row, options, num_classes, pool)
            engine.do(row.job, begin, size=1, doing="certifying")
    for row in rows:
        known = _known(row, options, num_classes)

        def agrees(record, label, known=known):
            check_label(record, label)
            smoothing.check_certified(record, **known)

        engine.check(row.job, agrees)


def _known(row: SmoothedRow, options: CertifyOptions, num_classes: int) -> dict:
    """The options of smoothing.certify."""
    return {
        "sigma": row.sigma,
        "num_classes": num_classes,
        "num_selection": row.num_selection,
        "num_samples": row.num_samples,
        "alpha": options.alpha,
    }


def _certifier(
    engine: Engine,
    row: SmoothedRow,
    options: CertifyOptions,
    num_classes: int,
    pool: Executor,
    pending: Sequence[int],
) -> Compute:
    """What certifies the image at a position; compiled for all sizes of blocks, so that no image's
    seconds hold that."""
    defense = parallel.replicate(row.defense)
    streams = {"selection": row.num_selection, "defense": row.num_samples}
    keys = {stream: image_keys(engine.seed, engine.indices, stream=stream) for stream in streams}
    blocks = [
        (stream, first, min(options.chunk, number - first))
        for stream, number in streams.items()
        for first in range(0, number, options.chunk)
    ]

    def starter(at: int) -> Callable[[str, int, int], Future]:
        """`start` of Samples. The key of a sample does not depend on how many are computed at
        once."""
        image = engine.images[at]
        own = {stream: parallel.replicate(key[at]) for stream, key in keys.items()}

        def classes(stream: str, first: int, number: int) -> np.ndarray:
            found = parallel.fetch(predict(defense, own[stream], first, _places(number), image))
            known = np.where(found == NO_CLASS, np.nan, found)[None]
            engine.check_finite(known, np.array([at]), f"{row.name}: logits of the defence")
            return found

        return lambda *block: pool.submit(classes, *block)

    def certify(at: np.ndarray) -> list[dict]:
        (place,) = at
        begun = time.perf_counter()
        samples = Samples(blocks, starter(place))
        found = smoothing.certify(samples, **_known(row, options, num_classes))
        samples.wait()
        return [
            {
                "index": engine.index(place),
                "label": int(engine.labels[place]),
                **found._asdict(),
                "counts": found.counts.tolist(),
                "samples": row.num_selection + int(found.counts.sum()),
                "nfe": samples.started * row.nfe,
                "seconds": time.perf_counter() - begun,
            }
        ]

    start = starter(pending[0])
    for number in {number for *_, number in blocks}:
        start("selection", 0, number).result()
    return certify


@jit
def predict(defense: Defense, key: Key, first: int, places: Array, image: Array) -> Array:
    """The classes [n] that single runs of the defence give to image [H, W, C], as its draws of the
    numbers first + places [n]: these come split over the devices, and the samples with them.
    NO_CLASS where a logit is not finite."""

    def answer(key: Key, image: Array) -> Array:
        logits = defense.run(key, image)
        return jnp.where(jnp.isfinite(logits).all(), logits.argmax(), NO_CLASS)

    return numbered_draws(answer)(key, first + places, image)


@functools.cache
def _places(number: int) -> Array:
    """0, 1, ..., so many that they are at least `number` and the devices share them equally."""
    devices = jax.device_count()
    return parallel.shard(np.arange(-(-number // devices) * devices, dtype=np.int32))


class Samples:
    """`sample` of smoothing.certify, of one image: blocks of classes, each of them begun before the
    one ahead of it is waited for.

    blocks: (stream, first, number) of all there are, in the order in which they will be asked for.
    start: the same -> what will be their classes, [at least number].
    """

    def __init__(self, blocks: Iterable[tuple], start: Callable[[str, int, int], Future]):
        self.started = 0  # samples, also those that nobody looked at
        self._start, self._waiting, self._running = start, deque(blocks), deque[tuple]()
        self._classes = {stream: np.empty(0, int) for stream, *_ in self._waiting}
        self._start_one()

    def __call__(self, stream: str, first: int, number: int) -> np.ndarray:
        while len(self._classes[stream]) < first + number:
            self._start_one()
            of, size, classes = self._running.popleft()
            self._classes[of] = np.append(self._classes[of], classes.result()[:size])
        return self._classes[stream][first : first + number]

    def wait(self) -> None:
        """For what was begun in vain: it would delay who comes next."""
        for *_, classes in self._running:
            classes.result()

    def _start_one(self) -> None:
        if self._waiting:
            stream, first, number = self._waiting.popleft()
            self._running.append((stream, number, self._start(stream, first, number)))
            self.started += number
