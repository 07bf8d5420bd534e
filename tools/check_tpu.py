"""Compiles a run's training step for a slice of TPUs, without having one.

    make check-tpu
    .venv-tpu/bin/python -m tools.check_tpu --topology=v5e:8x8
    .venv-tpu/bin/python -m tools.check_tpu --config=configs/mix.py:paper --config.mesh.fsdp=4

Needs the `tpu` extra, whose libtpu holds the compiler. Takes the flags of `clipdg_jax.main`;
the config is the paper's unless given. What it shows: the step lowers and compiles for that many
chips, and fits into their memory by the compiler's own account; one that does not is an error.
Nothing is run.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

# libtpu asks the cloud's metadata server where it is, unless told.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import ml_collections
from absl import app, flags
from jax.experimental import topologies

from clipdg_jax import errors
from clipdg_jax import main as launcher
from clipdg_jax.jobs import pretrain

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x8", "TPU generation and chips, as libtpu names them: v5e:2x4, v4:2x2x4."
)
DEFAULT_CONFIG = "configs/mix.py:paper"
GIB = 2**30


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a TPU topology that is described, not present.

    Raises:
      UserError: libtpu is missing or does not know the name.
    """
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # libtpu raises whatever its C++ does.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise errors.UserError(
            f"--topology: {name!r}: {reason}; install the `tpu` extra (make check-tpu does) and "
            "name an existing slice such as v5e:4x8"
        ) from error


def compiled_report(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> str:
    """Compiles a config's step; what it takes, as text.

    Raises:
      UserError: a field of the config is wrong, or the step does not fit into the chips' memory.
    """
    planned = pretrain.plan(config, devices)
    batch = pretrain.abstract_batch(planned)
    begin = time.perf_counter()
    jitted: Any = planned.train_step()
    # What is written one way for CPUs and another for the rest asks where JAX runs: on a CPU here.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        lowered = jitted.lower(planned.abstract, batch, {})
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        kind, _, reason = str(error).splitlines()[0].partition(": ")
        if kind != "RESOURCE_EXHAUSTED":
            raise
        raise errors.UserError(
            f"config.batch_size: {config.batch_size:,} do not fit on {len(devices)} chips "
            f"({reason.rstrip('.')}); lower it, or raise config.accumulate, or set "
            "config.model.remat"
        ) from error
    compiled_at = time.perf_counter()
    used = compiled.memory_analysis()
    scratch = used.temp_size_in_bytes
    held = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return (
        f"{config.model.name}, batch {config.batch_size:,}, for {len(devices)} "
        f"x {devices[0].device_kind}\n"
        f"traced in {traced - begin:.0f} s, compiled in {compiled_at - traced:.0f} s\n"
        f"per chip, by TPU's compiler: {held / GIB:.2f} GiB state and batch, "
        f"{scratch / GIB:.2f} GiB scratch and activations"
    )


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        print(compiled_report(launcher.CONFIG.value, topology_devices(TOPOLOGY.value)))
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # Where constants are made; no TPU is looked for.
    if not any(argument.startswith("--config=") for argument in sys.argv):
        sys.argv.insert(1, f"--config={DEFAULT_CONFIG}")
    app.run(main, flags_parser=launcher.parse_flags)
