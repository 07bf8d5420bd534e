"""A run of `configs/classify.py` that takes seconds, on a small demo pool."""

import pathlib
import sys

import ml_collections

from tests.jobs import small_runs

WORLD = {"pool": 300, "test_pool": 120, "test_natural": 60, "test_style": 1}
MODEL = {
    "name": "tiny-plain",
    "embed_dim": 32,
    "vision": {"width": 32, "heads": 2, "layers": 1, "patch_size": 8, "pool": "avg"},
}
METHODS = "keywords,amplitude,centroid,finetune,ensemble"
FIELDS = {
    "compare": METHODS,
    "data.test_sets": "test/pool",
    "data.threads": 1,
    "labels.simulate.train": 120,
    "labels.simulate.train_noise": 0.05,
    "labels.simulate.annotators": 3,
    "labels.simulate.error": 0.02,
    "labels.min_annotators": 3,
    "labels.validation": 100,
    "labels.test": 60,
    "calibration.target": 0.6,
    "calibration.rule": "point",
    "calibration.min_support": 5,
    "encoder.checkpoint": "",  # From scratch.
    "amplitude.image_size": 16,
    "finetune.epochs": 2,
    "finetune.eval_every": 1,
    "finetune.batch_size": 32,
    "finetune.optim.warmup": 2,
    "ensemble.members": "keywords,amplitude,finetune",
}


def config(
    root: pathlib.Path, argument: str = "compare", **fields: object
) -> ml_collections.ConfigDict:
    """The config of the small run on the world in `root`; nested fields by dotted name."""
    made = small_runs.load_config("classify").get_config(argument)
    made.data.root = str(root)
    made.data.demo.update(WORLD)
    made.encoder.model = ml_collections.ConfigDict(MODEL)
    made.update_from_flattened_dict({**FIELDS, **fields})
    return made


def command(root: pathlib.Path, workdir: pathlib.Path, *flags: str) -> list[str]:
    """The command line of a small run, whose encoder is a whole `tiny-plain`."""
    fields = {
        **FIELDS,
        "data.root": root,
        **{f"data.demo.{name}": value for name, value in WORLD.items()},
        "encoder.model.name": "tiny-plain",
        "inputs": (),
    }
    return [
        sys.executable,
        "-m",
        "clipdg_jax.main",
        f"--config={small_runs.REPO / 'configs' / 'classify.py'}:compare",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *flags,
    ]
