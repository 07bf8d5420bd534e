"""What a method is made of: up to four parts, and what a step's batch offers to them.

    reparam   which parameters there are, and which of them train (linear probe, LoRA)
    penalty   what is added to the loss, times a coefficient (L1, L2, distillation)
    data      what is trained on, and by which loss (FLYP, rehearsal)
    after     what becomes of the trained parameters (WiSE-FT)

Parameters have the model's canonical names; those of the classifier's head, which the model does
not know, are `head.weight` [features, classes] and `head.bias` [classes].
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clipdg_jax import errors
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import losses

Params = losses.Params
Scalars = Mapping[str, Array]

HEAD = "head."
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
# What training all of a classifier trains. The text tower has no part in it: it made the head.
ALL = r"^(visual|head)\."
# The copies of pre-trained values that penalties compare with; never trained.
PRETRAINED = "pretrained."


class Forward:
    """What a step's batch gives, each thing computed once, and only where a part asks for it.

    Attributes:
      params: as the model takes them, after the reparametrisation.
      pretrained: the same parameters before training.
      moving: names of `params` that training may change.
      batch: `image`, `label`, `valid` and `source`, 0 for the labelled images that are fine-tuned
        on; and `tokens`, where the data part wants text.
      scalars: the coefficients.
    """

    def __init__(
        self,
        model: model_lib.Model,
        params: Params,
        pretrained: Params,
        moving: Sequence[str],
        batch: Mapping[str, Array],
        scalars: Scalars,
    ):
        self._model = model
        self.params, self.pretrained, self.moving = params, pretrained, tuple(moving)
        self.batch, self.scalars = batch, scalars

    @functools.cached_property
    def features(self) -> Float[Array, "b e"]:
        """Image features of length 1."""
        return self._model.encode_image(self.params, self.batch["image"])

    @functools.cached_property
    def logits(self) -> Float[Array, "b c"]:
        """The classifier's."""
        return logits(self.params, self.features)

    @functools.cached_property
    def text_features(self) -> Float[Array, "b e"]:
        """Features of `tokens`, of length 1."""
        return self._model.encode_text(self.params, self.batch["tokens"])

    @functools.cached_property
    def scale(self) -> Float[Array, ""]:
        """What the contrastive loss multiplies cosines by."""
        return jnp.exp(self.params[losses.LOGIT_SCALE])

    @functools.cached_property
    def pretrained_features(self) -> Float[Array, "b e"]:
        """Those of the pre-trained model; no gradient."""
        found = self._model.encode_image(self.pretrained, self.batch["image"])
        return jax.lax.stop_gradient(found)

    @functools.cached_property
    def pretrained_logits(self) -> Float[Array, "b c"]:
        """Those of the pre-trained model; no gradient."""
        return jax.lax.stop_gradient(logits(self.pretrained, self.pretrained_features))

    @property
    def labelled(self) -> Bool[Array, " b"]:
        """The rows that are fine-tuned on and can be read."""
        return self.batch["valid"] & (self.batch["source"] == 0)

    @property
    def replayed(self) -> Bool[Array, " b"]:
        """The rows of the pre-training mix that can be read."""
        return self.batch["valid"] & (self.batch["source"] > 0)

    def mean(self, each: Float[Array, " b"]) -> Float[Array, ""]:
        """The mean over the labelled rows; 0 where there is none."""
        rows = jnp.maximum(jnp.sum(self.labelled, dtype=jnp.float32), 1.0)
        return jnp.sum(jnp.where(self.labelled, each, 0.0)) / rows


def logits(params: Mapping[str, Array], features: Float[Array, "b e"]) -> Float[Array, "b c"]:
    """The head's, in fp32 on every device."""
    weight, bias = params[HEAD_WEIGHT], params[HEAD_BIAS]
    product = jnp.matmul(features, weight, precision=jax.lax.Precision.HIGHEST)
    return product + bias.reshape(1, -1)


def cross_entropy(forward: Forward) -> Float[Array, ""]:
    """Mean cross-entropy in nats of the classifier on the labelled rows."""
    log = jax.nn.log_softmax(forward.logits)
    # Rows of the replayed mix carry other labels, or none: they do not count, but must index.
    label = jnp.clip(forward.batch["label"], 0, log.shape[1] - 1)
    return forward.mean(-jnp.take_along_axis(log, label[:, None], axis=1)[:, 0])


def _nothing(rng: Array, params: Params) -> Params:
    del rng, params
    return {}


def _as_they_are(params: Params, scalars: Scalars) -> Params:
    del scalars
    return params


@dataclasses.dataclass(frozen=True)
class Reparam:
    """Which parameters there are, and which of them train.

    Attributes:
      trainable: regular expression for their names.
      add: (key, the model's and the head's parameters) -> further parameters.
      effective: (all parameters, scalars) -> those that the model and the head take.
      moves: whether training changes this one of the effective parameters.
      start: the combination whose outcome training starts from; "": the pre-trained model.
    """

    trainable: str = ALL
    add: Callable[[Array, Params], Params] = _nothing
    effective: Callable[[Params, Scalars], Params] = _as_they_are
    moves: Callable[[str], bool] = lambda name: False
    start: str = ""


@dataclasses.dataclass(frozen=True)
class Penalty:
    """What is added to the loss, times the coefficient that has the method's name.

    Attributes:
      value: of a batch.
      holds: regular expression for the names of the parameters that it keeps where they were, and
        that weight decay therefore does not pull to 0; None: of no parameter.
    """

    value: Callable[[Forward], Float[Array, ""]]
    holds: str | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
      loss: takes the place of the cross-entropy.
      added: added to the loss, times the coefficient that has the method's name.
      prompts: whether a labelled image's `tokens` are a prompt of its class.
      trains_text: whether the text tower is trained, and the head made of it afterwards.
      replay: how many rows of the pre-training mix come with each labelled row.
      mix: what those are, as `mixture.parse_mix` takes it; "": what the checkpoint's run says.
    """

    loss: Callable[[Forward], Float[Array, ""]] | None = None
    added: Callable[[Forward], Float[Array, ""]] | None = None
    prompts: bool = False
    trains_text: bool = False
    replay: float = 0.0
    mix: str = ""


@dataclasses.dataclass(frozen=True)
class After:
    """(1 - a) pre-trained + a fine-tuned, for each of these a; the smaller, the more protected.

    Attributes:
      alphas: each in [0, 1].
      also: one that is told of besides the chosen one.
    """

    alphas: tuple[float, ...]
    also: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A coefficient's values, each a training of its own.

    Attributes:
      values: to be tried.
      stronger: which of two values protects more.
    """

    values: tuple[float, ...]
    stronger: Literal["larger", "smaller"] = "larger"


@dataclasses.dataclass(frozen=True)
class Parts:
    """A method with its settings.

    Attributes:
      name: of the method.
      sweep: of the coefficient that the parts find as `scalars[name]`.
      lr: the learning rate; 0: the config's.
      trains: False for the pre-trained model as it is.
    """

    name: str
    reparam: Reparam | None = None
    penalty: Penalty | None = None
    data: Data | None = None
    after: After | None = None
    sweep: Sweep | None = None
    lr: float = 0.0
    trains: bool = True


def coefficients(method: str, field: str, values: Sequence[float]) -> tuple[float, ...]:
    """The values of a sweep. Raises UserError unless there are some, none negative, none twice."""
    found = tuple(float(value) for value in values)
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise errors.UserError(
            f"config.{method}.{field}: {found}; give one number or more, none negative, none twice"
        )
    return found
