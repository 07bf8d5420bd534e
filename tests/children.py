"""Child processes of tests."""

import os
import pathlib

REPO = pathlib.Path(__file__).parents[1]
_DEVICES = "--xla_force_host_platform_device_count"


def environment(devices: int = 1) -> dict[str, str]:
    """Ours, with so many virtual devices instead of the tests' eight, and the package found."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(_DEVICES)]
    if devices > 1:
        flags.append(f"{_DEVICES}={devices}")
    own = {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO)}
    return os.environ | own
