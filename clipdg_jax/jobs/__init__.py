"""One thin file per job, and how a config's job is found."""

import importlib
from types import ModuleType

import ml_collections

from clipdg_jax import errors

JOBS = (
    *("pretrain", "evaluate", "classify", "dedup", "curate", "audit", "finetune"),
    *("sweep", "report"),  # Of many runs.
)


def module(config: ml_collections.ConfigDict) -> ModuleType:
    """The module that `config.job` names; its `run(config, directory)` does the job.

    Raises:
      errors.UserError: there is no such job.
    """
    if config.job not in JOBS:
        raise errors.UserError(f"config.job: {config.job!r} is unknown; one of {', '.join(JOBS)}")
    return importlib.import_module(f"{__name__}.{config.job}")
