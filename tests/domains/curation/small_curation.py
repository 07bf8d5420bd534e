"""Small pools on disk, in shards and in tars, and scores that were never computed."""

import dataclasses
import functools
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import engine, schema, writing
from clipdg_jax.domains.curation import duplicates, selection, table
from tests.domains import small_datasets

SHARD = 10  # records
CLASSES = ("ant", "bee", "cat", "dog", "eel")


@functools.cache
def picture(number: int) -> bytes:
    """Noise, 12 x 14 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def url(number: int) -> str:
    return f"https://example.org/{number}.png"


@dataclasses.dataclass(frozen=True)
class Make:
    """Record i is of domain i % 3, which its caption names, and of class i % 5."""

    damaged: tuple[int, ...] = ()
    domains: bool = True

    def __call__(self, i: int) -> schema.Record:
        return schema.Record(
            key=f"r/{i:03d}",
            image=b"broken" if i in self.damaged else picture(i),
            caption=small_datasets.CAPTIONS[i % 3],
            label=i % len(CLASSES),
            domain=schema.DOMAINS[i % 3] if self.domains else "",
            meta={"url": url(i)},
        )


def pool(path, count=30, *, damaged=(), domains=True, split="train"):
    """A dataset of shards of `SHARD` records."""
    return writing.write_dataset(
        path,
        engine.index_shards(count, SHARD),
        engine.Each(Make(tuple(damaged), domains)),
        config={"tool": "a test"},
        classes=CLASSES,
        split=split,
        target_shard_bytes=8_000,  # Ten records and not twenty.
    )


def tars(path, count=30, *, damaged=()):
    """The same records, in tars as img2dataset writes them."""
    path.mkdir(parents=True)
    for start in range(0, count, SHARD):
        with tarfile.open(path / f"{start // SHARD:05d}.tar", "w") as tar:
            for i in range(start, min(start + SHARD, count)):
                record = Make(tuple(damaged))(i)
                told = json.dumps({"url": url(i)}).encode()
                members = {"png": record.image, "txt": record.caption.encode(), "json": told}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path


def scored(directory, shards, dropped=(), seen=None):
    """Scores on disk: of each shard a list of (key, natural, rendition, domain).

    A score of 0.5 or more is taken. `dropped` are (shard, row) of duplicates. The rows of the
    second shard leave out number 0, as if that image could not be read.
    """
    sink = table.Sink(directory)
    directory.mkdir(parents=True)
    for index, rows in enumerate(shards):
        output = sink.open(index)
        first = 1 if index == 1 else 0
        for row, (key, natural, rendition, domain) in enumerate(rows, first):
            taken = (natural >= 0.5, rendition >= 0.5)
            decision = {(True, False): 0, (False, True): 1, (False, False): 2, (True, True): 3}
            output.write(
                table.Row(
                    row=row,
                    key=key,
                    natural=natural,
                    rendition=rendition,
                    decision=decision[taken],
                    width=14,
                    height=12,
                    sha256=f"{index}-{row}",
                    phash=row,
                    label=row % 5,
                    domain=domain,
                    url=None,
                )
            )
        report = {
            "name": f"{index}",
            "seen": len(rows) + first,
            "written": len(rows),
            "dropped": {"corrupt_image": 1} if first else {},
            "faults": {},
            "output": output.commit(),
        }
        engine.report_path(directory, index).write_text(json.dumps(report))
    path = directory / "duplicates.parquet"
    keys = [shards[s][r - (s == 1)][0] for s, r in dropped]
    drop_list(path, [(s, r, key) for (s, r), key in zip(dropped, keys, strict=True)])
    return selection.ScoredPool(directory, len(shards), duplicates.Duplicates(path))


def drop_list(path, rows, **metadata):
    """A `duplicates.parquet` of (shard, row, key)."""
    shard, row, key = zip(*rows, strict=True) if rows else ((), (), ())
    made = pa.table(
        {
            "shard": pa.array(shard, pa.int32()),
            "row": pa.array(row, pa.int32()),
            "key": pa.array(key, pa.string()),
        }
    )
    pq.write_table(made.replace_schema_metadata(metadata), path)


def random_shards(sizes, seed=0, prefix="k"):
    """Rows as `scored` takes them."""
    rng = np.random.default_rng(seed)
    number = iter(range(sum(sizes)))
    return [
        [
            (f"{prefix}/{next(number)}", *rng.random(2).tolist(), int(rng.integers(0, 3)))
            for _ in range(size)
        ]
        for size in sizes
    ]
