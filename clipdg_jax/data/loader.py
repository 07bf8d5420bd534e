"""Batches for training and evaluation, read, decoded and cropped ahead of need.

A training batch is a function of the configuration and the step: which records it holds (see
`plan`), in which rows, and how each is cropped. It does not depend on where the run was resumed,
nor on the number of processes, workers or threads. Nothing is saved of a loader.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from clipdg_jax.data import (
    images,
    mixture,
    plan,
    reading,
    resolve,
    schema,
    shards,
    shuffle,
)
from clipdg_jax.data import tokenizer as tokenizer_lib
from clipdg_jax.data import (
    workers as workers_lib,
)
from clipdg_jax.errors import UserError

Batch = workers_lib.Batch

# Batches by which block reads run ahead of the batch being made.
_READ_AHEAD = 4


class Batches(Iterator[Batch]):
    """An iterator over batches. Close it (or use `with`): worker processes run until then."""

    def __init__(self, elements: workers_lib.Elements, parts: int) -> None:
        self._elements = elements
        self._parts = parts

    def __next__(self) -> Batch:
        if self._parts == 1:
            return next(self._elements)
        first = next(self._elements)
        parts = [first, *(next(self._elements) for _ in range(self._parts - 1))]
        return {name: np.concatenate([part[name] for part in parts]) for name in first}

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and frees their shared memory; harmless when called again."""
        self._elements.close()


def train_batches(
    sources: Sequence[resolve.Source],
    mix: mixture.Mix,
    *,
    batch_size: int,
    steps: int,
    start_step: int = 0,
    seed: int,
    subset_seed: int = 0,
    image_size: int,
    context_length: int,
    tokenizer: tokenizer_lib.Tokenizer,
    crop_scale: tuple[float, float] = (0.9, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    shuffle_block: int = 1,
    shuffle_window: int = 64,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> Batches:
    """This process's rows of the batches `start_step` to `steps` - 1.

    A batch is a dict of arrays of b = batch_size / process_count rows: image uint8
    [b, size, size, 3], tokens int32 [b, context_length], valid bool [b] (False where the record
    could not be read or decoded: its image and tokens are zeros), label int32 [b] (-1 where there
    is none), source int32 [b] (index into `sources`), index int64 [b] (record within the source).

    Args:
      sources: the datasets of `mix.active_names`, in that order.
      batch_size: rows of the global batch; this process has rows
        [process_index, process_index + 1) x batch_size / process_count.
      seed, subset_seed: of order and crops; of which records an amount names.
      crop_scale, crop_ratio: of torchvision's RandomResizedCrop.
      shuffle_block: records that are read together; 1 shuffles record by record.
      shuffle_window: blocks that are shuffled together (in all of the global batch's rows). About
        this many blocks are kept in memory, over all processes, and as many read ahead.
      workers, threads, prefetch: processes, threads in each, and batches ready ahead in each.

    Raises:
      UserError: a source is empty or smaller than its amount; the batch does not divide by the
        processes; the shared memory is too small.
    """
    rows = _own_rows(batch_size, process_index, process_count)
    amounts = _amounts(sources, mix)
    if shuffle_block < 1 or shuffle_window < 1:
        raise UserError(
            f"data.shuffle_block, data.shuffle_window: {shuffle_block}, {shuffle_window}; "
            "give at least 1"
        )
    orders = [
        shuffle.Order(
            source.name,
            len(source),
            amount,
            seed=seed,
            subset_seed=subset_seed,
            block=shuffle_block,
        )
        for source, amount in zip(sources, amounts, strict=True)
    ]
    # In blocks, each worker makes the same rows of every batch, so that no two read one block.
    # Record by record, it makes whole batches, which saves putting them together.
    parts = max(1, min(workers, len(rows))) if shuffle_block > 1 else 1
    task = _TrainTask(
        sources=list(sources),
        plan=plan.Plan(
            orders, mix.active_values, batch_size=batch_size, steps=steps, window=shuffle_window
        ),
        rows=rows,
        parts=parts,
        seed=seed,
        image_size=image_size,
        context_length=context_length,
        tokenizer=tokenizer,
        stored=tuple(_stored_tokens(source, tokenizer) for source in sources),
        crop_scale=(crop_scale[0], crop_scale[1]),
        crop_ratio=(crop_ratio[0], crop_ratio[1]),
    )
    elements = workers_lib.Elements(
        task, start_step * parts, workers=workers, threads=threads, prefetch=prefetch
    )
    return Batches(elements, parts)


def eval_batches(
    source: resolve.Source,
    *,
    batch_size: int,
    image_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 4,
) -> Batches:
    """This process's rows of all records of a source, each once over all processes, in order.

    A batch is a dict of arrays of b = batch_size / process_count rows: image uint8
    [b, size, size, 3] (open_clip's test transform), label int32 [b] (-1 where there is none),
    index int64 [b] (the record; -1 in rows that only fill the last batch) and valid bool [b]
    (False there, and where the record could not be read or decoded). Every process has
    ceil(len(source) / batch_size) batches.

    Raises UserError as `train_batches` does.
    """
    if not len(source):
        raise UserError(f"{source.name}: holds no records; give a dataset that does")
    task = _EvalTask(
        source=source,
        batch_size=batch_size,
        rows=_own_rows(batch_size, process_index, process_count),
        image_size=image_size,
    )
    elements = workers_lib.Elements(task, 0, workers=workers, threads=threads, prefetch=prefetch)
    return Batches(elements, parts=1)


@dataclasses.dataclass
class _TrainTask:
    """Element e holds part e % parts of this process's rows of batch e // parts."""

    sources: list[resolve.Source]
    plan: plan.Plan
    rows: range
    parts: int
    seed: int
    image_size: int
    context_length: int
    tokenizer: tokenizer_lib.Tokenizer
    stored: tuple[bool, ...]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]

    def __post_init__(self) -> None:
        self._reader: reading.BlockReader | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __len__(self) -> int:
        return self.plan.steps * self.parts

    def batch_bytes(self) -> int:
        per_row = 3 * self.image_size**2 + 4 * self.context_length + 17
        return -(-len(self.rows) // self.parts) * per_row

    def __getitem__(self, element: int) -> Batch:
        step, part = divmod(element, self.parts)
        start, stop = (len(self.rows) * p // self.parts for p in (part, part + 1))
        rows = self.rows[start:stop]
        source, index = self.plan.rows(step, rows.start, rows.stop)
        reader = self._reader_at(step, rows, source, index)
        batch: Batch = {
            "image": np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8),
            "tokens": np.zeros((len(rows), self.context_length), np.int32),
            "valid": np.zeros(len(rows), bool),
            "label": np.full(len(rows), -1, np.int32),
            "source": source,
            "index": index,
        }
        seeds = shuffle.row_hashes(
            "crop",
            self.seed,
            step=step,
            batch_size=self.plan.batch_size,
            first_row=rows.start,
            rows=len(rows),
        )
        draws = shuffle.uniforms(seeds, images.BOX_DRAWS)
        for row, (i, k) in enumerate(zip(source.tolist(), index.tolist(), strict=True)):
            try:
                record = (
                    reader.record(i, k, step // self.plan.group)
                    if reader
                    else (self.sources[i].record(k))
                )
                image = images.decode(record.image)
            except (shards.RecordError, images.ImageError):
                batch["image"][row] = 0
                continue
            images.train_crop(
                image,
                draws[row],
                self.image_size,
                self.crop_scale,
                self.crop_ratio,
                out=batch["image"][row],
            )
            batch["tokens"][row] = self._tokens(record, self.stored[i])
            batch["label"][row] = record.label
            batch["valid"][row] = True
        return batch

    def _tokens(self, record: schema.Record, stored: bool) -> np.ndarray:
        tokens = record.tokens if stored else None
        if tokens is None:
            (tokens,) = self.tokenizer.encode([record.caption])
        return tokenizer_lib.fit_length(tokens, self.context_length, self.tokenizer.eot)

    def _reader_at(
        self, step: int, rows: range, source: np.ndarray, index: np.ndarray
    ) -> reading.BlockReader | None:
        """The reader of blocks, told what is wanted now and soon; None record by record."""
        orders, group = self.plan.orders, self.plan.group
        if orders[0].block == 1:
            return None
        with self._lock:
            if self._reader is None:
                self._reader = reading.BlockReader(self.sources, orders)
        self._reader.want(source, index, step // group)
        ahead = min(step + _READ_AHEAD, self.plan.steps - 1)
        self._reader.want(*self.plan.rows(ahead, rows.start, rows.stop), ahead // group)
        self._reader.release(step // group)
        return self._reader


@dataclasses.dataclass
class _EvalTask:
    """Element s holds this process's rows of batch s."""

    source: resolve.Source
    batch_size: int
    rows: range
    image_size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def batch_bytes(self) -> int:
        return len(self.rows) * (3 * self.image_size**2 + 13)

    def __getitem__(self, step: int) -> Batch:
        batch: Batch = {
            "image": np.zeros((len(self.rows), self.image_size, self.image_size, 3), np.uint8),
            "label": np.full(len(self.rows), -1, np.int32),
            "index": np.full(len(self.rows), -1, np.int64),
            "valid": np.zeros(len(self.rows), bool),
        }
        first = step * self.batch_size + self.rows.start
        members = range(first, min(first + len(self.rows), len(self.source)))
        if not members:
            return batch
        batch["index"][: len(members)] = members
        for row, record in enumerate(reading.read_members(self.source, members)):
            if isinstance(record, shards.RecordError):
                continue
            try:
                image = images.decode(record.image)
            except images.ImageError:
                continue
            batch["image"][row] = images.eval_crop(image, self.image_size)
            batch["label"][row] = record.label
            batch["valid"][row] = True
        return batch


def _own_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The global batch's rows that belong to this process."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size: {batch_size} does not divide by the {process_count} processes; "
            "give a positive multiple"
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


def _amounts(sources: Sequence[resolve.Source], mix: mixture.Mix) -> list[int]:
    """Records that each source's epochs hold: the mix's amounts, or all."""
    amounts = []
    pairs = zip(mix.active_names, mix.active_values, sources, strict=True)
    for name, value, source in pairs:
        if not len(source):
            raise UserError(f"{name}: holds no records; give a dataset that does, or weight 0")
        if mix.amounts and value > len(source):
            raise UserError(
                f"data.mix: asks for {int(value)} records of {name}, which holds {len(source)}; "
                "ask for at most that many"
            )
        amounts.append(int(value) if mix.amounts else len(source))
    return amounts


def _stored_tokens(source: resolve.Source, tokenizer: tokenizer_lib.Tokenizer) -> bool:
    """Whether a source's stored tokens are this tokeniser's; warns where they are another's."""
    if source.tokenizer is not None and source.tokenizer != tokenizer.hash:
        warnings.warn(
            f"{source.name}: its tokens are those of {source.tokenizer}, not {tokenizer.hash}; "
            "captions are tokenised while loading, which is slower",
            stacklevel=3,
        )
    return source.tokenizer == tokenizer.hash
