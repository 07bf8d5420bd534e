"""One thin file per job."""
