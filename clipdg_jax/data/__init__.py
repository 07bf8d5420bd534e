"""Records on disk to batches in host memory."""
