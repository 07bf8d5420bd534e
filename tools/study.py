"""Runs the README's study: three mixes, three seeds, and the cue correlation at three values.

    python -m tools.study --runs=runs/study --parallel=2

Each cell is one run of `configs/mix.py:study` in a workdir of its own, so that the same command
again goes on where the last one stopped. All cells see equally many examples. At the end it
writes `study.md` (the tables of the README), `study.json` and `study.png` to the runs directory.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

import matplotlib
from absl import flags

from clipdg_jax.data import demo
from clipdg_jax.evaluation import plots, stats
from tools import cells as cells_lib
from tools import cli

matplotlib.use("Agg")

MIXES = {
    "natural only": "natural=1,rendition=0",
    "mix 3:1": "natural=3,rendition=1",
    "rendition only": "natural=0,rendition=1",
}
CHANCE = 1 / len(demo.CLASSES)
CORRELATIONS = (0.3, 0.6, 0.9)
DEFAULT_CORRELATION = 0.9


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the study."""

    mix: str
    seed: int
    correlation: float

    @property
    def name(self) -> str:
        mix = self.mix.replace(" ", "-").replace(":", "")
        return f"{mix}-cue{self.correlation}-seed{self.seed}"

    def command(self, runs: pathlib.Path, extra: Sequence[str]) -> list[str]:
        """The command line of the run."""
        fields = [
            f"seed={self.seed}",
            f"data.root=data/study-cue{self.correlation}",
            f"data.demo.cue_correlation={self.correlation}",
            *extra,
        ]
        return cells_lib.command(
            f"configs/mix.py:study,{MIXES[self.mix]}", runs / self.name, fields
        )


def cells(seeds: int) -> list[Cell]:
    """Every cell: all mixes and seeds at the default correlation, one seed at the others."""
    main = [Cell(mix, seed, DEFAULT_CORRELATION) for seed in range(seeds) for mix in MIXES]
    others = [c for c in CORRELATIONS if c != DEFAULT_CORRELATION]
    return main + [Cell(mix, 0, c) for c in others for mix in ("natural only", "mix 3:1")]


def domain_accuracy(results: dict, suite: str, domain: str) -> float:
    """Mean top-1 over the test sets of one domain of a suite."""
    tests = results["zero_shot"][suite].values()
    return statistics.fmean(t["top1"] for t in tests if t["domain"] == domain)


def row_values(results: dict) -> dict[str, float]:
    """The columns of the study's table, as fractions, from one run's results."""
    styles = {
        name: t["top1"] for name, t in results["zero_shot"]["demo"].items() if name != "natural"
    }
    held_out = {name: t["top1"] for name, t in results["zero_shot"]["demo_heldout"].items()}
    return {
        "natural": domain_accuracy(results, "demo", "natural"),
        "renditions": domain_accuracy(results, "demo", "rendition"),
        **styles,
        **{f"{name} (held out)": value for name, value in held_out.items()},
    }


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table in percent: mean, and ± standard error over seeds where several."""
    columns = list(next(iter(rows.values()))[0])
    lines = ["| trained on | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        entries = []
        for column in columns:
            mean, error = stats.mean_and_standard_error([100 * v[column] for v in values])
            entries.append(f"{mean:.1f}" + (f" ± {error:.1f}" if len(values) > 1 else ""))
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def relative(by_mix: dict[str, list[dict[str, float]]]) -> str:
    """Natural-only against the mix on renditions, as a share and corrected for chance."""
    alone, mixed = (
        statistics.fmean(v["renditions"] for v in by_mix[name])
        for name in ("natural only", "mix 3:1")
    )
    corrected = stats.relative_corrected_accuracy(alone, mixed, CHANCE)
    return (
        f"On renditions, natural-only reaches {alone / mixed:.2f} of the mix's accuracy "
        f"({corrected:.2f} corrected for chance)."
    )


def main(argv: Sequence[str]) -> None:
    del argv
    given = flags.FLAGS
    runs = pathlib.Path(given.runs)
    todo = cells(given.seeds)
    results = cells_lib.run_all(todo, runs, given.set, given.parallel)
    found = dict(zip(todo, results, strict=True))
    by_mix = {
        mix: [
            row_values(r)
            for c, r in found.items()
            if c.mix == mix and c.correlation == DEFAULT_CORRELATION
        ]
        for mix in MIXES
    }
    by_correlation = {
        f"{mix}, cue correlation {correlation}": [row_values(found[Cell(mix, 0, correlation)])]
        for correlation in CORRELATIONS
        for mix in ("natural only", "mix 3:1")
    }
    text = f"{table(by_mix)}\n\n{relative(by_mix)}\n\n{table(by_correlation)}\n"
    cells_lib.write(runs, text, {cell.name: r for cell, r in found.items()})
    plots.grouped_bars(by_mix, runs / "study.png", chance=CHANCE)
    print(text)


if __name__ == "__main__":
    cells_lib.define_flags("runs/study", 3, "each mix at the default correlation")
    cli.run(main)
