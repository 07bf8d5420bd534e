"""Embeddings of labelled images and of prompts, and the answers that follow from them.

On all processes and devices, in batches of one padded shape, sharded over the mesh.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float32, Int32

from clipdg_jax.data import loader, packing, resolve
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import predictions, suites
from clipdg_jax.models import text as text_lib
from clipdg_jax.training import sharding

# (embeddings [n, ...], labels [n], evaluated classes [c]) -> as `predictions.score`.
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


_KEPT_BYTES = 1 << 27  # Of a dataset's decoded images on a process, at most.


@dataclasses.dataclass(frozen=True)
class Rows:
    """This process's rows of a dataset, padding included, in order.

    embedding: as the encoder gave it. label: -1 where there is none. index: the record, -1 for
    padding. valid: False for padding, and for records that do not decode.
    """

    embedding: Float32[np.ndarray, "rows ..."]
    label: Int32[np.ndarray, " rows"]
    index: Int32[np.ndarray, " rows"]
    valid: Bool[np.ndarray, " rows"]


def round_up(rows: int, mesh: jax.sharding.Mesh) -> int:
    """The next multiple of the number of devices."""
    return math.ceil(rows / mesh.size) * mesh.size


class Images:
    """This process's rows of a dataset in batches of one padded shape, again at each iteration.

    Few images are decoded once and kept.

    Args:
      source: what is decoded.
      batch_size: of the global batch, a multiple of the devices.
      image_size: see `loader.eval_batches`.
      workers: processes that decode; 0 decodes in this process.
    """

    def __init__(self, source: resolve.Source, *, batch_size: int, image_size: int, workers: int):
        self._source = source
        self._options = {
            "batch_size": batch_size,
            "image_size": image_size,
            "workers": workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        self._steps = math.ceil(len(source) / batch_size)
        size = self._steps * batch_size // jax.process_count() * 3 * image_size**2
        self._few = size <= _KEPT_BYTES
        self._kept: list[loader.Batch] = []

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[loader.Batch]:
        if len(self._kept) == self._steps:
            yield from self._kept
            return
        kept = []
        with loader.eval_batches(self._source, **self._options) as batches:
            for batch in batches:
                if self._few:
                    # Copies: a worker's arrays lie in shared memory, of which there is little.
                    kept.append({name: np.array(column) for name, column in batch.items()})
                yield batch
        self._kept = kept


def embed_images(
    encode: Callable[[Array], Array], images: Images, mesh: jax.sharding.Mesh, name: str
) -> Rows:
    """Embeds this process's rows; the same number of rows on every process.

    Args:
      encode: uint8 [b, s, s, 3] -> float32 [b, ...], rows sharded as `sharding.batch_sharding`.
      images: what to embed.
      name: for the progress bar.
    """
    columns: dict[str, list[Any]] = collections.defaultdict(list)
    embeddings = columns["embedding"]
    for batch in _progress(images, len(images), name):
        embeddings.append(encode(sharding.put_batch({"image": batch["image"]}, mesh)["image"]))
        for column, dtype in (("label", np.int32), ("index", np.int32), ("valid", bool)):
            columns[column].append(batch[column].astype(dtype))
        if len(embeddings) > 1:  # one batch late: the devices are never waited for
            embeddings[-2] = _local_rows(embeddings[-2])
    embeddings[-1] = _local_rows(embeddings[-1])
    return Rows(**{key: np.concatenate(parts) for key, parts in columns.items()})


def embed_prompts(
    encode: Callable[[Array, text_lib.Packing], Array],
    tokens: Int32[np.ndarray, "prompts n"],
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> Float32[np.ndarray, "prompts e"]:
    """Embeds all prompts, on every process, several in each row of tokens.

    Args:
      encode: (int32 [rows, slots], where the prompts lie in them) -> float32 [b, e], whole on
        every device.
      batch_size: rows that go through the tower at a time, about.
    """
    order, parts = pack_prompts(tokens, mesh.size, batch_size)
    by_rows = sharding.batch_sharding(mesh)

    def put(array: np.ndarray) -> Array:
        # Every process holds all prompts and hands its devices their rows.
        return jax.make_array_from_callback(array.shape, by_rows, array.__getitem__)

    found = [
        encode(put(part["tokens"]), text_lib.Packing(put(part["positions"]), put(part["ends"])))
        for part in parts
    ]
    features = np.concatenate([np.asarray(part, np.float32) for part in found])
    return features[np.argsort(order)][: len(tokens)]


def pack_prompts(
    tokens: Int32[np.ndarray, "prompts n"], devices: int, batch_size: int
) -> tuple[np.ndarray, list[packing.Packed]]:
    """Prompts in batches of one shape, packed, each device's rows apart.

    Returns:
      Which prompt each feature is of, in their order; those from `prompts` on are padding. And
      the batches, as `packing.pack` gives them.
    """
    columns = packing.columns(tokens.shape[1])
    slots = int((tokens.argmax(axis=1) + 1).sum())
    steps = math.ceil(slots / (columns * batch_size))
    groups = steps * devices
    captions = math.ceil(len(tokens) / groups)
    # Neighbours, which are alike in length, are spread over the groups. Padding is one token.
    order = np.arange(groups * captions).reshape(captions, groups).T.reshape(-1)
    padded = np.zeros((len(order), tokens.shape[1]), np.int32)
    padded[: len(tokens)] = tokens
    layout = packing.Layout(groups, captions, columns, tuple(range(1, captions + 1)))
    packed = packing.pack(padded[order], layout)
    parts = {name: np.split(array, steps) for name, array in packed.items()}
    return order, [{name: parts[name][step] for name in parts} for step in range(steps)]


def answer(
    rows: Rows, test_set: suites.TestSet, score: Score, name: str
) -> predictions.Predictions:
    """The answers for a test set's images, over the classes that occur among its labels.

    Args:
      rows: this process's.
      score: given the embeddings, targets and classes to answer; the targets of rows that do not
        count are any of those classes.
      name: of the test set, in errors.

    Raises UserError where it has no usable image, a label has no class, or the embeddings are not
    finite.
    """
    labels, valid = _gather(rows.label), _gather(rows.valid)
    labelled = labels >= 0
    counted = valid & labelled
    # Every process decides on all rows, so that all of them raise or none does.
    finite = _gather(np.isfinite(rows.embedding).reshape(len(rows.label), -1).all(axis=1))
    if not counted.any():
        raise UserError(
            f"test set {name}: none of its {len(test_set.source)} records decodes and has a "
            "label; import it again"
        )
    if not finite[valid].all():
        raise UserError(
            f"test set {name}: the model's embeddings are not finite; evaluate another checkpoint"
        )
    if labels[counted].max() >= len(test_set.classes):
        raise UserError(
            f"test set {name}: label {labels[counted].max()} has no class; the manifest lists "
            f"{len(test_set.classes)}"
        )
    evaluated = np.zeros(len(test_set.classes), bool)
    evaluated[labels[counted]] = True
    # Rows that do not count are scored against any evaluated class, and dropped below.
    targets = np.where(rows.valid & (rows.label >= 0), rows.label, evaluated.argmax())
    answers = score(rows.embedding, targets, evaluated)
    prediction, probability, in_top5 = (_gather(column)[counted] for column in answers)
    index = _gather(rows.index)[counted]
    order = np.argsort(index)
    return predictions.Predictions(
        domain=test_set.domain,
        classes=test_set.classes,
        evaluated=evaluated,
        index=index[order].astype(np.int64),
        label=labels[counted][order],
        prediction=prediction[order],
        probability=probability[order],
        in_top5=in_top5[order],
        invalid=len(test_set.source) - int(valid.sum()),
        unlabelled=int((valid & ~labelled).sum()),
    )


def _local_rows(array: jax.Array) -> Float32[np.ndarray, "rows ..."]:
    """This process's rows, in the order in which `sharding.put_batch` took them."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start], np.float32) for start in sorted(shards)])


def _gather(column: np.ndarray) -> np.ndarray:
    """The rows of all processes, on every process."""
    return np.asarray(multihost_utils.process_allgather(column, tiled=True))


def _progress(batches: Images, steps: int, name: str):
    """A bar on the first process's terminal, for evaluations of more than five seconds."""
    quiet = True if jax.process_index() else None  # None: only where stderr is a terminal
    return tqdm.tqdm(
        batches, total=steps, desc=f"evaluate {name}", delay=5, leave=False, disable=quiet
    )
