"""Fine-tuning runs that take seconds: a small narrow source, a small CLIP that was not trained."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from clipdg_jax.data import files
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints
from tests.finetuning import small_models
from tests.jobs import small_runs

NARROW = {"train": 40, "validation": 24, "test": 24, "test_other": 16}
# Without a stem, whose convolutions take long to compile.
VISION = {"image_size": 16, "layers": 1, "width": 32, "heads": 2, "patch_size": 8}
MODEL = {**small_models.MODEL, "vision": {**VISION, "stem": (), "stem_blocks": 0}}
METHODS = "zero_shot,full,l2+wise_ft,rehearsal"


def pretrain(root: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """A run's workdir with a checkpoint of drawn parameters, whose mix is the narrow source."""
    model = model_lib.Model(model_config.from_config(MODEL))
    params = jax.jit(model.init)(jax.random.key(5))
    with_state = {"params": params, "frozen": {}, "opt": {}, "step": jnp.zeros((), jnp.int32)}
    saved = checkpoints.Checkpoints(
        directory / "checkpoints", identity={}, architecture=model.config.architecture
    )
    saved.save(1, with_state)
    saved.close()
    said = {"identity": {"data.mix": "narrow/train=1"}, "operational": {"data.root": str(root)}}
    files.write_json(directory / "config.json", said)
    return directory


def config(root: pathlib.Path, checkpoint: pathlib.Path, /, **fields) -> ml_collections.ConfigDict:
    """The demo's, made small."""
    made = small_runs.load_config("finetune").get_config(METHODS)
    made.inputs = ()
    made.checkpoint = str(checkpoint)
    made.data.root = str(root)
    made.data.narrow.update(NARROW)
    made.data.examples = 24
    made.model = ml_collections.ConfigDict(MODEL)
    made.steps, made.batch_size, made.log_every, made.checkpoint_every = 3, 8, 1, 2
    made.l2.coefficients = (0.1, 1.0)
    made.rehearsal.coefficients = (0.5,)
    made.wise_ft.alphas = (0.0, 0.5, 1.0)
    made.eval.batch_size = 16
    with made.unlocked():
        made.update_from_flattened_dict(fields)
    return made


def results(workdir: pathlib.Path) -> dict:
    """A finished run's results, without the times."""
    found = json.loads((workdir / "results.json").read_text())
    for own in found["methods"].values():
        for seed in own["seeds"]:
            seed["took"].pop("seconds", None)
    return found
