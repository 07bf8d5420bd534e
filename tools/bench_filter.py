"""How fast a pool of tars is filtered to two datasets, beside a plain copy loop over tarfile.

    python -m tools.bench_filter
    python -m tools.bench_filter --shards=100 --rounds=1

Writes a pool as img2dataset does (image, .txt and .json under one key; random bytes of 10 to 30 KB
stand for an image) to a temporary folder, below `--folder` if given, and a table that decides for
each record: 56 % natural, 24 % rendition, the others to no dataset. Then in turns, `--rounds`
times, each in a new process:

- ours: `writing.write_datasets` with `--processes` worker processes: records are read, tokenised,
  written, hashed and synced to the disk, and their parts joined to shards. The start of the
  workers counts.
- ours, 1: the same in one process.
- tarfile: `tarfile.open`, iterate, `extractfile`, `addfile` to one new tar for each tar and
  dataset, in one process, neither hashed nor synced.

Printed are records of the pool a second, CPU seconds of all processes and the peak resident
memory of the largest (medians of the turns), and the ratios of the speeds turn by turn.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import pathlib
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import flags

from clipdg_jax.data import engine, pool, tars, tokenizer, writing
from tools import cli

FLAGS = flags.FLAGS

DATASETS = ("natural", "rendition")
_SHARES = (0.56, 0.24)
_WORDS = ("a", "old", "young", "dog", "cat", "house", "tree", "red", "of", "in", "on", "painting")

Decisions = Mapping[str, str]  # from the key of a record to its dataset; others go nowhere


def make_pool(
    folder: pathlib.Path, shards: int, records: int, pax: bool = True, seed: int = 0
) -> dict[str, str]:
    """Writes `shards` tars of `records` records each and returns the decisions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    decisions = {}
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(records):
                name = f"{shard:05d}{number:04d}"
                caption = " ".join(rng.choice(_WORDS, rng.integers(5, 20)))
                meta = {
                    "caption": caption,
                    "url": f"https://example.org/images/{name}.jpg",
                    "key": name,
                    "status": "success",
                    "width": int(rng.integers(200, 600)),
                    "height": int(rng.integers(200, 600)),
                    "similarity": float(rng.random()),
                    "sha256": rng.bytes(32).hex(),
                }
                members = {
                    "jpg": rng.bytes(int(rng.integers(10_000, 30_000))),
                    "txt": caption.encode(),
                    "json": json.dumps(meta).encode(),
                }
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(data)
                    # A time that is no whole number needs a pax header.
                    info.mtime = 1.7e9 + number + (0.25 if pax else 0)  # type: ignore[assignment]
                    tar.addfile(info, io.BytesIO(data))
                place = np.searchsorted(np.cumsum(_SHARES), rng.random(), side="right")
                if place < len(DATASETS):
                    decisions[f"{shard:05d}/{name}"] = DATASETS[place]
    return decisions


@dataclasses.dataclass(frozen=True)
class Filter:
    """The shard engine's function: routes each record as the table says."""

    decisions: Decisions

    def __call__(self, items: Iterator[tars.TarSample]) -> Iterator[writing.Routed | engine.Drop]:
        outcomes = map(self._route, pool.ToRecords()(items))
        return pool.Tokenise(tokenizer.FULL_VOCABULARY)(outcomes)

    def _route(self, outcome):
        if isinstance(outcome, engine.Drop):
            return outcome
        name = self.decisions.get(outcome.key)
        return writing.Routed(outcome, (name,) if name else (), name or "conflict")


def filter_ours(
    folder: pathlib.Path, out: pathlib.Path, decisions: Decisions, processes: int, target: int
) -> dict[str, int]:
    """Filters the pool with the shard engine; returns the records of each dataset."""
    written = writing.write_datasets(
        {name: writing.Target(out / name) for name in DATASETS},
        tars.open_tars(str(folder)).shards(),
        Filter(decisions),
        work=out / "work",
        config={"tool": "bench_filter"},
        target_shard_bytes=target,
        processes=processes,
    )
    assert written is not None
    return {name: len(data) for name, data in written.items()}


def filter_plain(folder: pathlib.Path, out: pathlib.Path, decisions: Decisions) -> dict[str, int]:
    """Filters the pool by copying members from tar to tar; returns the records of each dataset."""
    counts = dict.fromkeys(DATASETS, 0)
    for name in DATASETS:
        (out / name).mkdir(parents=True)
    for path in sorted(folder.glob("*.tar")):
        with contextlib.ExitStack() as opened:
            tar = opened.enter_context(tarfile.open(path))
            writers = {
                name: opened.enter_context(tarfile.open(out / name / path.name, "w"))
                for name in DATASETS
            }
            for member in tar:
                place = decisions.get(f"{path.stem}/{member.name.partition('.')[0]}")
                if place is not None:
                    writers[place].addfile(member, tar.extractfile(member))
                    counts[place] += member.name.endswith(".jpg")
    return counts


@dataclasses.dataclass(frozen=True)
class Turn:
    """One run: wall seconds, CPU seconds of all processes, peak MB of the largest, records."""

    seconds: float
    cpu: float
    peak_mb: float
    counts: Mapping[str, float]


def _timed(work: Callable[[], Mapping[str, float]]) -> Turn:
    before = time.process_time()
    start = time.perf_counter()
    counts = work()
    seconds = time.perf_counter() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    cpu = time.process_time() - before + children.ru_utime + children.ru_stime
    return Turn(seconds, cpu, max(own.ru_maxrss, children.ru_maxrss) / 1024, counts)


def run(work: Callable[[], Mapping[str, float]]) -> Turn:
    """`work()`, measured in a new process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(_timed, work).result()


def report(turns: Mapping[str, Sequence[Turn]], records: int) -> list[str]:
    """The lines to print; the last kind is the one that the others are compared with."""
    lines = []
    reference = list(turns.values())[-1]
    for name, runs in turns.items():
        median = {
            field: statistics.median(getattr(turn, field) for turn in runs)
            for field in ("seconds", "cpu", "peak_mb")
        }
        ratios = [r.seconds / turn.seconds for r, turn in zip(reference, runs, strict=True)]
        lines.append(
            f"{name:<9}{records / median['seconds']:8.0f} records/s  {median['cpu']:6.2f} s CPU  "
            f"{median['peak_mb']:5.0f} MB peak  x{statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return lines


def main(argv: Sequence[str]) -> None:
    """Makes the pool, runs the turns and prints the figures."""
    del argv
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as name:
        folder = pathlib.Path(name)
        decisions = make_pool(folder / "pool", FLAGS.shards, FLAGS.records, FLAGS.pax)
        out = folder / "out"
        target = FLAGS.target_shard_bytes
        source = (folder / "pool", out, decisions)
        kinds = {
            "ours": functools.partial(filter_ours, *source, FLAGS.processes, target),
            "ours, 1": functools.partial(filter_ours, *source, 1, target),
            "tarfile": functools.partial(filter_plain, *source),
        }
        turns: dict[str, list[Turn]] = {name: [] for name in kinds}
        for _ in range(FLAGS.rounds):
            for kind, work in kinds.items():
                turns[kind].append(run(work))
                shutil.rmtree(out)
        if len({tuple(turn.counts.items()) for runs in turns.values() for turn in runs}) != 1:
            raise RuntimeError("the runs kept different numbers of records")
    for line in report(turns, FLAGS.shards * FLAGS.records):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_integer("shards", 60, "Tars of the pool.", lower_bound=1)
    flags.DEFINE_integer("records", 1000, "Records in each tar.", lower_bound=1)
    flags.DEFINE_integer("processes", 2, "Our worker processes.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
    flags.DEFINE_integer(
        "target_shard_bytes", writing.TARGET_SHARD_BYTES, "Aimed size of our shards.", lower_bound=1
    )
    flags.DEFINE_bool("pax", True, "Tars with times to the microsecond, as webdataset writes them.")
    flags.DEFINE_string("folder", None, "Where to make the temporary folder.")
    cli.run(main)
