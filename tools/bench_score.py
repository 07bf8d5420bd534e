"""How fast tars are scored by a domain classifier, waiting how much for data, in what memory.

    python -m tools.bench_score                                   # after `make demo`
    python -m tools.bench_score --classifier=runs/classify-paper/finetune --tars=100 --size=256

For each number of tars: draws pictures of the demo world, packs `--records` of them into each tar
of a temporary folder, and scores these as the job curate does, in a new process. Printed are images
a second, the share of the time in which the classifier waited for images to be read and decoded,
and the peak resident memory, the classifier's included, which should not grow with the tars.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

from absl import flags

from clipdg_jax.data import engine, pool, tars
from clipdg_jax.domains.curation import scoring
from tools import bench_filter, bench_pictures, cli

FLAGS = flags.FLAGS

_PICTURES = 256  # Distinct ones.


def score(
    folder: pathlib.Path, classifier: pathlib.Path, work: pathlib.Path, batch: int
) -> Mapping[str, float]:
    """Scores the tars in `folder`; images, and seconds that these were waited for and scored."""
    shards = tars.open_tars(str(folder)).shards()
    counts = scoring.score(
        shards,
        scoring.Saved.at(classifier),
        work,
        identity={"tool": "bench_score"},
        to_records=pool.ToRecords(),
        batch=batch,
    )
    outputs = [engine.read_report(work, index)["output"] for index in range(len(shards))]
    times = {name: sum(one[name] for one in outputs) for name in ("waited_s", "scored_s")}
    return {"images": counts.written, **times}


def report(tars_count: int, turn: bench_filter.Turn) -> str:
    """The line to print."""
    waited, scored = turn.counts["waited_s"], turn.counts["scored_s"]
    return (
        f"{tars_count:5d} tars  {turn.counts['images'] / (waited + scored):8.0f} images/s  "
        f"{100 * waited / (waited + scored):5.1f} % waiting  {turn.peak_mb:5.0f} MB peak"
    )


def main(argv: Sequence[str]) -> None:
    """Scores the pools and prints a line for each."""
    del argv
    classifier = pathlib.Path(FLAGS.classifier)
    scoring.Saved.at(classifier)  # Before anything is drawn.
    pictures = bench_pictures.draw(_PICTURES, FLAGS.size)
    for count in FLAGS.tars:
        with tempfile.TemporaryDirectory(dir=FLAGS.folder) as name:
            folder = pathlib.Path(name)
            records = count * FLAGS.records
            bench_pictures.write_tars(folder / "pool", pictures, count, records)
            work = functools.partial(
                score, folder / "pool", classifier, folder / "work", FLAGS.batch_size
            )
            print(report(count, bench_filter.run(work)), flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("classifier", "runs/classify-demo/ensemble", "A saved classifier.")
    flags.DEFINE_multi_integer("tars", [10, 100], "Numbers of tars.", lower_bound=1)
    flags.DEFINE_integer("records", 200, "Records in each tar.", lower_bound=1)
    flags.DEFINE_integer("size", 40, "Pixels of an image's side, as the demo's.", lower_bound=16)
    flags.DEFINE_integer("batch_size", 256, "Images scored together.", lower_bound=1)
    flags.DEFINE_string("folder", None, "Where to make the temporary folder.")
    cli.run(main)
