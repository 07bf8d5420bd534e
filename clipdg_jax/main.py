r"""Runs the job that a config asks for: flags, distributed start-up, dispatch; nothing else.

    python -m clipdg_jax.main --config=configs/mix.py
    python -m clipdg_jax.main --config=configs/mix.py:natural=3,rendition=1 --config.seed=1
    python -m clipdg_jax.main --config=configs/mix.py:paper --config.dry_run=True \
        --virtual_devices=8

Any field of the config can be set by a flag. The same command again resumes an unfinished
run; of a finished one it says so. Exit status: 0 done, 2 the user can mend it (one line on
stderr says how), 75 it was asked to stop (SIGTERM) and the same command goes on, anything else is
a bug.
"""

import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from clipdg_jax import errors, jobs, malloc, stopping
from clipdg_jax.jobs import inputs

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with an optional argument: configs/mix.py:natural=3,rendition=1"
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives. Default: runs/<config file>[-<argument>]."
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Start jax.distributed before any device is touched."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0. Default: found by JAX (SLURM, TPU, Open MPI)."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Default: found by JAX.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Default: found by JAX.")
VIRTUAL_DEVICES = flags.DEFINE_integer(
    "virtual_devices", None, "Run on this many virtual CPU devices in each process.", lower_bound=1
)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; whatever is wrong with them or with the config becomes one line."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise errors.UserError(f"{rest[1]}: is not a flag; write --config.<field>=<value>")
        if CONFIG.value is not None:
            _ = CONFIG.value.job  # A config that failed to load says so on first access.
        return rest
    except errors.UserError as error:
        _refuse(error)
    except Exception as error:  # A config file is anyone's code.
        _refuse(inputs.explain(error, argv))


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        config = CONFIG.value
        if config is None:
            raise errors.UserError("--config: is missing; try --config=configs/mix.py")
        start(config)
        job, directory = jobs.module(config), pathlib.Path(WORKDIR.value or default_workdir())
        inputs.ensure(config, directory)
        job.run(config, directory)
    except errors.UserError as error:
        _refuse(error)
    except stopping.Stopped as stopped:
        if MULTIHOST.value:
            jax.distributed.shutdown()  # Waits for the others, which would miss process 0.
        _refuse(f"stopped: {stopped}; the same command again goes on", stopping.EXIT_STATUS)
    except KeyboardInterrupt:
        _refuse("interrupted; the same command again goes on from the last checkpoint", status=130)
    except Exception:
        if not MULTIHOST.value:
            raise
        # A normal exit would wait for the other processes, which wait for this one.
        traceback.print_exc()
        _exit(1)


def start(config: ml_collections.ConfigDict) -> None:
    """Prepares the process: memory allocator, devices, the distributed runtime."""
    logging.getLogger().setLevel(logging.WARNING)
    # Orbax's failed tasks complain there as well, after their error was raised and told.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    malloc.keep_freed_memory()
    if config.get("deterministic", False):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
            " --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        )
    if VIRTUAL_DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES.value)
    if MULTIHOST.value:
        # Its handler would swallow SIGTERM, and launchers would have to wait for their grace time.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)


def default_workdir() -> pathlib.Path:
    """`runs/<config file>[-<argument>]`."""
    return inputs.workdir(config_flags.get_config_filename(flags.FLAGS["config"]))


def _refuse(error: object, status: int = 2) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    """Ends the process without atexit, where a distributed one would wait for its peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
