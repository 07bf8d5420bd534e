"""How far the cells of a sweep are, from what their runs have written."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdg_jax.data import files
from clipdg_jax.evaluation import tables, zero_shot

_TAIL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class State:
    """One cell.

    Attributes:
      kind: complete, failed, running (by this process), begun (by another one, or stopped),
        waiting.
      step: the last one that was logged; 0 before.
      loss: there; 0 where there is none.
      told: of a complete cell its accuracies by domain, of a failed one why.
    """

    kind: str
    step: int = 0
    loss: float = 0.0
    told: str = ""


def complete(workdir: Path) -> bool:
    """Whether a run is."""
    return (workdir / "results.json").is_file()


def state(workdir: Path, failure: str, running: bool) -> State:
    """Of one cell.

    Args:
      workdir: of its run, which may not exist yet.
      failure: why it failed; "" if it did not.
      running: whether this process runs it.
    """
    last = last_metrics(workdir)
    step, loss = int(last.get("step", 0)), float(last.get("loss", 0.0))
    if complete(workdir):
        return State("complete", step, 0.0, _accuracies(workdir))
    kind = "failed" if failure else "running" if running else "begun" if step else "waiting"
    return State(kind, step, loss, failure)


def last_metrics(workdir: Path) -> dict[str, Any]:
    """The last whole line of a run's metrics that has a loss, read from the file's end."""
    path = workdir / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "loss" in values:
            return values
    return {}


def table(states: Mapping[str, State]) -> str:
    """All cells, and how many are of each kind."""
    rows = [
        (
            name,
            one.kind,
            f"{one.step:,}" if one.step else "",
            f"{one.loss:.3f}" if one.loss else "",
        )
        for name, one in states.items()
    ]
    head, rule, *lines = tables.aligned(("run", "state", "step", "loss"), rows, names=2).split("\n")
    told = [
        f"{line:<{len(rule)}}  {one.told}".rstrip() for line, one in zip(lines, states.values())
    ]
    return "\n".join([head, rule, *told, "", summary(states)])


def summary(states: Mapping[str, State]) -> str:
    """Such as "3 of 45 complete, 1 running"."""
    kinds = [one.kind for one in states.values()]
    others = [
        f"{kinds.count(kind)} {kind}"
        for kind in ("failed", "running", "begun", "waiting")
        if kind in kinds
    ]
    return ", ".join([f"{kinds.count('complete')} of {len(kinds)} complete", *others])


class Table:
    """Shows the cells: redrawn in place on a terminal, else line by line as they change.

    Args:
      path: where it is written too, for whoever is not at the terminal.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines = 0
        self._kinds: dict[str, str] = {}

    def show(self, states: Mapping[str, State]) -> None:
        text = table(states)
        files.write_text(self._path, text + "\n")
        if sys.stdout.isatty():
            up = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
            print(up + text, flush=True)
            self._lines = len(text.splitlines())
            return
        changed = [name for name, one in states.items() if self._kinds.get(name) != one.kind]
        for name in changed if self._kinds else ():
            one = states[name]
            print(f"{one.kind}: {name}{f': {one.told}' if one.told else ''}", flush=True)
        if changed:
            print(summary(states), flush=True)
        self._kinds = {name: one.kind for name, one in states.items()}


def _accuracies(workdir: Path) -> str:
    try:
        results = json.loads((workdir / "results.json").read_text())
        means = zero_shot.summary(results.get("zero_shot", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return ", ".join(
        f"{suite} {domain} {100 * mean:.1f} %"
        for suite, domains in means.items()
        for domain, mean in domains.items()
    )
