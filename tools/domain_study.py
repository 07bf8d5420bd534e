"""Runs the README's study of domain classifiers: all methods, five seeds, worse and fewer labels.

    python -m tools.domain_study --runs=runs/domain-study --parallel=2

Each cell is one run of `configs/classify.py:compare` in a workdir of its own, so that the same
command again goes on where the last one stopped:

    seed0          every method and the ensemble
    seed<s>        the fine-tuned classifier and the ensemble, with other labels and another start
    noise<rate>    seed 0, the ensemble; so much of the training labels is wrong
    labels<count>  seed 0, the ensemble; so many training labels

The ensemble's members are fitted in seconds, which is why it is the one to be swept.

All start from the one encoder of the config. At the end `study.md` (the tables of the README),
`study.json` and `study.png` are in the runs directory. All figures are of `test/pool`: images of
the pool that had no part in anything, and the domains that their renderer gave them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from absl import flags

from clipdg_jax import errors
from clipdg_jax.data import files
from clipdg_jax.domains import calibration, measures, report
from clipdg_jax.evaluation import tables
from clipdg_jax.study import cells as cells_lib
from clipdg_jax.study import runner
from configs import classify
from tools import cli, domain_figure

matplotlib.use("Agg")

FLAGS = flags.FLAGS
flags.DEFINE_string("runs", "runs/domain-study", "Where the runs and the tables go.")
flags.DEFINE_integer(
    "parallel", 1, "Runs at a time, each on its own share of the cores.", lower_bound=1
)
flags.DEFINE_integer("seeds", 5, "Seeds of finetune and ensemble.", lower_bound=1)
flags.DEFINE_multi_string("set", [], "field=value, handed to every run as --config.field.")

CONFIG = "configs/classify.py:compare"
METHODS = ("finetune", "ensemble")  # Those of every seed.
SWEPT = "ensemble"  # What is fitted to worse and to fewer labels.
TEST_SET = "test/pool"
NOISE = (0.0, 0.1, 0.2)  # Beside the config's own rate of wrong training labels.
LABELS = (250, 500, 1000)  # Beside the config's own number of training labels.
RATE_FIELD, COUNT_FIELD = "labels.simulate.train_noise", "labels.simulate.train"

_ABOUT_SEEDS = (
    f"True precision and recall on {TEST_SET}. A seed has its own labels, errors of the "
    "annotators, readout and order of training; the encoder that all start from is the same."
)
_ABOUT_LABELS = (
    f"Seed 0, on {TEST_SET}. The thresholds come from as many validation labels of the same "
    "quality; where there are fewer training labels they are of other records, because one draw "
    "gives first the training labels, then those."
)

Deciders = dict[str, measures.Measured]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the study. Without `noise` and `labels` it has the config's own."""

    seed: int = 0
    noise: float | None = None
    labels: int | None = None

    @property
    def name(self) -> str:
        if self.noise is not None:
            return f"noise{self.noise:g}"
        return f"seed{self.seed}" if self.labels is None else f"labels{self.labels}"

    def run(self, extra: Sequence[str]) -> cells_lib.Cell:
        """The run; what makes it this cell comes last, and so counts."""
        fields = [*extra, f"seed={self.seed}"]
        if self.seed:
            fields += [f"compare={','.join(METHODS)}", f"data.test_sets={TEST_SET}"]
        elif self != Cell():
            fields += [f"compare={SWEPT}", f"data.test_sets={TEST_SET}"]
        if self.noise is not None:
            fields.append(f"{RATE_FIELD}={self.noise}")
        if self.labels is not None:
            fields.append(f"{COUNT_FIELD}={self.labels}")
        return cells_lib.Cell(self.name, CONFIG, tuple(fields))


def cells(seeds: int, extra: Sequence[str] = ()) -> list[Cell]:
    """Every cell. `extra` can change the default that noise and counts are besides."""
    main = [Cell(seed) for seed in range(seeds)]
    noise = [Cell(noise=rate) for rate in NOISE if rate != setting(RATE_FIELD, extra)]
    labels = [Cell(labels=count) for count in LABELS if count != setting(COUNT_FIELD, extra)]
    return main + noise + labels


def setting(field: str, extra: Sequence[str]) -> Any:
    """What every run has in a field: from `extra` ("field=value"), else the config's own.

    Raises UserError where the value is no number.
    """
    config = classify.get_config("compare")
    default = functools.reduce(lambda section, name: section[name], field.split("."), config)
    pairs = [assignment.partition("=") for assignment in extra]
    given = [value for name, _, value in pairs if name == field]
    try:
        return type(default)(given[-1]) if given else default
    except ValueError as error:
        raise errors.UserError(
            f"--set={field}: is {given[-1]!r}; give a number such as {default}"
        ) from error


def deciders(cell: Cell, results: Mapping[str, Any], method: str) -> Deciders:
    """How both deciders of a method do on fresh images, by their domain.

    Raises UserError where a cell did not measure that.
    """
    measured = results["sets"].get(TEST_SET, {"methods": {}})["methods"].get(method)
    if measured is None:
        raise errors.UserError(
            f"{cell.name}: has no {method} on {TEST_SET}; leave these in --set=compare and "
            "--set=data.test_sets"
        )
    return {name: measures.Measured.from_json(measured[name]) for name in calibration.DECIDED}


def seeds_table(by_seed: Mapping[int, Deciders]) -> str:
    """Markdown: precision and recall of both deciders for each seed, their lowest and mean."""
    columns = list(itertools.product(calibration.DECIDED, ("precision", "recall")))
    head = ["seed", *(f"{domain}: {figure} %" for domain, figure in columns)]
    rows = [
        [str(seed), *(_shown(getattr(row[domain], figure)) for domain, figure in columns)]
        for seed, row in by_seed.items()
    ]
    values = [
        _defined(getattr(row[domain], figure).value for row in by_seed.values())
        for domain, figure in columns
    ]
    for name, summary in (("lowest", min), ("mean", statistics.fmean)):
        rows.append([name, *(_percent(summary(v)) if v else "-" for v in values)])
    return tables.markdown(head, rows)


def lowest(by_seed: Mapping[int, Deciders]) -> str:
    """One line: the lowest true precision and recall of all seeds and deciders."""
    found = [one for row in by_seed.values() for one in row.values()]
    taking = _defined(one.precision.value for one in found)
    precision = f"{_percent(min(taking))} %" if taking else "undefined"
    recall = _percent(min(one.recall.value for one in found))
    idle = len(found) - len(taking)
    note = f"; {idle} of the {len(found)} deciders take nothing" if idle else ""
    return f"Lowest of all seeds and deciders: true precision {precision}, recall {recall} %{note}."


def labels_table(rows: Mapping[tuple[int, float], Deciders]) -> str:
    """Markdown: both deciders for each number of training labels and rate of wrong ones."""
    figures = (("precision", "precision"), ("recall", "recall"), ("average_precision", "AP"))
    columns = list(itertools.product(calibration.DECIDED, figures))
    head = ["labels", "wrong %", *(f"{domain}: {title} %" for domain, (_, title) in columns)]
    shown = [
        [
            str(count),
            f"{100 * rate:g}",
            *(_shown(getattr(row[domain], figure)) for domain, (figure, _) in columns),
        ]
        for (count, rate), row in rows.items()
    ]
    return tables.markdown(head, shown, names=0)


def refusals(found: Mapping[Cell, Mapping[str, Any]]) -> str:
    """Markdown: which cells have a decider without a threshold, and why."""
    lines = [
        f"- {cell.name}, {method}: {decider['refusal']}"
        for cell, results in found.items()
        for method in METHODS
        if method in results["methods"]
        for decider in results["methods"][method]["deciders"].values()
        if decider["refusal"]
    ]
    return "\n".join(["Without a threshold, and so taking nothing:\n", *lines]) if lines else ""


def _defined(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _percent(value: float) -> str:
    return measures.Estimate(value).percent()


def _shown(estimate: measures.Estimate) -> str:
    bounds = "" if math.isnan(estimate.low) else f" ({estimate.interval()})"
    return estimate.percent() + bounds


def summarise(
    found: Mapping[Cell, Mapping[str, Any]], runs: pathlib.Path, extra: Sequence[str]
) -> str:
    """Writes the tables and the picture of finished cells to `runs`, and returns the tables."""
    seeds = [cell for cell in found if cell == Cell(cell.seed)]
    by_seed = {
        method: {cell.seed: deciders(cell, found[cell], method) for cell in seeds}
        for method in METHODS
    }
    swept = {cell: deciders(cell, results, SWEPT) for cell, results in found.items()}
    rate, count = setting(RATE_FIELD, extra), setting(COUNT_FIELD, extra)
    by_noise = {rate: swept[Cell()]} | {c.noise: r for c, r in swept.items() if c.noise is not None}
    by_labels = {count: swept[Cell()]} | {
        c.labels: row for c, row in swept.items() if c.labels is not None
    }
    by_noise, by_labels = dict(sorted(by_noise.items())), dict(sorted(by_labels.items()))
    both = {(count, noise): row for noise, row in by_noise.items()}
    both |= {(number, rate): row for number, row in by_labels.items()}
    first = found[Cell()]
    blocks = [
        report.markdown({**first, "sets": {TEST_SET: first["sets"][TEST_SET]}}).strip(),
        f"## {len(seeds)} seeds",
        _ABOUT_SEEDS,
    ]
    for method, rows in by_seed.items():
        blocks += [f"### {method}", seeds_table(rows), lowest(rows)]
    blocks += [
        f"## Wrong labels and fewer labels: {SWEPT}",
        _ABOUT_LABELS,
        labels_table(both),
        refusals(found),
    ]
    text = "\n\n".join(block for block in blocks if block) + "\n"
    files.write_text(runs / "study.md", text)
    files.write_json(runs / "study.json", {cell.name: results for cell, results in found.items()})
    others = [row for seed, row in by_seed[SWEPT].items() if seed]
    target = setting("calibration.target", extra)
    domain_figure.draw(runs / "study.png", by_noise, by_labels, others, (rate, count), target)
    return text


def main(argv: Sequence[str]) -> None:
    del argv
    runs, extra = pathlib.Path(FLAGS.runs), FLAGS.set
    todo = cells(FLAGS.seeds, extra)
    files.make_directory(runs)
    runner.run_all([cell.run(extra) for cell in todo], runs, FLAGS.parallel)
    found = {cell: json.loads((runs / cell.name / "results.json").read_text()) for cell in todo}
    print(summarise(found, runs, extra))


if __name__ == "__main__":
    cli.run(main)
