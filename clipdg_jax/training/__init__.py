"""One step, one loop: state, losses, optimiser, sharding, checkpoints, metrics."""
