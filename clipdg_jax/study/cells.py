"""The cells of a sweep: which runs it is made of, their names and their command lines.

A cell is written as it would be typed, a config with an argument and fields that are set besides:

    configs/mix.py:study,natural=3,rendition=1 data.root=data/other optim.lr=1e-3
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.errors import UserError
from clipdg_jax.training import workdir

SWEEP = "sweep.json"  # In the sweep's workdir: its cells, as `describe` gives them.


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      name: its own among all cells; its workdir and its log are called so.
      config: file and argument, as --config takes them.
      fields: "field=value", in the order in which they are set; the last one of a field counts.
    """

    name: str
    config: str
    fields: tuple[str, ...]

    def arguments(self, directory: Path) -> list[str]:
        """What `clipdg_jax.main` takes: the config, the workdir, the fields."""
        return [
            f"--config={self.config}",
            f"--workdir={directory / self.name}",
            *(f"--config.{field}" for field in self.fields),
        ]

    def command(self, directory: Path) -> list[str]:
        """The command line, with this interpreter."""
        return [sys.executable, "-m", "clipdg_jax.main", *self.arguments(directory)]


def expand(texts: Iterable[str], seeds: Sequence[int], extra: Sequence[str] = ()) -> list[Cell]:
    """Every cell with every seed, seed by seed, so that an early look sees all of them.

    Args:
      texts: the cells, as they would be typed.
      seeds: the runs' `seed`; none leaves each cell its own.
      extra: "field=value", set in every cell, before what is its own.

    Raises:
      UserError: a text is empty or none, or two cells are the same.
    """
    parsed = [_parse(text) for text in texts]
    if not parsed:
        raise UserError("config.cells: is empty; give runs such as configs/mix.py:natural=1")
    cells = []
    for seed in seeds or (None,):
        for config, own in parsed:
            last = () if seed is None else (f"seed={seed}",)
            cells.append(Cell(_name(config, own, seed), config, (*extra, *own, *last)))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"config.cells: {twice} is there twice; name each run and each seed once")
    return cells


def describe(cells: Sequence[Cell], identities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """JSON-able: what `sweep.json` holds of each cell, by name."""
    return {
        cell.name: {"config": cell.config, "fields": list(cell.fields), "identity": identity}
        for cell, identity in zip(cells, identities, strict=True)
    }


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """The cells that a sweep's directory was made for, by name; UserError where it is none."""
    path = directory / SWEEP
    try:
        return dict(json.loads(path.read_text())["cells"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as a sweep's cells ({type(error).__name__}); give the workdir "
            "of a sweep"
        ) from error


def array(cells: Sequence[Cell], directory: Path) -> str:
    """One line for each cell: the arguments of `clipdg_jax.main`, quoted for a shell."""
    return "\n".join(shlex.join(cell.arguments(directory)) for cell in cells)


def _parse(text: str) -> tuple[str, tuple[str, ...]]:
    """(config, fields) of a cell as typed."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"config.cells: {text!r}: {error}") from error
    wrong = [word for word in words[1:] if "=" not in word or word.startswith("-")]
    if not words or wrong:
        raise UserError(
            f"config.cells: {text!r} is no run; write a config and the fields to set, such as "
            "'configs/mix.py:natural=1 optim.lr=1e-3'"
        )
    return words[0], tuple(words[1:])


def _name(config: str, fields: Sequence[str], seed: int | None) -> str:
    """As a run's default workdir is called, with what is set besides of its identity."""
    path, _, argument = config.partition(":")
    identity = (field.partition("=") for field in fields if not workdir.is_operational(field))
    own = [f"{field.rpartition('.')[2]}={value}" for field, _, value in identity]
    parts = [Path(path).stem, argument, *own, "" if seed is None else f"seed{seed}"]
    return re.sub(r"[^\w=.,+-]", "_", "-".join(part for part in parts if part))
