"""Finds the duplicates in signed pools: by content, by perceptual hash, or by embedding.

Whatever the mode, files of equal content are found first, and only the best of them takes part in
the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from clipdg_jax.data import engine, files
from clipdg_jax.domains.dedup import banding, buckets, clusters, kmeans, signatures, similar
from clipdg_jax.domains.dedup.plan import Plan
from clipdg_jax.errors import UserError

MODES = ("exact", "perceptual", "embedding", "cascade")

# Of one record while equals are looked for: digest, row, pixels, and sorting them.
_EQUALS_BYTES = 112
# Of one distinct perceptual hash: row, pixels, two hashes, and both together.
_HASH_BYTES = 56


@dataclasses.dataclass(frozen=True)
class Memory:
    """The bound on this process's memory.

    Attributes:
      gib: as the user gave it.
    """

    gib: float

    # Python, its libraries, and compiled programs: what there is before any record.
    OVERHEAD = 3 << 28

    @property
    def available(self) -> int:
        """Bytes for records."""
        return int(self.gib * 2**30) - self.OVERHEAD

    def check(self) -> None:
        """Raises UserError where hardly anything is left."""
        if self.gib < 1:
            raise UserError(
                f"config.ram_gib: is {self.gib:g}; libraries alone take "
                f"{self.OVERHEAD / 2**30:g} GiB, so give 1 or more"
            )


def by_content(
    signed: signatures.Signatures, memory: Memory
) -> tuple[clusters.Edges, Bool[np.ndarray, " n"]]:
    """Edges between files of equal content, and which rows are the best of their content.

    Rows of errors are none of the best.
    """

    def digests(shard: int) -> np.ndarray:
        column = signed.table(shard, ["sha256"]).column("sha256")
        whole = b"".join(column.fill_null(bytes(32)).to_pylist())
        return np.frombuffer(whole, ">u8").reshape(-1, 4)[:, :2].astype(np.uint64)

    everyone = np.ones(len(signed), bool)
    return _equals(signed, digests, everyone, clusters.EXACT, memory)


def _equals(
    signed: signatures.Signatures,
    digests: Callable[[int], np.ndarray],
    taking_part: Bool[np.ndarray, " n"],
    how: int,
    memory: Memory,
) -> tuple[clusters.Edges, Bool[np.ndarray, " n"]]:
    """`clusters.equals` of all rows that take part and are not errors, in as many passes as needed.

    `digests` gives [rows, w] of a shard; where all are 0, the row has none.
    """
    passes = max(1, -(-int(taking_part.sum()) * _EQUALS_BYTES // memory.available))
    best = np.zeros(len(signed), bool)
    found = []
    for number in range(passes):
        parts = []
        for shard in range(signed.shards):
            start, stop = signed.starts[shard : shard + 2]
            own, pixels = digests(shard), signed.pixels(shard)
            chosen = taking_part[start:stop] & own.any(1) & (pixels > 0)
            chosen &= own[:, 0] % np.uint64(passes) == number
            rows = np.flatnonzero(chosen)
            parts.append((own[rows], rows + start, pixels[rows]))
        keys, rows, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
        edges, rows = clusters.equals(keys, rows, sizes, how)
        found.append(edges)
        best[rows] = True
    return np.concatenate(found), best


def by_hash(
    signed: signatures.Signatures,
    taking_part: Bool[np.ndarray, " n"],
    radius: int,
    mirrored: bool,
    memory: Memory,
) -> clusters.Edges:
    """What is dropped because perceptual hashes lie within a radius; without structure, nothing.

    Raises UserError where the distinct hashes do not fit in the memory.
    """

    def own(shard: int) -> np.ndarray:
        column = signed.table(shard, ["phash"]).column("phash")
        return column.fill_null(0).to_numpy()[:, None]

    same, best = _equals(signed, own, taking_part, clusters.PERCEPTUAL, memory)
    count = int(best.sum())
    if count * _HASH_BYTES > memory.available:
        wanted = (count * _HASH_BYTES + Memory.OVERHEAD) / 2**30
        raise UserError(
            f"config.ram_gib: is {memory.gib:g}; {count:,} distinct perceptual hashes need "
            f"{wanted + 0.01:.2f} or more, or another config.mode"
        )
    rows, pixels, hashes, mirrors = _collect(signed, best)
    values = np.concatenate([hashes, mirrors]) if mirrored else hashes
    found = [clusters.NONE]
    left_over = max(memory.available - count * _HASH_BYTES, memory.available // 4)
    for pairs in banding.pairs(values, radius, left_over):
        # Two mirrored ones are as far apart as the two themselves.
        pairs = pairs[(pairs < count).any(1)]
        apart = np.bitwise_count(values[pairs[:, 0]] ^ values[pairs[:, 1]])
        first, second = pairs[:, 0] % count, pairs[:, 1] % count
        other = first != second  # A symmetric image is its own mirror image.
        first, second, apart = first[other], second[other], apart[other]
        found.append(
            clusters.edges(
                (pixels[first], pixels[second]),
                (rows[first], rows[second]),
                clusters.PERCEPTUAL,
                distance=apart,
            )
        )
    acted = clusters.stars(np.concatenate(found), len(signed))
    return clusters.follow(same, acted)


def _collect(
    signed: signatures.Signatures, chosen: Bool[np.ndarray, " n"]
) -> tuple[np.ndarray, ...]:
    """Rows, pixels, hashes and mirrors' hashes of the rows chosen."""
    parts = []
    for shard in range(signed.shards):
        start, stop = signed.starts[shard : shard + 2]
        rows = np.flatnonzero(chosen[start:stop])
        table = signed.table(shard, ["phash", "mirror"]).take(rows)
        columns = (table.column(name).to_numpy() for name in table.column_names)
        parts.append((rows + start, signed.pixels(shard)[rows], *columns))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def by_embedding(
    signed: signatures.Signatures,
    taking_part: Bool[np.ndarray, " n"],
    rule: similar.Rule,
    plan: Plan,
    memory: Memory,
    work: Path,
) -> tuple[clusters.Edges, buckets.Layout]:
    """What is dropped because embeddings are similar, and the buckets it was found in.

    Args:
      signed: the signatures, with embeddings.
      taking_part: the rows to be compared.
      rule: when two are duplicates.
      plan: the buckets.
      memory: the bound.
      work: directory of what is in work; a second call with the same goes on there.

    Raises:
      UserError: a bucket does not fit in the memory; no space left.
    """
    files.make_directory(work)
    centroids = fit_centroids(signed, taking_part, plan, memory, work / "centroids.npy")
    nearest = work / "nearest"
    buckets.assign(signed, taking_part, centroids, min(plan.probes, len(centroids)), nearest)
    dtype = buckets.entry(signed.width, rule.how == clusters.CASCADE)
    path = work / "buckets.bin"
    layout = buckets.lay_out(signed, nearest, path, len(centroids), dtype)
    # One mark for each row: what takes part, and what is gone.
    available = memory.available - 2 * len(signed)
    buckets.check(layout, available, memory.gib, similar.bytes_per_entry(dtype))
    buckets.fill(signed, nearest, layout, available)
    found = work / "found"
    engine.map_shards(
        [buckets.Numbered(f"{i:06d}", i) for i in range(len(centroids))],
        engine.Each(lambda bucket: similar.find(layout.read(bucket), rule)),
        buckets.ArraySink(found),
        found,
        config=dataclasses.asdict(rule),
        title="duplicates",
    )
    edges = np.concatenate([np.load(found / f"{i:06d}.npy") for i in range(len(centroids))])
    return clusters.stars(edges, len(signed)), layout


def fit_centroids(
    signed: signatures.Signatures,
    taking_part: Bool[np.ndarray, " n"],
    plan: Plan,
    memory: Memory,
    path: Path,
) -> Float32[np.ndarray, "k d"]:
    """The buckets' centroids, fitted to a seeded sample unless they are there."""
    if path.exists():
        return np.load(path)
    count = plan.buckets
    rows = _sample(taking_part, plan.sampled, plan.seed)
    needed = len(rows) * signed.width * 4 * 2
    if needed > memory.available:
        wanted = (needed + Memory.OVERHEAD) / 2**30
        raise UserError(
            f"config.ram_gib: is {memory.gib:g}; the {len(rows):,} embeddings that {count:,} "
            f"buckets are fitted to need {wanted + 0.01:.2f} or more"
        )
    cuts = np.searchsorted(rows, signed.starts)
    parts = [np.zeros((0, signed.width), np.float16)]
    for shard in np.flatnonzero(np.diff(cuts)).tolist():
        own = rows[cuts[shard] : cuts[shard + 1]] - signed.starts[shard]
        parts.append(signed.embeddings(shard)[own])
    sample = np.concatenate(parts).astype(np.float32)
    del parts
    sample /= np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-6)
    centroids = kmeans.fit(sample, min(count, max(len(sample), 1)), plan.iterations, plan.seed)
    signatures.save_array(path, centroids)
    return centroids


def _sample(taking_part: Bool[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " s"]:
    """Rows that take part, at most `count`, drawn without replacement, in order."""
    rows = np.flatnonzero(taking_part)
    if len(rows) <= count:
        return rows
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(rows, count, replace=False, shuffle=False))
