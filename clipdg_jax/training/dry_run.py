"""What a run would take, told without data: parameters, steps, FLOPs, memory per device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipdg_jax.training import losses, memory, metrics, step

# What hours are told for: arithmetic on an assumption, not a measurement.
DEVICES, ASSUMED_MFU = ("A100", "H100", "TPU v5e"), 0.4


def hours(operations: float, device: str, count: int = 1) -> float:
    """Hours that `count` devices take for so many FLOP at `ASSUMED_MFU` of their bf16 peak.

    Args:
      operations: of the whole run, in FLOP.
      device: one of `metrics.PEAK_FLOPS`.
    """
    return operations / (ASSUMED_MFU * metrics.PEAK_FLOPS[device] * count) / 3600


def report(
    *,
    name: str,
    state: step.State,
    objective: losses.Objective,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    scalars: Mapping[str, Any],
    mesh: Mesh,
    batch_size: int,
    steps: int,
    flops_per_example: float,
    captions: str = "",
) -> str:
    """The dry run's report, as text.

    Args:
      name: of the model.
      state: abstract, from `step.abstract_state`.
      objective: what is trained.
      batch: shapes of a global batch.
      scalars: what the objective takes besides.
      mesh: the devices.
      batch_size: global examples per step.
      steps: length of the run.
      flops_per_example: closed form, forward and backward.
      captions: how they lie in rows; "" where there are none.

    State bytes are exact for the shardings. Activations are what the backward pass keeps from
    the forward pass (saved residuals), spread evenly over the devices; a compiler may keep less,
    and needs scratch space besides.
    """
    trained, frozen = _count(state["params"]), _count(state["frozen"])
    devices = mesh.devices.size
    state_bytes = memory.state_bytes_per_device(state)
    activations = memory.activation_bytes_per_device(objective, state, batch, scalars, mesh)
    lines = [
        ("model", name),
        ("parameters", f"{trained + frozen:,}"),
        ("trained parameters", f"{trained:,}"),
        ("devices", f"{devices} (data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"),
        ("batch size", f"{batch_size:,} ({batch_size // devices:,} per device)"),
        ("steps", f"{steps:,}"),
        ("examples", f"{steps * batch_size:,}"),
        *([("captions", captions)] if captions else []),
        ("FLOPs per example", f"{_flop(flops_per_example)} (forward and backward)"),
        ("FLOPs per step", _flop(flops_per_example * batch_size)),
        ("FLOPs of the run", _flop(flops_per_example * batch_size * steps)),
        ("state per device", f"{_gib(state_bytes)} (parameters and optimiser, exact)"),
        ("activations per device", f"{_gib(activations)} (saved residuals)"),
        ("memory per device", f"{_gib(state_bytes + activations)} and the compiler's scratch"),
    ]
    for kind in DEVICES:
        time = hours(flops_per_example * batch_size * steps, kind, devices)
        told = f"{time:,.1f}" if time >= 0.1 else "less than 0.1"
        assumed = f"{told}, at an assumed MFU of {ASSUMED_MFU}"
        lines.append((f"hours on {devices} x {kind}", assumed))
    width = max(len(key) for key, _ in lines)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in lines)


def _count(params: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in params.values())


def _gib(count: int) -> str:
    return f"{count / 2**30:.3f} GiB"


def _flop(count: float) -> str:
    """With the largest prefix that leaves at least one digit before the point."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:,.3f} {prefix}FLOP"
    return f"{count / 1e6:,.3f} MFLOP"
