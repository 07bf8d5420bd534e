"""Evaluates the checkpoints of a run zero-shot, on any suites.

    python -m clipdg_jax.main --config=configs/evaluate.py                     # runs/mix
    python -m clipdg_jax.main --config=configs/evaluate.py --config.checkpoint=runs/other \\
        --config.step=all --workdir=runs/other-evaluated

Prints a table; writes `results.json`, `summary.png` and, per step, `predictions-<step>.parquet`
with one row per image. Takes seconds for the demo; minutes per checkpoint for ImageNet's 50 000
images on one GPU, most of it decoding (`--config.eval.workers`).
"""

import ml_collections


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    if argument:
        raise ValueError(f"evaluate.py: takes no argument, got {argument!r}; use --config.<field>")
    config = ml_collections.ConfigDict()
    config.job = "evaluate"
    config.checkpoint = "runs/mix"  # A run's workdir, or its checkpoints/ directory.
    config.step = "latest"  # latest | all | comma-separated steps, such as 500,1000
    config.suites = ""  # Comma-separated; "": those of the run.
    config.missing = "error"  # error | skip: what a test set that cannot be opened means.
    config.dtype = "float32"  # Of the towers; similarities are float32 in any case.

    config.data = ml_collections.ConfigDict()
    config.data.root = ""  # Where suites and datasets live; "": where the run's do.

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 512  # Over all devices; rounded up to a multiple of them.
    config.eval.workers = 0  # Processes that decode images; 0 decodes in the main one.

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # -1: all devices that fsdp leaves.
    config.mesh.fsdp = 1
    config.dry_run = False  # Says what would be evaluated, and what is missing.
    return config
