"""A small CLIP, plans of methods on it, and batches; shared by the tests of fine-tuning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from clipdg_jax.data import tokenizer
from clipdg_jax.evaluation import prompts
from clipdg_jax.finetuning import combination, parts, plan, setting
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding
from tests.jobs import small_runs

MODEL = {
    "name": "tiny",
    "embed_dim": 16,
    "vision": {"image_size": 16, "layers": 1, "width": 32, "heads": 2, "stem": (8,)}
    | {"patch_size": 4, "stem_blocks": 1},
    "text": {"layers": 1, "width": 32, "heads": 2, "context_length": 12},
}
CLASSES = ("house", "tree", "car")
TEMPLATES = ("{}", "a photo of a {}")
ROWS = 8


@functools.cache
def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


@functools.cache
def pretrained() -> setting.Pretrained:
    """Drawn, not trained: enough to compute with."""
    model = model_lib.Model(model_config.from_config(MODEL))
    tokens = tokenizer.get_tokenizer(model.config.text.vocab_size)(
        prompts.fill(TEMPLATES, CLASSES), model.config.text.context_length
    )
    params = jax.jit(model.init)(jax.random.key(0))
    found = setting.Pretrained(model, params, mesh(), tokens, len(TEMPLATES), "drawn")
    head = {
        parts.HEAD_WEIGHT: jnp.asarray(found.head(params)),
        parts.HEAD_BIAS: jnp.zeros(len(CLASSES)),
    }
    return setting.Pretrained(model, params | head, mesh(), tokens, len(TEMPLATES), "drawn")


def load_preset(argument: str):
    """A config of `configs/finetune.py`."""
    return small_runs.load_config("finetune").get_config(argument)


def config(**fields):
    """The demo's, with some fields set; a tuple of a sweep may have any length."""
    made = load_preset("compare")
    made.batch_size, made.steps, made.optim.warmup = ROWS, 4, 1
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        owner = made[section] if section else made
        owner[field] = value
    return made


def make(name: str, **fields) -> plan.Plan:
    """The plan of a combination."""
    made = config(**fields)
    return plan.make_plan(
        combination.fold(name, made),
        made,
        pretrained().model,
        mesh(),
        examples=3 * ROWS,
        classes=len(CLASSES),
    )


def batch(planned: plan.Plan, seed: int = 0) -> dict[str, jax.Array]:
    """Images of noise; the rows past the labelled ones are replayed."""
    rng, rows = np.random.default_rng(seed), planned.batch_size
    side = planned.model.config.vision.image_size
    values = {
        "image": rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, len(CLASSES), rows).astype(np.int32),
        "source": (np.arange(rows) >= ROWS).astype(np.int32),
        "valid": np.arange(rows) != 2,
    }
    if planned.combination.uses_text:
        values["tokens"] = pretrained().prompts[rng.integers(0, 6, rows)]
    return sharding.put_batch(values, planned.mesh)


def moved(seed: int = 1, scale: float = 0.01) -> parts.Params:
    """The pre-trained parameters, each number moved by noise; some stay where they are."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, value in pretrained().params.items():
        noise = rng.normal(0, scale, value.shape) * (rng.random(value.shape) < 0.9)
        found[name] = value + jnp.asarray(noise, jnp.float32)
    return found


def forward(planned: plan.Plan, params: parts.Params, seed: int = 0) -> parts.Forward:
    """What parts are given in a step with these parameters."""
    return parts.Forward(
        planned.model, params, pretrained().params, planned.moving, batch(planned, seed), {}
    )
