"""What a model answered for each image of a test set: scoring, measures and Parquet."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int

from clipdg_jax.data import files

TOP5_MIN_CLASSES = 10  # with fewer classes, top-5 says little
_ROWS = 4096  # images scored at once: bounds the memory of a 1000-class test set to 16 MB


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The answers for the images of one test set that count, in the order of their index.

    index: record index within the dataset. label, prediction: class ids in the dataset's
    numbering. probability: of the predicted class, among the `evaluated` classes. in_top5: the
    label is among the five best. invalid and unlabelled count the records left out, because they
    do not decode, or have no label.
    """

    domain: str
    classes: tuple[str, ...]
    evaluated: Bool[np.ndarray, " classes"]
    index: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    probability: Float32[np.ndarray, " n"]
    in_top5: Bool[np.ndarray, " n"]
    invalid: int
    unlabelled: int

    def measures(self) -> dict[str, Any]:
        """JSON-able measures: top1 (micro: over images), n, classes, chance, and what was left out.

        `top5` is there from `TOP5_MIN_CLASSES` classes on.
        """
        classes = int(self.evaluated.sum())
        measures = {
            "domain": self.domain,
            "top1": float(np.mean(self.prediction == self.label)),
            "n": len(self.label),
            "classes": classes,
            "chance": 1 / classes,
            "invalid": self.invalid,
            "unlabelled": self.unlabelled,
        }
        if classes >= TOP5_MIN_CLASSES:
            measures["top5"] = float(np.mean(self.in_top5))
        return measures


def score(
    images: Float[np.ndarray, "n e"],
    classes: Float[np.ndarray, "c e"],
    labels: Int[np.ndarray, " n"],
    evaluated: Bool[np.ndarray, " c"],
    scale: float = 100.0,
    bias: Float[np.ndarray, " names"] | None = None,
    owner: Int[np.ndarray, " names"] | None = None,
) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """CLIP's zero-shot head: logits are `scale` * image . class, over the evaluated classes.

    Or any linear head: with its weights as `classes`, a scale of 1, and its bias.

    Runs on the host, in float32 whatever the model computed in: accelerators would by default
    multiply float32 at lower precision, and the answers must not depend on the device. Ties go
    to the class that comes first.

    Args:
      images: L2-normalised image embeddings.
      classes: L2-normalised class embeddings (`class_embeddings`), or several for a class.
      labels: class ids.
      evaluated: the classes that can be answered; every label must be one of them.
      scale: what the similarities are multiplied by.
      bias: added to the logit of each row of `classes`, where there is one.
      owner: the class of each row of `classes`, rising, where they are not one each: a class's
        logit is then its rows' largest.

    Returns the predicted class ids, their softmax probabilities, and whether the label is among
    the five best.
    """
    ids = np.flatnonzero(evaluated)
    columns = np.full(len(evaluated), -1)
    columns[ids] = np.arange(len(ids))
    if owner is None:
        owner = np.arange(len(evaluated))
    rows_of = np.flatnonzero(evaluated[owner])
    starts = np.searchsorted(owner[rows_of], ids)
    head = np.asarray(classes, np.float32)[rows_of].T
    offset = np.zeros(len(owner)) if bias is None else bias
    offset = np.asarray(offset, np.float32)[rows_of]
    prediction = np.empty(len(images), np.int32)
    probability = np.empty(len(images), np.float32)
    in_top5 = np.empty(len(images), bool)
    for start in range(0, len(images), _ROWS):
        rows = slice(start, start + _ROWS)
        logits = np.float32(scale) * (np.asarray(images[rows], np.float32) @ head)
        logits = logits + offset[None, :]
        if len(starts) < logits.shape[1]:
            logits = np.maximum.reduceat(logits, starts, axis=1)
        best = logits.argmax(axis=1)
        top = np.take_along_axis(logits, best[:, None], axis=1)
        target = columns[labels[rows]][:, None]
        own = np.take_along_axis(logits, target, axis=1)
        ties_before = (logits == own) & (np.arange(len(ids))[None, :] < target)
        prediction[rows] = ids[best]
        probability[rows] = 1 / np.exp(logits - top).sum(axis=1)
        in_top5[rows] = ((logits > own) | ties_before).sum(axis=1) < 5
    return prediction, probability, in_top5


def class_embeddings(
    prompts: Float[np.ndarray, "prompts e"], n_templates: int
) -> Float32[np.ndarray, "c e"]:
    """Per class, the mean of its L2-normalised prompt embeddings, normalised again.

    `prompts` is class-major, as `prompts.fill` makes them: `c * n_templates` rows.
    """
    grouped = np.asarray(prompts, np.float32).reshape(-1, n_templates, prompts.shape[1])
    mean = grouped.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def write(
    path: str | os.PathLike[str],
    items: Sequence[tuple[str, str, Predictions, Sequence[str]]],
    **origin: str,
) -> None:
    """Writes one Parquet file, whole or not at all, with one row per image.

    Args:
      path: the file to write.
      items: (suite, test set, predictions, the record keys of `predictions.index`).
      **origin: strings kept as metadata of the file (checkpoint, step, ...).

    Columns: suite, test_set, domain, key, index, label, prediction, label_class, predicted_class,
    probability, correct. Ids are in each dataset's numbering. Raises UserError where the disk is
    full or refuses.
    """
    columns = collections.defaultdict(list)
    for suite, test_set, p, keys in items:
        n = len(p.label)
        names = pa.array(p.classes, pa.string())
        for column, value in (("suite", suite), ("test_set", test_set), ("domain", p.domain)):
            columns[column].append(_repeat(value, n))
        columns["key"].append(pa.array(keys, pa.string()))
        columns["index"].append(pa.array(p.index, pa.int64()))
        columns["label"].append(pa.array(p.label, pa.int32()))
        columns["prediction"].append(pa.array(p.prediction, pa.int32()))
        columns["label_class"].append(_named(p.label, names))
        columns["predicted_class"].append(_named(p.prediction, names))
        columns["probability"].append(pa.array(p.probability, pa.float32()))
        columns["correct"].append(pa.array(p.prediction == p.label))
    table = pa.table({name: pa.chunked_array(parts) for name, parts in columns.items()})
    table = table.unify_dictionaries().replace_schema_metadata(origin)
    with files.whole(pathlib.Path(path)) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")


def _repeat(value: str, n: int) -> pa.DictionaryArray:
    return _named(np.zeros(n, np.int32), pa.array([value]))


def _named(ids: Int[np.ndarray, " n"], names: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(ids, pa.int32()), names)
