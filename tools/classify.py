r"""Sorts images into domains with a saved classifier.

    python -m tools.classify --classifier=runs/classify/finetune --dataset=data/pool \
        --out=decisions.parquet
    python -m tools.classify --classifier=runs/classify-pacs/ensemble --folder=photos \
        --out=decisions.parquet

Writes a row for each image: its key, both probabilities and the decision (natural, rendition,
ambiguous, or conflict where both deciders take it). Where the records name their own domain, or
`--domain` says that all are of one, it also tells the precision and recall of both deciders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags

from clipdg_jax.data import files, resolve, schema, shards
from clipdg_jax.domains import calibration, classifier, inputs, report
from clipdg_jax.domains import scores as scores_lib
from clipdg_jax.errors import UserError
from clipdg_jax.training import sharding
from tools import cli

CLASSIFIER = flags.DEFINE_string("classifier", None, "A saved classifier.")
DATASETS = flags.DEFINE_list("dataset", [], "Datasets, by path or by name below --data_root.")
FOLDER = flags.DEFINE_string("folder", None, "Or a folder of images, searched at every depth.")
DATA_ROOT = flags.DEFINE_string("data_root", "data", "Where datasets are looked for.")
DOMAIN = flags.DEFINE_enum("domain", None, list(schema.DOMAINS), "The true domain of all images.")
OUT = flags.DEFINE_string("out", None, "The Parquet file to write.")
BATCH = flags.DEFINE_integer("batch", 256, "Images at a time.", lower_bound=1)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def main(argv: Sequence[str]) -> None:
    del argv
    if not CLASSIFIER.value or not OUT.value or bool(DATASETS.value) == bool(FOLDER.value):
        raise UserError("flags: give --classifier, --out, and one of --dataset and --folder")
    out = Path(OUT.value)
    if out.exists():
        raise UserError(f"{out}: exists; choose another --out or remove it")
    files.make_directory(out.parent)  # Now, not after hours of work.
    loaded = classifier.load(CLASSIFIER.value, sharding.make_mesh())
    records: Iterator[schema.Record | None]
    if FOLDER.value:
        total, records = _folder(Path(FOLDER.value))
    else:
        sources = [resolve.resolve(name, DATA_ROOT.value) for name in DATASETS.value]
        total, records = sum(map(len, sources)), _records(sources)
    keys, truth, scores, unreadable = [], [], [np.zeros((0, 2), np.float32)], 0
    with tqdm.tqdm(total=total, unit=" images", disable=None) as bar:
        for batch in _batches(records, BATCH.value):
            seen = inputs.Inputs([r for r in batch if r is not None])
            valid = seen.valid
            kept = [i for i in range(len(seen)) if valid[i]]
            unreadable += len(batch) - len(kept)
            if kept:
                scores.append(loaded.method.score(seen)[kept])
            keys += [seen.keys[i] for i in kept]
            truth += [DOMAIN.value or seen.domains[i] for i in kept]
            bar.update(len(batch))
    probability = np.concatenate(scores)
    decision = calibration.decide(probability, loaded.calibration)
    _write(out, keys, truth, probability, decision)
    names = calibration.DECISIONS
    told = ", ".join(f"{int(np.sum(decision == i))} {name}" for i, name in enumerate(names))
    print(f"{out}: {len(keys)} images: {told}; {unreadable} could not be read")
    if keys and all(truth):
        numbers = np.array([schema.DOMAINS.index(name) for name in truth], np.int32)
        scored = scores_lib.Scores(tuple(keys), numbers, probability, np.ones(len(keys), bool))
        one = report.Compared(
            loaded.name, loaded.method.describe(), loaded.calibration, {out.stem: scored}
        )
        print(report.text(report.measure([one])))


def _folder(folder: Path) -> tuple[int, Iterator[schema.Record | None]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give one that holds images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder}: holds no {', '.join(_SUFFIXES)} files; give one that does")
    return len(paths), (_read(path, folder) for path in paths)


def _read(path: Path, folder: Path) -> schema.Record | None:
    try:
        return schema.Record(key=path.relative_to(folder).as_posix(), image=path.read_bytes())
    except OSError:
        return None


def _records(sources: Sequence[resolve.Source]) -> Iterator[schema.Record | None]:
    for source in sources:
        for index in range(len(source)):
            try:
                yield source.record(index)
            except shards.RecordError:
                yield None


def _batches(
    records: Iterator[schema.Record | None], size: int
) -> Iterator[list[schema.Record | None]]:
    batch = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(
    out: Path,
    keys: Sequence[str],
    truth: Sequence[str],
    probability: np.ndarray,
    decision: np.ndarray,
) -> None:
    columns = {
        "key": list(keys),
        "domain": list(truth),
        "natural": probability[:, 0],
        "rendition": probability[:, 1],
        "decision": [calibration.DECISIONS[i] for i in decision.tolist()],
    }
    with files.whole(out) as unfinished:
        pq.write_table(pa.table(columns), unfinished, compression="zstd")


if __name__ == "__main__":
    cli.run(main)
