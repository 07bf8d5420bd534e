"""How long deduplication by embeddings takes, and how much memory; beside faiss.

    python -m tools.bench_dedup
    python -m tools.bench_dedup --peer_python=/path/to/venv/bin/python

For each number in `--records`, draws as many embeddings of `--width` in clusters, a tenth of which
are near-duplicates of others, and writes them as signatures, in a temporary folder. Then, in turns,
`--rounds` times, they are searched for pairs of a cosine of `--cosine` or more:

- ours: `search.by_embedding` in a process of its own, from the signatures on the disk to what is
  dropped, `buckets.size` records to a bucket, one probe. The centroids are there already; fitting
  them is timed apart. Before the first turn it runs once, untimed, to compile.
- faiss: `IndexIVFFlat` with the same centroids, nprobe 1, from the embeddings in memory to the
  pairs (see `bench_dedup_peer`); left out without `--peer_python`.

Printed are seconds (the median of the turns), the ratio turn by turn, the peak of our process's
resident memory against the bound it was given, and the exponent of time against records, fitted by
least squares to the logarithms.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

from clipdg_jax import errors
from clipdg_jax.data import engine, files
from clipdg_jax.domains.dedup import clusters, search, signatures, similar
from clipdg_jax.domains.dedup.plan import Plan
from tools import cli

FLAGS = flags.FLAGS
flags.DEFINE_list("records", ["10000", "30000", "100000", "300000"], "Numbers of embeddings.")
flags.DEFINE_integer("width", 512, "Of an embedding.", lower_bound=8)
flags.DEFINE_integer("bucket_size", 2048, "Records of a bucket, on average.", lower_bound=1)
flags.DEFINE_float("cosine", 0.9, "Of duplicates, at least.")
flags.DEFINE_float("ram_gib", 1.5, "Bound on our memory.")
flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
flags.DEFINE_string("peer_python", "", "A Python with faiss; empty leaves it out.")
flags.DEFINE_string("serve", "", "The folder of one set to search in turns; for the tool itself.")

_SHARD = 50_000
_PER_CLUSTER = 50
_COPIES = 0.1


def draw(count: int, width: int, seed: int = 0) -> np.ndarray:
    """float16 [count, width] of length 1, in clusters; a tenth are near-duplicates of others."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // _PER_CLUSTER), width), np.float32)
    vectors = np.empty((count, width), np.float32)
    originals = count - int(count * _COPIES)
    for start in range(0, count, _SHARD):
        part = vectors[start : start + _SHARD]
        rng.standard_normal(part.shape, np.float32, out=part)
        fresh = part[: max(0, originals - start)]
        fresh += centres[rng.integers(len(centres), size=len(fresh))]
        copies = part[len(fresh) :]  # They come last, when their originals are drawn.
        copies *= 0.2
        copies += vectors[rng.integers(originals, size=len(copies))]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


def write(folder: pathlib.Path, vectors: np.ndarray) -> int:
    """Writes embeddings as the signatures of one pool; returns its number of shards."""
    files.make_directory(folder)
    starts = range(0, len(vectors), _SHARD)
    for index, start in enumerate(starts):
        part = vectors[start : start + _SHARD]
        rows = len(part)
        one = pa.array(np.ones(rows, np.int32))
        table = {"error": pa.nulls(rows, pa.string()), "width": one, "height": one}
        pq.write_table(pa.table(table), folder / f"{index:06d}.parquet")
        signatures.save_array(folder / f"{index:06d}.npy", part)
        report = {"dropped": {}, "output": {"rows": rows, "errors": {}}}
        files.write_json(engine.report_path(folder, index), report)
    return len(starts)


def serve(folder: pathlib.Path) -> None:
    """Searches once for each line on the standard input, and prints how it went."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # It tells of devices that there are not.
    shards = len(list((folder / "signatures").glob("*.npy")))
    signed = signatures.Signatures(folder / "signatures", [signatures.Member("pool", 0, shards)])
    everyone = np.ones(len(signed), bool)
    rule = similar.Rule(clusters.EMBEDDING, FLAGS.cosine)
    plan = Plan(len(signed), FLAGS.bucket_size, 1, 64, 10, 0)
    memory = search.Memory(FLAGS.ram_gib)
    work = folder / "work"

    def once() -> dict[str, Any]:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        shutil.copy(folder / "centroids.npy", work)
        start = time.perf_counter()
        acted, _ = search.by_embedding(signed, everyone, rule, plan, memory, work)
        return {"seconds": time.perf_counter() - start, "pairs": len(acted)}

    start = time.perf_counter()
    search.fit_centroids(signed, everyone, plan, memory, folder / "centroids.npy")
    told: dict[str, Any] = {"k-means": time.perf_counter() - start, "buckets": plan.buckets}
    once()
    while True:
        print(json.dumps(told), flush=True)
        if not sys.stdin.readline():
            return
        told = once()
        told["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Turns:
    """A process that does one search for each line that it is sent."""

    def __init__(self, process: subprocess.Popen, name: str):
        self._process = process
        self._name = name
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise errors.UserError(f"{self._name}: failed, see above")
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()


@contextlib.contextmanager
def turns(command: Sequence[str], name: str) -> Iterator[Turns]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Turns(process, name)
        assert process.stdin is not None
        process.stdin.close()


def measure(folder: pathlib.Path, count: int) -> dict[str, Any]:
    """Draws, writes and times one set; seconds of ours and of the peer, turn by turn."""
    vectors = draw(count, FLAGS.width)
    write(folder / "signatures", vectors)
    np.save(folder / "all.npy", vectors)
    del vectors
    given = ("bucket_size", "cosine", "ram_gib")
    ours = [sys.executable, "-m", "tools.bench_dedup", f"--serve={folder}"]
    ours += [f"--{name}={FLAGS[name].value}" for name in given]
    found: dict[str, Any] = {"records": count, "ours": [], "peer": []}
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(turns(ours, "ours"))
        found |= own.about
        peer = None
        if FLAGS.peer_python:
            script = pathlib.Path(__file__).with_name("bench_dedup_peer.py")
            # -P: the folder of the script has an `inspect` that is not the standard library's.
            command = [FLAGS.peer_python, "-P", str(script), f"--embeddings={folder / 'all.npy'}"]
            command += [f"--centroids={folder / 'centroids.npy'}", f"--threshold={FLAGS.cosine}"]
            peer = stack.enter_context(turns(command, "--peer_python"))
            found["peer_about"] = peer.about
        for _ in range(FLAGS.rounds):
            one = own.turn()
            found["ours"].append(one.pop("seconds"))
            found |= one
            if peer is not None:
                other = peer.turn()
                found["peer"].append(other["seconds"])
                found["peer_pairs"] = other["pairs"]
    return found


def exponent(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """The power of the number of records that time grows with."""
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])


def main(_: Sequence[str]) -> None:
    if FLAGS.serve:
        serve(pathlib.Path(FLAGS.serve))
        return
    counts = [int(count) for count in FLAGS.records]
    rows = []
    head = f"{'records':>9s} {'buckets':>7s} {'k-means s':>9s} {'ours s':>7s} {'dropped':>8s} "
    head += f"{'peak GiB':>8s} {'bound':>5s}"
    if FLAGS.peer_python:
        head += f"  {'faiss s':>7s} {'pairs':>8s}  faiss / ours"
    print(head)
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            found = measure(pathlib.Path(name), count)
        rows.append(found)
        line = (
            f"{count:9,d} {found['buckets']:7d} {found['k-means']:9.2f} "
            f"{statistics.median(found['ours']):7.2f} {found['pairs']:8,d} "
            f"{found['peak_gib']:8.2f} {FLAGS.ram_gib:5.2f}"
        )
        if found["peer"]:
            ratios = [b / a for a, b in zip(found["ours"], found["peer"], strict=True)]
            line += (
                f"  {statistics.median(found['peer']):7.2f} {found['peer_pairs']:8,d}  "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print(line, flush=True)
    if len(counts) > 1:
        ours = exponent(counts, [statistics.median(found["ours"]) for found in rows])
        whole = [statistics.median(found["ours"]) + found["k-means"] for found in rows]
        print(
            f"time grows with records ^ {ours:.2f}; k-means included, {exponent(counts, whole):.2f}"
        )


if __name__ == "__main__":
    cli.run(main)
