"""What is measured of a fine-tuned model, and of those between it and the pre-trained one.

Each data set's images are decoded once for all interpolations, and few images once for all models.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipdg_jax import errors
from clipdg_jax.evaluation import embedding, predictions, suites
from clipdg_jax.finetuning import drift, parts, setting
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding

Measured = dict[str, Any]


def interpolate(
    before: Mapping[str, Array], after: Mapping[str, Array], alpha: Float[Array, ""] | float
) -> dict[str, Array]:
    """(1 - alpha) before + alpha after, of every tensor; at 0 and 1 those themselves, to the bit.

    Args:
      before, after: by canonical name; those of `after` are interpolated.
      alpha: in [0, 1]; may be traced.
    """
    alpha = jnp.asarray(alpha, jnp.float32)

    def between(a: Array, b: Array) -> Array:
        # (1 - 1) a + 1 b is not b where a is infinite, nor where b is -0.
        return jnp.where(alpha == 0, a, jnp.where(alpha == 1, b, (1 - alpha) * a + alpha * b))

    return {name: between(before[name], value) for name, value in after.items()}


class Measurer:
    """Measures parameters on test sets: compiled once, called with any of the model's parameters.

    Args:
      pretrained: what is interpolated with, and what drift is measured from.
      classes: of the head.
      test_sets: by what they are called in the results.
      validation: the test sets whose images are only answered: no drift is measured on them.
      batch_size: images at a time, rounded up to a multiple of the devices.
      workers: processes that decode images; 0 decodes in this one.
    """

    def __init__(
        self,
        pretrained: setting.Pretrained,
        classes: Sequence[str],
        test_sets: Mapping[str, suites.TestSet],
        validation: Sequence[str] = (),
        *,
        batch_size: int = 256,
        workers: int = 0,
    ):
        self._pretrained, self._test_sets = pretrained, dict(test_sets)
        self._numbers = {name: i for i, name in enumerate(classes)}
        self._validation = tuple(validation)
        self._images = {
            name: embedding.Images(
                test_set.source,
                batch_size=embedding.round_up(batch_size, pretrained.mesh),
                image_size=pretrained.model.config.vision.image_size,
                workers=workers,
            )
            for name, test_set in test_sets.items()
        }
        self._features: dict[str, embedding.Rows] = {}  # The pre-trained model's, by test set.

        def encode(before: parts.Params, after: parts.Params, alpha: Array, image: Array) -> Array:
            params = interpolate(before, after, alpha)
            return pretrained.model.encode_image(params, image)

        rows = sharding.batch_sharding(pretrained.mesh)
        self._encode = jax.jit(encode, out_shardings=rows)
        self._interpolate = jax.jit(interpolate)

    def __call__(self, params: parts.Params, alphas: Sequence[float] = (1.0,)) -> list[Measured]:
        """For each alpha, JSON-able: accuracies, drift of features and distance of weights.

        Args:
          params: the image tower's and the head's; or, without a head, both towers', of which the
            head is made by prompts.
          alphas: each in [0, 1], see `interpolate`.

        Raises:
          UserError: a test set holds a class that the training set lacks, or cannot be evaluated.
        """
        before = self._pretrained.params
        heads = [self._head(params, alpha) for alpha in alphas]
        distance = drift.distances(before, params)
        found: list[Measured] = [
            {
                "alpha": float(alpha),
                "test_sets": {},
                # Exact: the interpolation moves every weight by alpha times the whole way.
                "distance": {name: alpha * far for name, far in distance.items()},
            }
            for alpha in alphas
        ]
        still = self._is_still(params)
        for name in self._test_sets:
            rows = self._interpolated(name, params, alphas, still)
            for i, head in enumerate(heads):
                answers = self._answer(name, rows, rows.embedding[:, i], head)
                measures = answers.measures()
                if name not in self._validation:
                    counted = np.isin(rows.index, answers.index)
                    was, now = self._reference(name).embedding[counted], rows.embedding[counted, i]
                    measures["cosine"] = drift.cosine(was, now)
                    measures["cka"] = drift.linear_cka(was, now)
                found[i]["test_sets"][name] = measures
        return found

    def _head(self, params: parts.Params, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights [e, c] and bias [c] of the classifier at an interpolation."""
        before = self._pretrained.params
        if parts.HEAD_WEIGHT in params:
            own = {k: v for k, v in params.items() if k.startswith(parts.HEAD)}
            at = self._interpolate(before, own, alpha)
            return np.asarray(at[parts.HEAD_WEIGHT]), np.asarray(at[parts.HEAD_BIAS])
        weight = self._pretrained.head(self._interpolate(before, params, alpha))
        return weight, np.zeros(weight.shape[1], np.float32)

    def _is_still(self, params: parts.Params) -> bool:
        """Whether the image tower is the pre-trained one, as where the head alone was trained."""
        before = self._pretrained.params
        return all(
            value is before[name] or np.array_equal(value, before[name])
            for name, value in params.items()
            if name.startswith(model_lib.IMAGE_TOWER)
        )

    def _interpolated(
        self, name: str, params: parts.Params, alphas: Sequence[float], still: bool
    ) -> embedding.Rows:
        """Features [rows, alphas, e] of a test set; of a still tower, those of the start."""
        moved = [] if still else [alpha for alpha in alphas if alpha]
        rows = self._embed(name, params, moved) if moved else self._reference(name)
        if len(moved) == len(alphas):
            return rows
        columns = iter(np.moveaxis(rows.embedding, 1, 0) if moved else ())
        start = self._reference(name).embedding
        each = [next(columns) if moved and alpha else start for alpha in alphas]
        return dataclasses.replace(rows, embedding=np.stack(each, 1))

    def _embed(self, name: str, params: parts.Params, alphas: Sequence[float]) -> embedding.Rows:
        """Features [rows, alphas, e] of a test set."""
        after = {k: v for k, v in params.items() if k.startswith(model_lib.IMAGE_TOWER)}
        before = {k: self._pretrained.params[k] for k in after}

        def encode(image: Array) -> Array:
            each = [self._encode(before, after, np.float32(a), image) for a in alphas]
            return jnp.stack(each, axis=1)

        return embedding.embed_images(encode, self._images[name], self._pretrained.mesh, name)

    def _reference(self, name: str) -> embedding.Rows:
        """The pre-trained model's features of a test set, [rows, e]."""
        if name not in self._features:
            rows = self._embed(name, self._pretrained.params, (1.0,))
            self._features[name] = dataclasses.replace(rows, embedding=rows.embedding[:, 0])
        return self._features[name]

    def _columns(self, name: str) -> list[int]:
        """The head's classes that a test set's class is, or is mapped to; [-1] for none."""
        if name in self._numbers:
            return [self._numbers[name]]
        ids = suites.wordnet_ids(name)
        return [self._numbers[i] for i in ids if i in self._numbers] or [-1]

    def _answer(
        self,
        name: str,
        rows: embedding.Rows,
        features: Float[np.ndarray, "rows e"],
        head: tuple[np.ndarray, np.ndarray],
    ) -> predictions.Predictions:
        test_set, (weight, bias) = self._test_sets[name], head
        columns = [self._columns(c) for c in test_set.classes]
        owner = np.repeat(np.arange(len(columns)), [len(found) for found in columns])
        rows_of_head = np.concatenate(columns)

        def score(images, labels, evaluated):
            lacking = np.flatnonzero(evaluated & [found[0] < 0 for found in columns])
            if len(lacking):
                raise errors.UserError(
                    f"test set {name}: holds the class {test_set.classes[lacking[0]]!r}, which is "
                    "none of the training set's; import both with the same names"
                )
            # Those of classes that do not occur are not looked at.
            known = np.maximum(rows_of_head, 0)
            return predictions.score(
                images, weight.T[known], labels, evaluated, scale=1.0, bias=bias[known], owner=owner
            )

        shown = dataclasses.replace(rows, embedding=features)
        return embedding.answer(shown, test_set, score, name)


def mean_top1(measured: Measured, names: Sequence[str]) -> float:
    """The mean accuracy of test sets, each counting the same."""
    return float(np.mean([measured["test_sets"][name]["top1"] for name in names]))


def standard_error(measured: Measured, names: Sequence[str]) -> float:
    """Of `mean_top1`, over the draw of the images: sqrt(sum p (1 - p) / n) / number of sets."""
    each = [measured["test_sets"][name] for name in names]
    variance = sum(m["top1"] * (1 - m["top1"]) / m["n"] for m in each)
    return float(np.sqrt(variance)) / len(each)
