"""Runs the cells of a sweep, each in a process of its own, and none of them twice.

In the sweep's directory each cell has its workdir `<name>`, beside which there are `<name>.log`,
what it printed, and `.<name>.lock`, which is held as long as anyone runs it. So any number of
processes, on any hosts that share the directory and its locks, work on one sweep: each takes cells
that nobody runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipdg_jax import stopping
from clipdg_jax.data import files
from clipdg_jax.errors import UserError
from clipdg_jax.study import cells as cells_lib
from clipdg_jax.study import progress

_POLL_SECONDS = 0.5
STATUS = "status.txt"  # The live table, in the sweep's directory.
# What a child gets to save its checkpoint in before it is killed.
GRACE_SECONDS = 120.0


def run_all(cells: Sequence[cells_lib.Cell], directory: Path, parallel: int = 1) -> None:
    """Runs every cell that is not complete, and shows how far they are.

    Raises:
      UserError: cells failed; the others are complete.
      stopping.Stopped: SIGTERM came.
    """
    table = progress.Table(directory / STATUS)
    running = Runner(cells, directory, lambda cell: cell.command(directory), table.show)
    failed = running.run(parallel)
    if failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise UserError(
            f"{len(failed)} of {len(cells)} runs failed; the same command again tries them anew, "
            f"their logs are in {directory}. {told}"
        )


@dataclasses.dataclass
class _Child:
    """A cell that this process runs, with the lock that it holds meanwhile."""

    cell: cells_lib.Cell
    process: subprocess.Popen[bytes]
    held: contextlib.ExitStack
    cores: frozenset[int]


class Runner:
    """Runs cells until all are complete, by this process or by others.

    Args:
      cells: what to run, in this order.
      directory: the sweep's; it exists.
      command: the command line of a cell.
      show: called with the state of every cell, by name, when one of them has changed.
    """

    def __init__(
        self,
        cells: Sequence[cells_lib.Cell],
        directory: Path,
        command: Callable[[cells_lib.Cell], Sequence[str]],
        show: Callable[[Mapping[str, progress.State]], None],
    ):
        self._cells, self._directory = list(cells), directory
        self._command, self._show = command, show
        self._children: dict[str, _Child] = {}
        self._failed: dict[str, str] = {}
        self._shown: dict[str, progress.State] = {}

    def run(self, parallel: int = 1) -> dict[str, str]:
        """Runs them, `parallel` at a time on equal shares of the cores.

        Cells that other processes run are waited for, and taken over where those give them up. A
        cell that fails is left, and the others go on.

        Returns:
          Why cells failed, by name: the exit status and the last line of the log.

        Raises:
          stopping.Stopped: SIGTERM came; the cells that ran were told, and have ended.
        """
        own = sorted(os.sched_getaffinity(0))
        shares = [frozenset(own[i::parallel] or own) for i in range(parallel)]
        with stopping.watch():
            try:
                while not stopping.asked():
                    self._reap()
                    free = shares.copy()
                    for child in self._children.values():
                        free.remove(child.cores)
                    self._start(free)
                    self._tell()
                    if not self._children and not self._left():
                        return dict(self._failed)
                    time.sleep(_POLL_SECONDS)
            finally:
                self._end_all()
                self._tell()
        raise stopping.Stopped("the cells that ran have saved what they could")

    def _left(self) -> list[cells_lib.Cell]:
        """Cells that are neither complete nor failed nor run by this process."""
        return [
            cell
            for cell in self._cells
            if cell.name not in self._failed
            and cell.name not in self._children
            and not progress.complete(self._directory / cell.name)
        ]

    def _start(self, free: list[frozenset[int]]) -> None:
        for cell in self._left() if free else ():
            held = contextlib.ExitStack()
            try:
                lock = held.enter_context(files.lock(self._directory / f".{cell.name}.lock"))
                # A run that nobody's sweep has started holds its workdir alone.
                workdir = self._directory / cell.name
                if workdir.is_dir():
                    with files.lock(workdir / ".lock"):
                        pass
            except UserError:
                held.close()  # Someone else runs it.
                continue
            if progress.complete(workdir):  # Since it was looked at.
                held.close()
                continue
            self._children[cell.name] = self._launch(cell, held, lock, free.pop())
            if not free:
                return

    def _launch(
        self, cell: cells_lib.Cell, held: contextlib.ExitStack, lock: int, cores: frozenset[int]
    ) -> _Child:
        with (self._directory / f"{cell.name}.log").open("ab") as log:
            # The child holds the lock as well, should this process be killed before it.
            process = subprocess.Popen(
                [*_guard(), *self._command(cell)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
            )
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
        return _Child(cell, process, held, cores)

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            status = child.process.poll()
            if status is None:
                continue
            del self._children[name]
            child.held.close()
            if status in (stopping.EXIT_STATUS, -signal.SIGTERM):
                continue  # It was told to stop, not by us: it is begun again.
            if status or not progress.complete(self._directory / name):
                self._failed[name] = self._reason(name, status)

    def _reason(self, name: str, status: int) -> str:
        lines = (self._directory / f"{name}.log").read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"exit status {status}: {last}" if status else f"wrote no results.json: {last}"

    def _end_all(self) -> None:
        """Tells what runs to stop, and waits for it."""
        for child in self._children.values():
            child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in self._children.values():
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.held.close()
        self._children.clear()

    def _tell(self) -> None:
        states = {
            cell.name: progress.state(
                self._directory / cell.name,
                self._failed.get(cell.name, ""),
                cell.name in self._children,
            )
            for cell in self._cells
        }
        if states != self._shown:
            self._shown = states
            self._show(states)


def _guard() -> list[str]:
    """What makes the kernel end a child with this process, where there is such a thing."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
