"""Zero-shot classification of suites by a CLIP, on all processes and devices.

Which classes are answered: a test set is evaluated over the classes that occur among its own
labels, not over all that its manifest lists. So a test set that holds 200 of 1000 classes is a
200-way task, and its chance level is 1/200; no list of classes is written down anywhere.

Images and prompts are embedded on the devices, in batches of one padded shape, sharded over the
mesh; the similarities are taken on the host in float32 (`predictions.score`).
"""

import collections
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipdg_jax.data import tokenizer
from clipdg_jax.evaluation import embedding, predictions, prompts, suites
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
        self._model, self._mesh = model, mesh
        self._suites = tuple(suite_list)
        self._batch_size = embedding.round_up(batch_size, mesh)
        self._images = {
            f"{suite.name}/{test_set.name}": embedding.Images(
                test_set.source,
                batch_size=self._batch_size,
                image_size=model.config.vision.image_size,
                workers=workers,
            )
            for suite in self._suites
            for test_set in suite.test_sets
        }
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
            head: predictions.class_embeddings(
                embedding.embed_prompts(
                    functools.partial(self._encode_text, params),
                    tokens,
                    self._mesh,
                    self._batch_size,
                ),
                len(head[1]),
            )
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

    def _predict_one(self, params, test_set, head, name) -> predictions.Predictions:
        rows = embedding.embed_images(
            functools.partial(self._encode_image, params),
            self._images[name],
            self._mesh,
            name,
        )

        def score(images, targets, evaluated):
            return predictions.score(images, head, targets, evaluated, owner=_owner(test_set))

        return embedding.answer(rows, test_set, score, name)


def record_keys(
    suite_list: Sequence[suites.Suite],
    answers: Mapping[str, Mapping[str, predictions.Predictions]],
) -> dict[tuple[str, str], list[str]]:
    """(suite, test set) -> the keys of the records that were answered, which it reads."""
    return {
        (suite.name, test_set.name): [
            test_set.source.record(i).key for i in answers[suite.name][test_set.name].index.tolist()
        ]
        for suite in suite_list
        for test_set in suite.test_sets
    }


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
