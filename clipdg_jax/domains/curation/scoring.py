"""Scores every image of a pool with a saved classifier, shard by shard.

Images are read, decoded and resized ahead, in threads, while the devices work on the batch before.
A batch never spans shards and is filled up to one size, so that a score does not depend on how the
pool was divided among processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import cv2
import jax
import numpy as np

from clipdg_jax.data import engine, files, pool, schema
from clipdg_jax.domains import calibration, classifier
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains.curation import table
from clipdg_jax.domains.dedup import hashes
from clipdg_jax.errors import UserError
from clipdg_jax.training import sharding

_AHEAD = 2  # batches that are made ready while one is scored
_DOMAIN = {name: number for number, name in enumerate(schema.DOMAINS)}

T = TypeVar("T")


class Spread(TypedDict):
    """How work is spread; see `engine.map_shards`."""

    processes: int
    process_index: int
    process_count: int


@dataclasses.dataclass(frozen=True)
class Saved:
    """A saved classifier, which each process loads when it first needs it.

    Attributes:
        directory: where it lies.
        digest: sha256 (hex) of its description, which holds the sums of all else.
    """

    directory: Path
    digest: str

    @classmethod
    def at(cls, directory: str | Path) -> Saved:
        """The classifier in a directory, loaded to see that it is sound.

        Raises UserError where there is none, or it is damaged.
        """
        directory = Path(directory)
        meta = directory / classifier.META
        saved = cls(directory, files.sha256(meta) if meta.is_file() else "")
        saved.load()
        return saved

    def load(self) -> classifier.Classifier:
        """The classifier on this process's devices."""
        return _load(self)

    @property
    def title(self) -> str:
        """Its method and the beginning of its digest, which no other classifier has."""
        return f"{self.load().name} {self.digest[:16]}"


@functools.lru_cache(maxsize=2)
def _load(saved: Saved) -> classifier.Classifier:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        # One CPU device uses all cores; several would divide batches into other shapes than those
        # of a worker process, which has one.
        devices = devices[:1]
    loaded = classifier.load(saved.directory, sharding.make_mesh(devices=devices))
    if files.sha256(saved.directory / classifier.META) != saved.digest:
        raise UserError(
            f"{saved.directory}: another classifier was saved here meanwhile; run the same "
            "command again"
        )
    return loaded


class _Scorer:
    """A classifier at work in this process, compiled and with its threads."""

    def __init__(self, saved: Saved, batch: int, threads: int):
        cv2.setNumThreads(1)  # one image a thread
        self.classifier = saved.load()
        self.threads = concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count() or 1)
        # Of a batch of nothing, one learns which sizes of images will be wanted.
        blank = inputs_lib.Inputs([schema.Record("", b"")] * batch)
        self.classifier.method.score(blank)
        self.sizes = blank.sizes


_scorer = functools.lru_cache(maxsize=1)(_Scorer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
    """What the items of one batch have become: records to score among drops, in order.

    Attributes:
        outcomes: with the row of each.
        inputs: the records', filled up.
        shapes: height and width of each record's image, None where it cannot be decoded.
        sha256, phash: of each record's image.
    """

    outcomes: list[tuple[int, schema.Record | engine.Drop]]
    inputs: inputs_lib.Inputs
    shapes: list[tuple[int, int] | None]
    sha256: list[str]
    phash: list[int]


@dataclasses.dataclass(frozen=True)
class Score:
    """The engine's function: from the items of a pool's shard to a `table.Row` for each image.

    Attributes:
        saved: the classifier.
        batch: images scored together.
        threads: that decode; 0 for one for each core.
        to_records: makes records of the items.
    """

    saved: Saved
    batch: int
    threads: int
    to_records: pool.ToRecords

    def __call__(self, items: Iterator[Any]) -> Iterator[table.Row | engine.Drop]:
        scorer = _scorer(self.saved, self.batch, self.threads)
        outcomes = enumerate(self.to_records(items))
        for batch, waited in _ahead(functools.partial(self._prepare, outcomes, scorer), _AHEAD):
            began = time.perf_counter()
            scores = np.zeros((0, 2), np.float32)
            if batch.shapes:
                scores = scorer.classifier.method.score(batch.inputs)[: len(batch.shapes)]
            decisions = calibration.decide(scores, scorer.classifier.calibration)
            took = time.perf_counter() - began
            readable = max(1, sum(shape is not None for shape in batch.shapes))
            number = itertools.count()
            for row, outcome in batch.outcomes:
                if isinstance(outcome, engine.Drop):
                    yield outcome
                    continue
                i = next(number)
                shape = batch.shapes[i]
                if shape is None:
                    yield engine.Drop("corrupt_image")
                    continue
                url = outcome.meta.get("url")
                yield table.Row(
                    row=row,
                    key=outcome.key,
                    natural=float(scores[i, 0]),
                    rendition=float(scores[i, 1]),
                    decision=int(decisions[i]),
                    width=shape[1],
                    height=shape[0],
                    sha256=batch.sha256[i],
                    phash=batch.phash[i],
                    label=outcome.label,
                    domain=_DOMAIN.get(outcome.domain, -1),
                    url=url if isinstance(url, str) else None,
                    waited=waited / readable,
                    scored=took / readable,
                )

    def _prepare(
        self, outcomes: Iterator[tuple[int, schema.Record | engine.Drop]], scorer: _Scorer
    ) -> _Batch | None:
        """Reads and decodes the next batch; None at the end of the shard."""
        taken: list[tuple[int, schema.Record | engine.Drop]] = []
        records: list[schema.Record] = []
        for row, outcome in outcomes:
            taken.append((row, outcome))
            if isinstance(outcome, schema.Record):
                records.append(outcome)
                if len(records) == self.batch:
                    break
        if not taken:
            return None
        filling = records[:1] or [schema.Record("", b"")]
        filled = records + filling * (self.batch - len(records))
        inputs = inputs_lib.Inputs(filled)
        looks = inputs.prepare(scorer.sizes, _look, scorer.threads.map)[: len(records)]
        small = np.zeros((len(records), hashes.SIDE, hashes.SIDE), np.uint8)
        for place, look in zip(small, looks, strict=True):
            if look is not None:
                place[:] = look[1]
        return _Batch(
            outcomes=taken,
            inputs=inputs,
            shapes=[None if look is None else look[0] for look in looks],
            sha256=[hashes.sha256(record.image) for record in records],
            phash=hashes.phashes(small)[0].tolist(),
        )


def _look(image: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """What is kept of a whole image: its height and width, and the thumbnail for its hash."""
    return image.shape[:2], hashes.thumbnail(image)


def _ahead(make: Callable[[], T | None], depth: int) -> Iterator[tuple[T, float]]:
    """What `make` returns, until None, and the seconds that each was waited for.

    One thread makes up to `depth` of them ahead.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as maker:
        pending = collections.deque(maker.submit(make) for _ in range(depth))
        try:
            while True:
                began = time.perf_counter()
                made = pending.popleft().result()
                waited = time.perf_counter() - began
                if made is None:
                    return
                pending.append(maker.submit(make))
                yield made, waited
        finally:
            for future in pending:
                future.cancel()


def score(
    shards: Sequence[engine.InputShard],
    saved: Saved,
    directory: Path,
    *,
    identity: Mapping[str, Any],
    to_records: pool.ToRecords,
    batch: int = 256,
    threads: int = 0,
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    title: str = "scoring",
) -> engine.Counts:
    """Scores the shards of a pool to files in `directory`, or goes on doing so.

    Args:
        shards: of the pool.
        saved: the classifier.
        directory: of the scores; `table` tells what a file holds.
        identity: what tells this pool from another.
        to_records: makes records of the items.
        batch: images scored together.
        threads: that decode, in each process; 0 for one for each core.
        processes: on this host. On an accelerator one process scores, however many are asked for.
        process_index, process_count: see `engine.map_shards`.
        title: of the progress bar.

    Returns:
        The counts of this host's shards.

    Raises:
        UserError: the directory holds scores of another classifier or pool; no space left.
        engine.ShardError: a shard failed.
    """
    if jax.default_backend() != "cpu":
        processes = 0
    told = {
        "classifier": saved.title,
        **identity,
        "batch": batch,
        "keep_uncaptioned": to_records.keep_uncaptioned,
    }
    return engine.map_shards(
        shards,
        Score(saved, batch, threads, to_records),
        table.Sink(directory),
        directory,
        config=told,
        processes=processes,
        process_index=process_index,
        process_count=process_count,
        title=title,
    )
