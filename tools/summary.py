"""What a dataset holds, in a few lines of text."""

from __future__ import annotations

from clipdg_jax.data import dataset


def size(count: int) -> str:
    """A number of bytes for people: 1.5 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def counts(data: dataset.Dataset) -> str:
    """One line: records, shards, bytes, and what became of everything that was seen."""
    manifest = data.manifest
    dropped = "".join(f" + {n} {reason}" for reason, n in sorted(manifest.dropped.items()))
    faults = "".join(f"; {n} {reason}" for reason, n in sorted(manifest.faults.items()))
    return (
        f"{data.path}: {manifest.records} records in {len(manifest.shards)} shards, "
        f"{size(manifest.bytes)}; {manifest.seen} seen = {manifest.records} written"
        f"{dropped}{faults}"
    )
