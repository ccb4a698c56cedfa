"""Rows of an evaluation, image by image, into a Store: attacks crafted, fresh draws scored."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from attacks.types import Attacked
from purify.evals.attacked.choosing import choose
from purify.evals.attacked.programs import Scored, check_in_ball, craft, score
from purify.evals.attacked.rows import Row, jobs_of, with_stages
from purify.evals.core.agreement import check_label, check_logits
from purify.evals.core.engine import Compute, Engine, there
from purify.evals.core.sealed_arrays import WAY_OUT, seal, sealed
from purify.random import keys_apart
from purify.runtime import parallel
from purify.runtime.compilation import compile_lowered
from purify.runtime.errors import FileError

# Of the attack's line of an image, what its line of the row shows too.
ATTACK_RESULTS = ("loss", "start_loss", "interim_success", "distance")


# (row, positions) -> images [n, H, W, C], of which those at these positions count.
ImagesOf = Callable[[Row, Sequence[int]], np.ndarray]


class Evaluation:
    """The rows of one evaluation on an engine."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._scorers: dict = {}  # compiled `score`, by defence, number of draws and size

    def run(self, rows: list[Row], images_of: ImagesOf | None = None) -> None:
        """`measure`, with a progress bar in units of work (see Cost)."""
        self.forget_lost(rows)
        jobs = jobs_of(rows)
        with self.engine.working(jobs, batch_size=max(map(self.engine.size, jobs))):
            self.measure(rows, images_of)

    def measure(self, rows: list[Row], images_of: ImagesOf | None = None) -> None:
        """Do whatever is not done yet.

        images_of: the images of a row without an attack, where they are not the clean ones.
        Raises FileError where what was done before is not what it was.
        """
        for row in rows:
            if row.attack:
                self.attack(row)
            self._score(row, images_of)
        for row in rows:
            self._check_answers(row)

    # Attacked images

    def attacked_images(self, row: Row) -> np.ndarray:
        """The attacked images of a row, float32 [n, H, W, C], to be read only, NaN where not
        attacked yet.

        Raises FileError where one is not what its record says: other bytes, another distance, or
        out of the ball or the box.
        """
        engine, images = self.engine, self._crafted(row.crafted)
        known = engine.in_ball.setdefault((row.crafted, *row.ball), set())
        records = engine.store.records(row.attack_records)
        at = [i for i in engine.positions(records) if i not in known and there(images[i])]
        if at:
            try:
                distances = check_in_ball(images[at], engine.images[at], *row.ball)
                recorded = [records[engine.index(i)]["distance"] for i in at]
                if not np.allclose(distances, recorded, rtol=1e-6, atol=1e-9):
                    raise RuntimeError("images have another distance than their records say")
            except RuntimeError as error:
                raise FileError(
                    f"{engine.store.folder}/arrays/{row.crafted}.npy is damaged ({error}); "
                    f"{WAY_OUT}"
                ) from None
            known.update(at)
        return images

    def _crafted(self, name: str) -> np.ndarray:
        engine = self.engine
        return engine.store.array(name, engine.images.shape, f"attack:{name}", engine.indices)

    def forget_lost(self, rows: list[Row]) -> None:
        """Attacked images that are needed, but are gone, are attacked again; and scores of others
        than those are not theirs."""
        engine, lost = self.engine, True
        while lost:  # what is made again may need more
            needed: list[tuple[str, Collection[int]]] = []
            for row in (row for row in self._attacking(rows) if row.attack):
                pending = engine.pending(row.attack_job)
                needed += [(name, pending) for name in row.starts]
                needed += [(stage.crafted, pending) for stage in row.stages]
            scored = (row for row in rows if row.attack)
            needed += [(row.crafted, engine.pending(row.score_job)) for row in scored]
            shape = engine.images.shape
            lost = any([engine.forget_gone(f"attack:{n}", n, shape, at) for n, at in needed])
        for row in (row for row in rows if row.attack):
            engine.forget_stale(row.name, row.crafted, self._crafted(row.crafted))

    def _attacking(self, rows: list[Row]) -> list[Row]:
        """The rows, and stages of rows, whose attacks may be missing."""
        # Where the choice is made the stages of it, some of them spared, are not there.
        choosing = [r for r in rows if r.stages and self.engine.pending(r.attack_job)]
        return [*(row for row in rows if not row.stages), *with_stages(choosing)]

    # Attacking

    def attack(self, row: Row, among: Collection[int] | None = None) -> None:
        """Attack the images of a row that were not attacked before, by it or by a row like it;
        among: only those positions."""
        if row.stages:
            pending = self.engine.pending(row.attack_job)
            if among is not None:
                pending = sorted(set(pending) & set(among))
            if pending:
                choose(self.engine, row, pending, attack=self.attack, images=self.attacked_images)
            return

        def begin(pending: Sequence[int]) -> Compute:
            attacked, beside = parallel.replicate((row.attacked, row.beside))
            arguments, static = (row.attack, attacked, beside), {"fixed_key": row.fixed_key}
            lowered = craft.lower(*arguments, *self._attack_batch(row, pending), **static)
            program = compile_lowered(lowered)

            def compute(at: np.ndarray) -> list[dict]:
                batch = self._attack_batch(row, at)
                result, seconds = self.engine.timed(program, attacked, beside, *batch)
                result = Attacked(*(array[: len(at)] for array in result))
                return self._attack_records(row, at, result, seconds / len(at))

            return compute

        self.engine.do(row.attack_job, begin, doing="attacking", among=among)

    def _attack_batch(self, row: Row, positions: Sequence[int]) -> tuple:
        """What `craft` takes of one batch."""
        engine = self.engine
        size = engine.size(row.attack_job)
        at = np.resize(positions, size)
        points = {name: self._crafted(name) for name in row.starts}
        for name, images in points.items():
            engine.check_there(images, at, name)
        given = [images[at] for images in points.values()]
        starts = parallel.shard(np.stack(given, axis=1)) if given else None
        keys, *rest = engine.batch(positions, engine.images, size, "attack", "defense")
        if row.starts:
            # Draws of other attacks have chosen the images that this one climbs from: it draws
            # anew, or their luck would be taken for strength.
            keys = parallel.shard(keys_apart(engine.keys(at, "attack"), row.crafted))
        return keys, *rest, starts

    def _attack_records(
        self, row: Row, at: np.ndarray, result: Attacked, seconds: float
    ) -> list[dict]:
        """The lines of attacked images, which are written first."""
        engine = self.engine
        # Before the ball: where the defence has no answers, the attack is not to blame.
        for what, values in (
            ("losses before the attack", result.start_loss),
            ("attacked images", result.image),
            ("losses of attacked images", result.loss),
        ):
            engine.check_finite(values, at, f"{row.name}: {what}")
        distance = check_in_ball(result.image, engine.images[at], *row.ball)
        seals = engine.store.write(row.crafted, engine.images.shape, at, result.image)
        cost = row.attack_cost
        spent = {"queries": cost.runs, "nfe": cost.nfe, "nge": cost.nge, "seconds": seconds}
        each = zip(
            engine.indices[at].tolist(),
            *(values.tolist() for values in (result.loss, result.start_loss, result.interim)),
            distance.tolist(),
            strict=True,
        )
        records = [dict(zip(("index", *ATTACK_RESULTS), of, strict=True)) | spent for of in each]
        return sealed(records, {row.crafted: seals})

    # Scoring

    def _score(self, row: Row, images_of: ImagesOf | None) -> None:
        """Fresh draws of the row's defence on its attacked images, those of images_of, or clean
        ones."""
        if row.attack:  # some of them just now
            self.engine.forget_stale(row.name, row.crafted, self._crafted(row.crafted))

        def begin(pending: Sequence[int]) -> Compute:
            engine, size = self.engine, self.engine.size(row.score_job)
            if row.attack:
                images = self.attacked_images(row)
            else:
                images = images_of(row, pending) if images_of else engine.images
            engine.check_there(images, pending, row.crafted if row.attack else "")
            defense = parallel.replicate(row.defense)
            key = (row.defense_name, row.num_draws, size)
            if key not in self._scorers:
                keys, batch, _ = engine.batch(pending, images, size, "defense")
                lowered = score.lower(defense, keys, batch, num_draws=row.num_draws)
                self._scorers[key] = compile_lowered(lowered)

            def compute(at: np.ndarray) -> list[dict]:
                keys, batch, _ = engine.batch(at, images, size, "defense")
                scored, seconds = engine.timed(self._scorers[key], defense, keys, batch)
                logits = scored.logits[: len(at)]
                engine.check_finite(logits, at, f"{row.name}: logits of the defence")
                name, shape = f"{row.name}.logits", (len(engine.images), *logits.shape[1:])
                seals = {name: engine.store.write(name, shape, at, logits)}
                if row.attack:
                    seals[row.crafted] = [seal(images[i]) for i in at]
                each = zip(at, *scored, strict=False)  # the shorter `at` leaves the padding out
                records = [self._record(row, i, Scored(*s), seconds / len(at)) for i, *s in each]
                return sealed(records, seals)

            return compute

        self.engine.do(row.score_job, begin, doing="scoring")

    def _record(self, row: Row, at: int, scored: Scored, seconds: float) -> dict:
        """The line of the image at a position; its costs are the attack's and the scoring's."""
        index, label, nfe = self.engine.index(at), int(self.engine.labels[at]), int(scored.nfe)
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
        attack = self.engine.store.records(row.attack_records)[index]
        shown = {k: attack[k] for k in (*ATTACK_RESULTS, "chosen") if k in attack}
        return record | shown | {k: attack[k] + v for k, v in cost.items()}

    def _check_answers(self, row: Row) -> None:
        """FileError unless labels and logits, where these are there, say what the records do."""
        engine, records, logits = self.engine, self.engine.store.records(row.name), None
        for at in engine.positions(records):
            record = records[engine.index(at)]
            try:
                check_label(record, engine.labels[at])
                if logits is None:
                    logits = self._logits(row, np.shape(record["predictions"]))
                if there(logits[at]):
                    check_logits(record, logits[at], row.defense.average)
            except ValueError as error:
                raise FileError(
                    f"{engine.store.folder}: images.jsonl and arrays of {row.name}, index "
                    f"{record['index']}, do not agree: {error}; bring them back, or move the "
                    "folder elsewhere"
                ) from None

    def _logits(self, row: Row, runs: tuple[int, ...]) -> np.ndarray:
        """Of the runs of all draws, [n, N, S, K], NaN where not scored yet."""
        engine = self.engine
        shape = (len(engine.images), *runs, None)
        return engine.store.array(f"{row.name}.logits", shape, row.name, engine.indices)
