"""Every test sees eight virtual CPU devices, and a broadcast that adds a rank is an error."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import absl.flags
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Grain's worker processes refuse to start while absl's flags are unparsed.
absl.flags.FLAGS.mark_as_parsed()
