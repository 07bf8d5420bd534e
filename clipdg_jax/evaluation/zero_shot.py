"""Zero-shot classification of suites by a CLIP, on all processes and devices.

Which classes are answered: a test set is evaluated over the classes that occur among its own
labels, not over all that its manifest lists. So a test set that holds 200 of 1000 classes is a
200-way task, and its chance level is 1/200; no list of classes is written down anywhere.

Images and prompts are embedded on the devices, in batches of one padded shape, sharded over the
mesh; the similarities are taken on the host in float32 (`predictions.score`).
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jaxtyping import Float32

from clipdg_jax.data import loader, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import predictions, prompts, suites
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding

Results = dict[str, dict[str, dict[str, Any]]]  # suite -> test set -> measures


class Evaluator:
    """Evaluates parameters on suites: compiled once, called with any parameters of the model.

    Every process of the run must make the same calls; each gets the same results.
    """

    def __init__(
        self,
        model: model_lib.Model,
        tokens: tokenizer.Tokenizer,
        suite_list: Sequence[suites.Suite],
        mesh: jax.sharding.Mesh,
        *,
        batch_size: int = 256,
        workers: int = 0,
    ):
        """
        Args:
          model: the model; its configuration gives the image size and the context length.
          tokens: the tokeniser that the model was trained with.
          suite_list: what to evaluate (`suites.load`).
          mesh: the devices; batches are split over all of them.
          batch_size: images or prompts per global batch, rounded up to a multiple of the devices.
          workers: processes that decode images; 0 decodes in this process.
        """
        self._model, self._mesh, self._workers = model, mesh, workers
        self._suites = tuple(suite_list)
        self._batch_size = self._round_up(batch_size)
        rows = sharding.batch_sharding(mesh)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._encode_image = jax.jit(model.encode_image, out_shardings=rows)
        self._encode_text = jax.jit(model.encode_text, out_shardings=everywhere)
        # Test sets that share classes and templates share one head, tokenised once.
        length = model.config.text.context_length
        self._tokens = {
            _head(test_set): tokens(prompts.fill(test_set.templates, _names(test_set)), length)
            for suite in self._suites
            for test_set in suite.test_sets
        }

    def __call__(self, params: Mapping[str, jax.Array]) -> Results:
        """{suite: {test set: measures}}, as JSON takes it (`Predictions.measures`)."""
        return measure(self.predict(params))

    def predict(
        self, params: Mapping[str, jax.Array]
    ) -> dict[str, dict[str, predictions.Predictions]]:
        """The model's answer for every image: {suite: {test set: Predictions}}.

        Parameters that are not the model's, such as a loss's bias, are ignored. Raises UserError
        where a test set has no usable image, or the embeddings are not finite.
        """
        params = {name: params[name] for name in self._model.shapes()}
        heads = {
            head: predictions.class_embeddings(self._embed_prompts(params, tokens), len(head[1]))
            for head, tokens in self._tokens.items()
        }
        return {
            suite.name: {
                test_set.name: self._predict_one(
                    params, test_set, heads[_head(test_set)], f"{suite.name}/{test_set.name}"
                )
                for test_set in suite.test_sets
            }
            for suite in self._suites
        }

    def _round_up(self, rows: int) -> int:
        """The next multiple of the number of devices."""
        return math.ceil(rows / self._mesh.size) * self._mesh.size

    def _embed_prompts(self, params, tokens) -> Float32[np.ndarray, "prompts e"]:
        rows = sharding.batch_sharding(self._mesh)
        size = min(self._batch_size, self._round_up(len(tokens)))
        parts = []
        for start in range(0, len(tokens), size):
            batch = tokens[start : start + size]
            padded = np.zeros((size, tokens.shape[1]), np.int32)
            padded[: len(batch)] = batch
            # Every process holds all prompts and hands its devices their rows.
            on_devices = jax.make_array_from_callback(padded.shape, rows, padded.__getitem__)
            parts.append(self._encode_text(params, on_devices)[: len(batch)])
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    def _predict_one(self, params, test_set, head, name) -> predictions.Predictions:
        local = self._embed_images(params, test_set.source, name)
        labels = _gather(local.label)
        valid = _gather(local.valid)
        labelled = labels >= 0
        counted = valid & labelled
        # Every process decides on all rows, so that all of them raise or none does.
        finite = _gather(np.isfinite(local.embedding).all(axis=1))
        if not counted.any():
            raise UserError(
                f"test set {name}: none of its {len(test_set.source)} records decodes and has a "
                "label; import it again"
            )
        if not finite[valid].all():
            raise UserError(
                f"test set {name}: the model's embeddings are not finite; evaluate another "
                "checkpoint"
            )
        if labels[counted].max() >= len(test_set.classes):
            raise UserError(
                f"test set {name}: label {labels[counted].max()} has no class; the manifest lists "
                f"{len(test_set.classes)}"
            )
        evaluated = np.zeros(len(test_set.classes), bool)
        evaluated[labels[counted]] = True
        # Rows that do not count are scored against any evaluated class, and dropped below.
        targets = np.where(local.valid & (local.label >= 0), local.label, evaluated.argmax())
        answers = predictions.score(
            local.embedding, head, targets, evaluated, owner=_owner(test_set)
        )
        prediction, probability, in_top5 = (_gather(column)[counted] for column in answers)
        index = _gather(local.index)[counted]
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

    def _embed_images(self, params, source, name) -> "_Local":
        """Embeds this process's rows; the same number of rows on every process."""
        batches = loader.eval_batches(
            source,
            batch_size=self._batch_size,
            image_size=self._model.config.vision.image_size,
            workers=self._workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        columns: dict[str, list[Any]] = collections.defaultdict(list)
        embeddings = columns["embedding"]
        steps = math.ceil(len(source) / self._batch_size)
        with batches:
            for batch in _progress(batches, steps, name):
                image = sharding.put_batch({"image": batch["image"]}, self._mesh)["image"]
                embeddings.append(self._encode_image(params, image))
                for column, dtype in (("label", np.int32), ("index", np.int32), ("valid", bool)):
                    columns[column].append(batch[column].astype(dtype))
                if len(embeddings) > 1:  # one batch late: the devices are never waited for
                    embeddings[-2] = _local_rows(embeddings[-2])
        embeddings[-1] = _local_rows(embeddings[-1])
        return _Local(**{key: np.concatenate(parts) for key, parts in columns.items()})


@dataclasses.dataclass(frozen=True)
class _Local:
    """This process's rows of a test set, padding included."""

    embedding: Float32[np.ndarray, "rows e"]
    label: np.ndarray
    index: np.ndarray
    valid: np.ndarray


def measure(answers: Mapping[str, Mapping[str, predictions.Predictions]]) -> Results:
    """{suite: {test set: measures}} of what `Evaluator.predict` returned."""
    return {
        suite: {name: answer.measures() for name, answer in test_sets.items()}
        for suite, test_sets in answers.items()
    }


def summary(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Per suite, the mean top-1 of each domain's test sets (each test set counts the same)."""
    means = {}
    for suite, test_sets in results.items():
        domains = collections.defaultdict(list)
        for measures in test_sets.values():
            domains[measures["domain"]].append(measures["top1"])
        means[suite] = {domain: math.fsum(top1) / len(top1) for domain, top1 in domains.items()}
    return means


def scalars(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Every top-1 as `zero_shot/<suite>/<test set>`: the metrics of a step, for logs and plots."""
    return {
        f"zero_shot/{suite}/{name}": measures["top1"]
        for suite, test_sets in results.items()
        for name, measures in test_sets.items()
    }


def _head(test_set: suites.TestSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(_names(test_set)), test_set.templates


def _names(test_set: suites.TestSet) -> list[str]:
    """The names of all classes, one after the other."""
    return [name for names in test_set.prompt_names for name in names]


def _owner(test_set: suites.TestSet) -> np.ndarray:
    """The class that each of them is a name of."""
    counts = [len(names) for names in test_set.prompt_names]
    return np.repeat(np.arange(len(counts)), counts)


def _local_rows(array: jax.Array) -> Float32[np.ndarray, "rows e"]:
    """This process's rows, in the order in which `sharding.put_batch` took them."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start], np.float32) for start in sorted(shards)])


def _gather(column: np.ndarray) -> np.ndarray:
    """The rows of all processes, on every process."""
    return np.asarray(multihost_utils.process_allgather(column, tiled=True))


def _progress(batches, steps: int, name: str):
    """A bar on the first process's terminal, for evaluations of more than five seconds."""
    quiet = True if jax.process_index() else None  # None: only where stderr is a terminal
    return tqdm.tqdm(
        batches, total=steps, desc=f"evaluate {name}", delay=5, leave=False, disable=quiet
    )
