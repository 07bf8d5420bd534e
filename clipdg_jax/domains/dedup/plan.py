"""What a deduplication by embeddings takes: buckets, bytes on the disk, memory, operations."""

from __future__ import annotations

import dataclasses

from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """How records are spread over buckets.

    Attributes:
      records: that take part.
      size: records of a bucket on average, before probes.
      probes: buckets that each record goes to.
      sample: records for each bucket that its centroid is fitted to.
      iterations: of k-means.
      seed: of the sample.
    """

    records: int
    size: int
    probes: int
    sample: int
    iterations: int
    seed: int

    def check(self) -> None:
        """Raises UserError, naming the field that is out of range."""
        for field in ("size", "probes", "sample", "iterations"):
            if getattr(self, field) < 1:
                raise UserError(f"config.buckets.{field}: is {getattr(self, field)}; 1 or more")

    @property
    def buckets(self) -> int:
        """How many: every bucket has `size` records of its own."""
        return max(1, -(-self.records // self.size))

    @property
    def sampled(self) -> int:
        """Records that the centroids are fitted to."""
        return min(self.records, self.sample * self.buckets)

    def flops(self, width: int) -> dict[str, int]:
        """Multiplications and additions of each step, where all buckets are of one size."""
        pair = 2 * width
        return {
            "k-means": 2 * self.iterations * self.sampled * self.buckets * pair,
            "nearest centroids": self.records * self.buckets * pair,
            "within buckets": self.records * self.probes**2 * self.size // 2 * pair,
        }

    def report(self, width: int, entry_bytes: int, signature_bytes: int, work_bytes: int) -> str:
        """Lines that say all this.

        Args:
          width: of an embedding.
          entry_bytes: of a record in a bucket.
          signature_bytes: of a record in the signatures, its embedding included.
          work_bytes: memory for each record of the bucket that is worked on.
        """
        stored = self.records * self.probes * entry_bytes
        own = self.size * self.probes
        lines = [
            ("records", f"{self.records:,} x {width}"),
            ("buckets", f"{self.buckets:,} of {own:,} records ({self.probes} for each record)"),
            ("signatures on disk", _bytes(self.records * signature_bytes)),
            ("buckets on disk", _bytes(stored)),
            ("memory for a bucket", f"{_bytes(own * work_bytes)} if all are of one size"),
            ("memory for k-means", _bytes(self.sampled * width * 8)),
            *((f"FLOPs, {step}", f"{count:.3g}") for step, count in self.flops(width).items()),
        ]
        longest = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:{longest}}  {value}" for name, value in lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
