r"""Runs the job that a config asks for: flags, distributed start-up, dispatch; nothing else.

    python -m clipdg_jax.main --config=configs/mix.py
    python -m clipdg_jax.main --config=configs/mix.py:natural=3,rendition=1 --config.seed=1
    python -m clipdg_jax.main --config=configs/mix.py:paper --config.dry_run=True \
        --virtual_devices=8

Any field of the config can be set by a flag. The same command again resumes an unfinished
run; of a finished one it says so. Exit status: 0 done, 2 the user can mend it (one line on
stderr says how), anything else is a bug.
"""

import difflib
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Sequence

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from clipdg_jax import errors, malloc

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

JOBS = ("pretrain", "evaluate")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; whatever is wrong with them or with the config becomes one line."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise errors.UserError(f"{rest[1]}: is not a flag; write --config.<field>=<value>")
        if flags.FLAGS["config"].present:
            _ = CONFIG.value.job  # A config that failed to load says so on first access.
        return rest
    except errors.UserError as error:
        _refuse(error)
    except flags.Error as error:
        _refuse(f"flags: {_first_line(error)}; see --help")
    except (AttributeError, KeyError) as error:
        _refuse(_unknown_field(str(error), argv))
    except (FileNotFoundError, ImportError) as error:
        _refuse(f"--config: {_first_line(error)}; give an existing file such as configs/mix.py")
    except (TypeError, ValueError, SyntaxError) as error:
        _refuse(f"--config: {_first_line(error)}; see the docstring of the config file")


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        config = CONFIG.value
        if config is None:
            raise errors.UserError("--config: is missing; try --config=configs/mix.py")
        start(config)
        job_module(config).run(config, pathlib.Path(WORKDIR.value or default_workdir()))
    except errors.UserError as error:
        _refuse(error)


def start(config: ml_collections.ConfigDict) -> None:
    """Prepares the process: memory allocator, devices, the distributed runtime."""
    logging.set_verbosity(logging.WARNING)
    malloc.keep_freed_memory()
    if config.get("deterministic", False):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
            " --xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
        )
    if VIRTUAL_DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES.value)
    if MULTIHOST.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)


def job_module(config: ml_collections.ConfigDict):
    """The module of `clipdg_jax.jobs` that `config.job` names."""
    if config.job not in JOBS:
        raise errors.UserError(f"config.job: {config.job!r} is unknown; one of {', '.join(JOBS)}")
    return importlib.import_module(f"clipdg_jax.jobs.{config.job}")


def default_workdir() -> str:
    """`runs/<config file>[-<argument>]`, with characters that paths dislike replaced."""
    path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
    name = pathlib.Path(path).stem + (f"-{argument}" if argument else "")
    return str(pathlib.Path("runs") / re.sub(r"[^\w=.,+-]", "_", name))


def _unknown_field(message: str, argv: Sequence[str]) -> str:
    name = message.strip("\"'").split(".")[-1]
    given = next((a.split("=")[0].lstrip("-") for a in argv if f".{name}=" in a), f"config.{name}")
    known = [f"config.{path}" for path in _paths(flags.FLAGS["config"].value)]
    close = difflib.get_close_matches(given, known, 1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "see the docstring of the config file"
    return f"{given}: no such field; {hint}"


def _paths(config: object, prefix: str = "") -> list[str]:
    if not isinstance(config, ml_collections.ConfigDict):
        return [prefix.rstrip(".")] if prefix else []
    return [p for key in config for p in _paths(config.get(key), f"{prefix}{key}.")]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse(error: object):
    print(f"error: {error}", file=sys.stderr, flush=True)
    # Skips atexit: a distributed process that waits there for its peers would hang.
    sys.stdout.flush()
    os._exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
