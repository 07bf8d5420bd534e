"""A run of `configs/curate.py` that takes no time, and one that is killed in the middle.

    python -m tests.jobs.small_curation COUNT ROOT WORKDIR OUT

kills itself, as `kill -9` would, when it is about to give the COUNT-th file its name.
"""

import json
import os
import pathlib
import signal
import sys

import ml_collections

from clipdg_jax.data import dataset, files
from clipdg_jax.jobs import curate
from tests.domains import small_datasets
from tests.domains.curation import small_curation
from tests.jobs import small_runs

RECORDS = 60
DAMAGED = (25,)
# (shard, row) of duplicates.
DROPPED = ((0, 2), (0, 3), (4, 9))


def make(root: pathlib.Path) -> None:
    """A pool of shards, the same in tars, a drop list, a classifier and a suite."""
    made = small_curation.pool(root / "pool", RECORDS, damaged=DAMAGED)
    small_curation.tars(root / "tars", RECORDS, damaged=DAMAGED)
    small_curation.drop_list(
        root / "duplicates.parquet",
        [(s, r, f"r/{10 * s + r:03d}") for s, r in DROPPED],
        pool=made.fingerprint,
    )
    small_datasets.saved(root / "classifier")
    small_curation.pool(root / "test" / "photos", 9, split="test")
    (root / "zoo").mkdir()
    fields = {"photos": {"dataset": "../test/photos", "domain": "natural"}}
    (root / "zoo" / "suite.json").write_text(json.dumps({"test_sets": fields}))


def config(
    root: pathlib.Path, out: pathlib.Path, preset: str = "demo", **fields: object
) -> ml_collections.ConfigDict:
    """The config of the small run; nested fields by dotted name."""
    made = small_runs.load_config("curate").get_config(preset)
    made.data.root, made.out = str(root), str(out)
    made.inputs = ()
    made.data.demo = ml_collections.ConfigDict()
    if preset == "demo":
        made.classifier = str(root / "classifier")
        made.duplicates = str(root / "duplicates.parquet")
        made.test_sets = "zoo"
        made.controls = "natural"
    made.batch_size = 8
    made.target_shard_bytes = 10_000  # Of several parts.
    made.data.threads = 1
    made.data.vocab_size = 600
    made.update_from_flattened_dict(fields)
    return made


def sums(out: pathlib.Path) -> dict[str, str]:
    """sha256 of every shard and manifest below a directory."""
    found = [*out.rglob("*.array_record-*"), *out.rglob(dataset.MANIFEST)]
    return {str(path.relative_to(out)): files.sha256(path) for path in sorted(found)}


def main(count: int, root: str, workdir: str, out: str) -> None:
    """Runs until the `count`-th file is complete but for its name."""
    publish, left = files.publish, count

    def publish_or_die(temporary: pathlib.Path, path: pathlib.Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(temporary, path)

    files.publish = publish_or_die
    curate.run(config(pathlib.Path(root), pathlib.Path(out)), pathlib.Path(workdir))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
