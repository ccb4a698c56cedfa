"""Rows of an evaluation, image by image, into a Store: attacks crafted, fresh draws scored."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import numpy as np

from attacks.types import Attacked
from purify.evals.attacked.choosing import choose
from purify.evals.attacked.programs import Scored, check_finite, check_in_ball, craft, score
from purify.evals.attacked.rows import Row, crafting, with_stages
from purify.evals.core.agreement import check_label, check_logits
from purify.evals.core.sealed_arrays import WAY_OUT, seal, sealed
from purify.evals.core.store import Store
from purify.random import check_seed, image_keys, keys_apart
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered
from purify.runtime.progress import Progress, progress
from purify.saving.files import FileError
from purify.types import Key

# Of the attack's line of an image, what its line of the row shows too.
ATTACK_RESULTS = ("loss", "start_loss", "interim_success", "distance")


# (row, positions) -> images [n, H, W, C], of which those at these positions count.
ImagesOf = Callable[[Row, Sequence[int]], np.ndarray]


class Evaluation:
    """The rows of one evaluation, image by image, into a Store.

    images: float32 [n, H, W, C] in [0, 1]; labels: int [n]; indices: int [n], distinct: the dataset
        index of each, which its keys are folded from. Below, a position is one into these arrays.
    batch_size: the limit of compiled batches. Those of a row have one size, which follows from it
        and from the row's number of images (see parallel.balanced); what is not full, as after an
        interruption, is padded with copies, so that an image's result never depends on its
        neighbours. A row of other length, as by another --max_images, may have another size: other
        rounding, no more. Where the defence itself makes an image depend on its neighbours (see
        Defense.couples_batch), the batches are always the same: of one block of batch_size
        positions each.
    """

    def __init__(
        self,
        store: Store,
        images: np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        *,
        seed: int,
        batch_size: int,
    ):
        self.store = store
        self.images, self.labels, self.indices = images, labels, indices
        self.seed = check_seed(seed)
        self._batch_size = batch_size
        self._scorers: dict = {}  # compiled `score`, by defence, number of draws and size
        self.progress: Progress = None
        self._estimated: set[str] = set()  # the kinds of work whose speed was told
        self._asks_score = False
        self._in_ball: dict[tuple, set[int]] = {}  # positions of images that were looked at

    def run(self, rows: list[Row], images_of: ImagesOf | None = None) -> None:
        """Do whatever is not done yet, with a progress bar in units of work (see Row).

        images_of: the images of a row without an attack, where they are not the clean ones.
        Raises FileError where what was done before is not what it was.
        """
        self._forget_lost(rows)
        attacking = self.attacking(rows)
        left = sum(
            len(self.pending(f"attack:{row.crafted}", row)) * row.attack_work
            for row in crafting(attacking)
        )
        left += sum(len(self.pending(row.name, row)) * row.score_work for row in rows)
        self._asks_score = any(
            (row.attack_nfe and self.pending(f"attack:{row.crafted}", row))
            or (row.score_nfe and self.pending(row.name, row))
            for row in (*rows, *attacking)
        )
        if left:
            self.sign(*map(self.row_size, rows))
        with progress(total=left, disable=not left) as self.progress:
            for row in rows:
                if row.attack:
                    self.attack(row)
                self._score(row, images_of)
            self.progress.set_description("all rows done")
        for row in rows:
            self._check_answers(row)

    def attacking(self, rows: list[Row]) -> list[Row]:
        """The rows, and stages of rows, whose attacks may be missing."""
        # Where the choice is made the stages of it, some of them spared, are not there.
        choosing = [r for r in rows if r.stages and self.pending(f"attack:{r.crafted}", r)]
        return [*(row for row in rows if not row.stages), *with_stages(choosing)]

    def sign(self, *sizes: int) -> None:
        """Note in the store that this process computes records, in batches of these sizes: the
        largest of them, and over how many devices."""
        self.store.sign(batch_size=max(sizes), devices=jax.device_count())

    def size(self, num_images: int) -> int:
        """The size of the batches in which so many images, that do not see each other, are
        computed."""
        return parallel.balanced(self._batch_size, num_images)

    def row_size(self, row: Row) -> int:
        """The size of the batches of a row."""
        return parallel.balanced(self._batch_size, row.num_images, blocks=_couples(row))

    def attacked_images(self, row: Row) -> np.ndarray:
        """The attacked images of a row, float32 [n, H, W, C], to be read only, NaN where not
        attacked yet.

        Raises FileError where one is not what its record says: other bytes, another distance, or
        out of the ball or the box.
        """
        images, name = self._crafted(row.crafted), f"attack:{row.crafted}"
        known = self._in_ball.setdefault((row.crafted, *row.ball), set())
        records = self.store.records(name)
        at = [i for i in self._positions(records) if i not in known and _there(images[i])]
        if at:
            try:
                distances = check_in_ball(images[at], self.images[at], *row.ball)
                recorded = [records[self.index(i)]["distance"] for i in at]
                if not np.allclose(distances, recorded, rtol=1e-6, atol=1e-9):
                    raise RuntimeError("images have another distance than their records say")
            except RuntimeError as error:
                raise FileError(
                    f"{self.store.folder}/arrays/{row.crafted}.npy is damaged ({error}); {WAY_OUT}"
                ) from None
            known.update(at)
        return images

    def _crafted(self, name: str) -> np.ndarray:
        return self.store.array(name, self.images.shape, f"attack:{name}", self.indices)

    def _positions(self, records: Collection[int]) -> list[int]:
        """The positions of the images with these indices, ascending."""
        return [at for at, index in enumerate(self.indices.tolist()) if index in records]

    def check_there(self, images: np.ndarray, positions: Sequence[int], name: str) -> None:
        """FileError unless the attacked images at these positions are there."""
        if not all(_there(images[at]) for at in positions):
            raise FileError(
                f"{self.store.folder}/arrays/{name}.npy lacks images that images.jsonl has lines "
                "of; bring the file back"
            )

    def _forget_lost(self, rows: list[Row]) -> None:
        """Attacked images that are needed, but are gone, are attacked again; and scores of others
        than those are not theirs."""
        lost = True
        while lost:  # what is made again may need more
            needed: list[tuple[str, Collection[int]]] = []
            for row in (row for row in self.attacking(rows) if row.attack):
                pending = self.pending(f"attack:{row.crafted}", row)
                needed += [(name, pending) for name in row.starts]
                needed += [(stage.crafted, pending) for stage in row.stages]
            scored = (row for row in rows if row.attack)
            needed += [(row.crafted, self.pending(row.name, row)) for row in scored]
            lost = any([self._forget_gone(name, positions) for name, positions in needed])
        for row in (row for row in rows if row.attack):
            self.forget_stale(row.name, row.crafted, self._crafted(row.crafted))

    def _forget_gone(self, name: str, positions: Collection[int]) -> bool:
        """Whether attacked images of that name at these positions were done, but are not there."""
        records = self.store.records(f"attack:{name}")
        done = [at for at in positions if self.index(at) in records]
        images = self._crafted(name) if done else np.empty(0)
        gone = [self.index(at) for at in done if not _there(images[at])]
        if gone:
            self.store.forget(f"attack:{name}", gone, f"arrays/{name}.npy lacks its image")
        return bool(gone)

    def forget_stale(self, name: str, array: str, images: np.ndarray) -> None:
        """Put records under that name aside that are of other images than these, [n, H, W, C] of
        the first n positions, by the seals of `array` that they have: of those that were attacked
        again since."""
        records = self.store.records(name)
        stale = []
        for at in self._positions(records):
            known = records[self.index(at)].get("arrays", {}).get(array)
            if known and at < len(images) and _there(images[at]) and known != seal(images[at]):
                stale.append(self.index(at))
        self.store.forget(name, stale, "it is of another image than the one that is there")

    def _check_answers(self, row: Row) -> None:
        """FileError unless labels and logits, where these are there, say what the records do."""
        records, logits = self.store.records(row.name), None
        for at in self._positions(records):
            record = records[self.index(at)]
            try:
                check_label(record, self.labels[at])
                if logits is None:
                    logits = self._logits(row, np.shape(record["predictions"]))
                if _there(logits[at]):
                    check_logits(record, logits[at], row.defense.average)
            except ValueError as error:
                raise FileError(
                    f"{self.store.folder}: images.jsonl and arrays of {row.name}, index "
                    f"{record['index']}, do not agree: {error}; bring them back, or move the "
                    "folder elsewhere"
                ) from None

    def _logits(self, row: Row, runs: tuple[int, ...]) -> np.ndarray:
        """Of the runs of all draws, [n, N, S, K], NaN where not scored yet."""
        shape = (len(self.images), *runs, None)
        return self.store.array(f"{row.name}.logits", shape, row.name, self.indices)

    def attack(self, row: Row, among: Sequence[int] | None = None) -> None:
        """Attack the images of a row that were not attacked before, by it or by a row like it;
        among: only those positions."""
        name = f"attack:{row.crafted}"
        pending = self.pending(name, row)
        if among is not None:
            pending = sorted(set(pending) & set(among))
        if not pending:
            return
        if row.stages:
            return choose(self, row, pending)
        self.progress.set_description(f"{row.name}: compiling the attack")
        attacked, beside = parallel.replicate((row.attacked, row.beside))
        arguments, static = (row.attack, attacked, beside), {"fixed_key": row.fixed_key}
        lowered = craft.lower(*arguments, *self._attack_batch(row, pending), **static)
        program = compile_lowered(lowered)
        for at in self.batches(pending, self.row_size(row), f"{row.name}: attacking"):
            batch = self._attack_batch(row, at)
            result, seconds = self.timed(program, attacked, beside, *batch)
            result = Attacked(*(array[: len(at)] for array in result))
            # Before the ball: where the defence has no answers, the attack is not to blame.
            for what, values in (
                ("losses before the attack", result.start_loss),
                ("attacked images", result.image),
                ("losses of attacked images", result.loss),
            ):
                check_finite(values, self.indices[at], f"{row.name}: {what}")
            distance = check_in_ball(result.image, self.images[at], row.attack.norm, row.attack.eps)
            seals = self.store.write(row.crafted, self.images.shape, at, result.image)
            seen = (result.loss, result.start_loss, result.interim)
            each = zip(self.indices[at], *seen, distance, strict=True)
            records = [
                {
                    "index": int(index),
                    "loss": float(loss),
                    "start_loss": float(start_loss),
                    "interim_success": bool(interim),
                    "distance": float(distance),
                    "queries": row.attack_queries,
                    "nfe": row.attack_nfe,
                    "nge": row.attack_nge,
                    "seconds": seconds / len(at),
                }
                for index, loss, start_loss, interim, distance in each
            ]
            self.store.append(name, sealed(records, {row.crafted: seals}))
            self.progress.update(len(at) * row.attack_work)
            self._say_estimate(row, "attacking", seconds / len(at), row.attack_work, row.attack_nfe)

    def _score(self, row: Row, images_of: ImagesOf | None) -> None:
        """Fresh draws of the row's defence on its attacked images, those of images_of, or clean
        ones."""
        if row.attack:  # some of them just now
            self.forget_stale(row.name, row.crafted, self._crafted(row.crafted))
        pending = self.pending(row.name, row)
        if not pending:
            return
        if row.attack:
            images = self.attacked_images(row)
        else:
            images = images_of(row, pending) if images_of else self.images
        self.check_there(images, pending, row.crafted if row.attack else "")
        defense, size = parallel.replicate(row.defense), self.row_size(row)
        key = (row.defense_name, row.num_draws, size)
        if key not in self._scorers:
            self.progress.set_description(f"{row.name}: compiling the defence")
            keys, batch, _ = self.batch(pending, images, size, "defense")
            lowered = score.lower(defense, keys, batch, num_draws=row.num_draws)
            self._scorers[key] = compile_lowered(lowered)
        for at in self.batches(pending, size, f"{row.name}: scoring"):
            keys, batch, _ = self.batch(at, images, size, "defense")
            scored, seconds = self.timed(self._scorers[key], defense, keys, batch)
            logits = scored.logits[: len(at)]
            check_finite(logits, self.indices[at], f"{row.name}: logits of the defence")
            name, shape = f"{row.name}.logits", (len(self.images), *logits.shape[1:])
            seals = {name: self.store.write(name, shape, at, logits)}
            if row.attack:
                seals[row.crafted] = [seal(images[i]) for i in at]
            each = zip(at, *scored, strict=False)  # the shorter `at` leaves the padding out
            records = [self._record(row, i, Scored(*s), seconds / len(at)) for i, *s in each]
            self.store.append(row.name, sealed(records, seals))
            self.progress.update(len(at) * row.score_work)
            self._say_estimate(row, "scoring", seconds / len(at), row.score_work, row.score_nfe)

    def _record(self, row: Row, at: int, scored: Scored, seconds: float) -> dict:
        """The line of the image at a position; its costs are the attack's and the scoring's."""
        index, label, nfe = self.index(at), int(self.labels[at]), int(scored.nfe)
        record = {
            "index": index,
            "label": label,
            "correct": (scored.answers == label).tolist(),
            "predictions": scored.logits.argmax(-1).tolist(),  # [N][S], of single runs
            "defense_nfe": nfe / row.num_draws,
            "defense_seconds": seconds / row.num_draws,
        }
        cost = {"queries": 0, "nfe": nfe, "nge": 0, "seconds": seconds}
        if row.attack is None:
            return record | cost
        attack = self.store.records(f"attack:{row.crafted}")[index]
        shown = {k: attack[k] for k in (*ATTACK_RESULTS, "chosen") if k in attack}
        return record | shown | {k: attack[k] + v for k, v in cost.items()}

    def _say_estimate(self, row: Row, kind: str, seconds: float, work: int, nfe: int) -> None:
        """After the first batch through the score network, if any row asks it, scored and then
        attacked: the cost of an image, and how long the rest takes at that speed."""
        if kind in self._estimated or (self._asks_score and not nfe):
            return
        self._estimated.add(kind)
        left = (self.progress.total - self.progress.n) * seconds / work
        self.progress.write(
            f"estimate from the first batch of {row.name}, {kind}: {nfe:,} network evaluations and "
            f"{seconds:.3f} s per image; about {left / 60:.1f} min of computing left in all"
        )

    def pending(self, name: str, row: Row) -> list[int]:
        """Positions of the images that are to be computed, for want of a record under that name."""
        done = self.store.records(name)
        missing = [at for at in range(row.num_images) if self.index(at) not in done]
        if not _couples(row):
            return missing
        blocks = {at // self._batch_size for at in missing}  # whole, even where a part is done
        return [at for at in range(row.num_images) if at // self._batch_size in blocks]

    def batches(self, pending: list[int], size: int, description: str) -> Iterator[np.ndarray]:
        """The pending positions, at most `size` at a time."""
        self.progress.set_description(description)
        for start in range(0, len(pending), size):
            yield np.array(pending[start : start + size])

    def index(self, at: int) -> int:
        """The dataset index of the image at a position."""
        return int(self.indices[at])

    def _attack_batch(self, row: Row, positions: Sequence[int]) -> tuple:
        """What `craft` takes of one batch."""
        size = self.row_size(row)
        at = np.resize(positions, size)
        points = {name: self._crafted(name) for name in row.starts}
        for name, images in points.items():
            self.check_there(images, at, name)
        given = [images[at] for images in points.values()]
        starts = parallel.shard(np.stack(given, axis=1)) if given else None
        keys, *rest = self.batch(positions, self.images, size, "attack", "defense")
        if row.starts:
            # Draws of other attacks have chosen the images that this one climbs from: it draws
            # anew, or their luck would be taken for strength.
            keys = parallel.shard(keys_apart(self._keys(at, "attack"), row.crafted))
        return keys, *rest, starts

    def batch(
        self, positions: Sequence[int], images: np.ndarray, size: int, *streams: str
    ) -> tuple:
        """(keys of each stream, images, labels) of one batch of that size, padded and sharded."""
        at = np.resize(positions, size)  # repeats positions to fill up, or cuts off
        keys = (self._keys(at, stream) for stream in streams)
        return parallel.shard((*keys, images[at], self.labels[at]))

    def _keys(self, at: np.ndarray, stream: str) -> Key:
        return image_keys(self.seed, self.indices[at], stream=stream)

    @staticmethod
    def timed(program: Callable, *args) -> tuple:
        """(the program's result on the host, seconds until it was there)."""
        start = time.perf_counter()
        result = parallel.fetch(program(*args))
        return result, time.perf_counter() - start


def _there(entry: np.ndarray) -> bool:
    return bool(np.isfinite(entry).all())


def _couples(row: Row) -> bool:
    """Whether an image's result depends on the others of its batch: behind the defence, or behind
    what is attacked in its place."""
    return row.defense.couples_batch or (row.attacked is not None and row.attacked.couples_batch)
