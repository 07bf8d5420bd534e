"""What all methods of a comparison share: the pre-trained model, the data, the zero-shot head."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from clipdg_jax import errors
from clipdg_jax.data import resolve, subset, tokenizer
from clipdg_jax.evaluation import embedding, predictions, prompts, suites
from clipdg_jax.finetuning import parts
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, losses, sharding

# What the images that methods are chosen by are called among the test sets.
VALIDATION = "validation"


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """The datasets of a comparison, before any seed has drawn from them.

    Attributes:
      train: labelled images; their classes are the head's.
      validation: of the same distribution; None: held out of `train`.
      inside, outside: test sets of the training's distribution, and of others.
      skipped: test sets that could not be opened, with the reason, where that is allowed.
    """

    train: resolve.Source
    validation: resolve.Source | None
    inside: tuple[suites.TestSet, ...]
    outside: tuple[suites.TestSet, ...]
    skipped: Mapping[str, str]

    def fingerprints(self) -> dict[str, str]:
        """Identifies all of it."""
        found = {"train": self.train.fingerprint}
        if self.validation is not None:
            found["validation"] = self.validation.fingerprint
        return found | {
            f"test {test_set.name}": test_set.source.fingerprint
            for test_set in (*self.inside, *self.outside)
        }


def open_data(config: Any) -> Opened:
    """Opens what `config.data` names.

    Raises:
      UserError: naming the field or dataset that is missing, empty or wrong.
    """
    data = config.data
    train = resolve.resolve(data.train, data.root)
    if len(train.classes) < 2 or not len(train):
        raise errors.UserError(
            f"config.data.train: {data.train} holds {len(train)} records of {len(train.classes)} "
            "classes; name a dataset of labelled images of two classes or more"
        )
    validation = resolve.resolve(data.validation, data.root) if data.validation else None
    if validation is not None:
        if not len(validation):
            raise errors.UserError(
                f"config.data.validation: {data.validation} is empty; methods' coefficients are "
                "chosen on it, so give one with records, or '' and config.data.holdout"
            )
        _check_same_classes(data.validation, validation.classes, train.classes)
    (suite,) = suites.load([data.suite], data.root, data.missing)
    known = [test_set.name for test_set in suite.test_sets]
    if VALIDATION in known:
        raise errors.UserError(
            f"config.data.suite: {data.suite} has a test set {VALIDATION!r}, which is what images "
            "that methods are chosen by are called; rename it"
        )
    inside = _named(data.inside)
    wrong = [name for name in inside if name not in known]
    if wrong or not inside:
        raise errors.UserError(
            f"config.data.inside: {data.inside!r} is no test set of the suite {data.suite}; name "
            f"those that are from the training's distribution, of {', '.join(known)}"
        )
    outside = _named(data.outside) or [name for name in known if name not in inside]
    wrong = [name for name in outside if name not in known or name in inside]
    if wrong or not outside:
        raise errors.UserError(
            f"config.data.outside: {data.outside!r} leaves no test set that is not inside; name "
            f"some of {', '.join(name for name in known if name not in inside)}"
        )
    by_name = {test_set.name: test_set for test_set in suite.test_sets}
    return Opened(
        train,
        validation,
        tuple(by_name[name] for name in inside),
        tuple(by_name[name] for name in outside),
        suite.skipped,
    )


def split(opened: Opened, config: Any, seed: int) -> tuple[resolve.Source, resolve.Source]:
    """The labelled images that a seed trains on, and those it chooses by.

    `config.data.examples` records are drawn, all where it is 0. Without a validation set, the share
    `config.data.holdout` of the training set is kept aside, the same for all of a seed's methods.

    Raises:
      UserError: one of the two is empty, or there are fewer records than asked for.
    """
    train, count, wanted = opened.train, len(opened.train), config.data.examples
    held = 0
    validation = opened.validation
    if validation is None:
        held = int(count * config.data.holdout)
        if not 0 < held < count:
            raise errors.UserError(
                f"config.data.holdout: {config.data.holdout} of {count} records leaves the "
                "validation split or the training split empty; give a share above 0 and below 1, "
                "or a dataset as config.data.validation"
            )
        validation = subset.draw(train, count - held, count, seed)
    if wanted > count - held:
        raise errors.UserError(
            f"config.data.examples: {wanted} of {config.data.train}, which has {count - held} to "
            "train on; ask for at most that many, or 0 for all"
        )
    return subset.draw(train, 0, wanted or count - held, seed), validation


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """The model that fine-tuning starts from.

    Attributes:
      params: all of them, and the zero-shot head's, on the devices.
      prompts: tokens of every template for every class, class-major.
      templates: how many there are for each class.
      origin: the checkpoint.
    """

    model: model_lib.Model
    params: parts.Params
    mesh: jax.sharding.Mesh
    prompts: Int32[np.ndarray, "prompts n"]
    templates: int
    origin: str

    def head(self, params: Mapping[str, jax.Array]) -> Float32[np.ndarray, "e c"]:
        """The zero-shot head's weights of a text tower: class embeddings times the logits' scale.

        As WiSE-FT starts (Wortsman et al. 2022): exp(logit_scale) times the normalised mean of the
        normalised prompts, bias 0, for normalised image features.
        """
        text = {k: params[k] for k in self.model.shapes() if k in params}
        found = embedding.embed_prompts(
            functools.partial(self._encode_text, text), self.prompts, self.mesh, 256
        )
        classes = predictions.class_embeddings(found, self.templates)
        return classes.T * np.exp(np.float32(params[losses.LOGIT_SCALE]))

    @functools.cached_property
    def _encode_text(self) -> Any:
        return jax.jit(self.model.encode_text, out_shardings=sharding.replicated(self.mesh))


def load(
    config: Any,
    classes: Sequence[str],
    like: suites.TestSet,
    mesh: jax.sharding.Mesh,
) -> Pretrained:
    """The checkpoint that a config names, with the head that its prompts for `classes` make.

    Args:
      classes: the head's.
      like: the test set whose templates and names of classes the prompts have.

    Raises:
      UserError: there is none, it is damaged, or it is of another architecture than
        `config.model`; a class has several names.
    """
    names = like.names_of(classes)
    several = next((found for found in names if len(found) != 1), None)
    if several is not None:
        raise errors.UserError(
            f"config.data.train: one of its classes is called {', '.join(several)}; a head needs "
            "classes of one name each"
        )
    loaded = checkpoints.load_params(checkpoints.directory_of(config.checkpoint), mesh=mesh)
    wanted = architecture(config)
    found = model_config.from_config({**loaded.architecture, "dtype": config.dtype})
    _check_architecture(config.checkpoint, wanted.architecture, found.architecture)
    model = model_lib.Model(wanted)
    length = wanted.text.context_length
    tokens = tokenizer.get_tokenizer(wanted.text.vocab_size)
    pretrained = Pretrained(
        model=model,
        # A loss's own parameters, such as the sigmoid loss's bias, are not the model's.
        params={name: loaded.params[name] for name in model.shapes()},
        mesh=mesh,
        prompts=tokens(prompts.fill(like.templates, [name for (name,) in names]), length),
        templates=len(like.templates),
        origin=f"{config.checkpoint}, step {loaded.step}",
    )
    weight = pretrained.head(pretrained.params)
    head = {parts.HEAD_WEIGHT: weight, parts.HEAD_BIAS: np.zeros(len(classes), np.float32)}
    placed = jax.device_put(head, sharding.param_shardings(head, mesh))
    return dataclasses.replace(pretrained, params=pretrained.params | placed)


def architecture(config: Any) -> model_config.ClipConfig:
    """The model that a config names."""
    return model_config.from_config({**config.model.to_dict(), "dtype": config.dtype})


def mix_of_run(checkpoint: str) -> tuple[str, str]:
    """The mix that a checkpoint was trained on, and where its datasets are.

    Raises:
      UserError: the run does not say.
    """
    path = checkpoints.directory_of(checkpoint).parent / "config.json"
    try:
        run = json.loads(Path(path).read_text())
        return run["identity"]["data.mix"], run["operational"]["data.root"]
    except (OSError, ValueError, KeyError) as error:
        raise errors.UserError(
            f"{path}: does not tell what the checkpoint was trained on ({type(error).__name__}); "
            "give --config.rehearsal.mix=<datasets and weights>"
        ) from None


def _check_architecture(checkpoint: str, wanted: Any, found: Any) -> None:
    """Raises UserError naming the first field in which two architectures differ."""
    for field, value in wanted.items():
        if isinstance(value, dict):
            _check_architecture(checkpoint, value, found[field])
        elif value != found[field]:
            raise errors.UserError(
                f"{checkpoint}: its model has {field} {found[field]}, config.model says {value}; "
                "name the model that the checkpoint is of"
            )


def _check_same_classes(name: str, here: Sequence[str], train: Sequence[str]) -> None:
    if tuple(here) != tuple(train):
        raise errors.UserError(
            f"config.data.validation: {name} has other classes than config.data.train, or another "
            "order; import both with the same list"
        )


def _named(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]
