"""The cells of a study: each is a run of its own, in a process and a workdir of its own.

The same study again goes on where the last one stopped, because every run does.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from absl import flags

from clipdg_jax import errors
from clipdg_jax.data import files


class Cell(Protocol):
    """One run of a study."""

    @property
    def name(self) -> str:
        """Its own among all cells; the run's workdir and log are called so."""
        ...

    def command(self, runs: pathlib.Path, extra: Sequence[str]) -> list[str]:
        """The command line of the run.

        Args:
          runs: the directory that holds the workdirs.
          extra: "field=value", handed to every run of the study.
        """
        ...


def define_flags(runs: str, seeds: int, repeated: str) -> None:
    """The flags that studies share, with their defaults; `repeated` is what the seeds are of."""
    flags.DEFINE_string("runs", runs, "Where the runs and the tables go.")
    flags.DEFINE_integer(
        "parallel", 1, "Runs at a time, each on its own share of the cores.", lower_bound=1
    )
    flags.DEFINE_integer("seeds", seeds, f"Seeds of {repeated}.", lower_bound=1)
    flags.DEFINE_multi_string("set", [], "field=value, handed to every run as --config.field.")


def command(config: str, workdir: pathlib.Path, fields: Sequence[str]) -> list[str]:
    """The command line of a run of `clipdg_jax.main`.

    Args:
      config: file and argument, as --config takes them.
      workdir: of the run.
      fields: "field=value"; the last one of a field counts.
    """
    return [
        sys.executable,
        "-m",
        "clipdg_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        *(f"--config.{assignment}" for assignment in fields),
    ]


def run_cell(
    cell: Cell, runs: pathlib.Path, extra: Sequence[str], cores: set[int]
) -> dict[str, Any]:
    """Runs a cell to its end, or finds it finished, and returns its results.

    What the run prints goes to `<name>.log` in `runs`, which exists.

    Raises:
      errors.UserError: the run failed; with the last line of its log.
    """
    log = runs / f"{cell.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(cell.command(runs, extra), stdout=file, stderr=subprocess.STDOUT)
        os.sched_setaffinity(process.pid, cores)
        status = process.wait()
    if status:
        end = log.read_text().strip().splitlines()[-1:]
        raise errors.UserError(f"{cell.name}: exit status {status}: {' '.join(end)}")
    print(f"done: {cell.name}", flush=True)
    return json.loads((runs / cell.name / "results.json").read_text())


def run_all(
    todo: Sequence[Cell], runs: pathlib.Path, extra: Sequence[str], parallel: int
) -> list[dict[str, Any]]:
    """Runs all cells, `parallel` at a time on equal shares of the cores.

    Args:
      runs: the directory of the workdirs, made where it is missing.

    Returns:
      Their results, in order.

    Raises:
      errors.UserError: a run failed; cells that had not begun are left out.
    """
    files.make_directory(runs)
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for i in range(parallel):
        shares.put(set(cores[i::parallel]) or set(cores))

    def run(cell: Cell) -> dict[str, Any]:
        share = shares.get()
        try:
            return run_cell(cell, runs, extra, share)
        finally:
            shares.put(share)

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(run, todo))


def write(runs: pathlib.Path, text: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `study.md`, the tables, and `study.json`, all results by the name of their cell."""
    files.write_text(runs / "study.md", text)
    files.write_json(runs / "study.json", found)
