"""Running cells, with runs that are a line of Python."""

import dataclasses
import pathlib
import sys

import pytest

from clipdg_jax import errors
from tools import cells


@dataclasses.dataclass(frozen=True)
class Cell:
    """Counts its runs in a file, and says on which cores it ran and what it was handed."""

    name: str
    fails: bool = False

    def command(self, runs, extra):
        workdir = runs / self.name
        script = f"""
import json, os, pathlib, sys
if {self.fails}:
    print("Traceback of something", file=sys.stderr)
    sys.exit("error: labels: are wrong; mend them")
workdir = pathlib.Path({str(workdir)!r})
workdir.mkdir(exist_ok=True)
count = len(list(workdir.iterdir()))
(workdir / f"run{{count}}").touch()
found = {{"name": {self.name!r}, "cores": sorted(os.sched_getaffinity(0)), "extra": {extra!r}}}
(workdir / "results.json").write_text(json.dumps(found))
"""
        # What a process does before its cores are set is not what is tested.
        return [sys.executable, "-c", f"import time; time.sleep(0.1)\n{script}"]


def test_results_come_in_order_from_equal_shares_of_the_cores(tmp_path, monkeypatch):
    shares = []
    monkeypatch.setattr(cells.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cells.os, "sched_setaffinity", lambda _, share: shares.append(share))
    runs = tmp_path / "not" / "there"
    found = cells.run_all([Cell(f"c{i}") for i in range(3)], runs, ["a=1"], parallel=2)
    assert [one["name"] for one in found] == ["c0", "c1", "c2"]
    assert all(one["extra"] == ["a=1"] for one in found)
    assert len(shares) == 3
    assert {frozenset(share) for share in shares} == {frozenset({0, 2}), frozenset({1, 3})}
    # More runs at a time than cores: each may use all of them.
    shares.clear()
    cells.run_all([Cell(f"c{i}") for i in range(5)], runs, [], parallel=5)
    assert {0, 1, 2, 3} in shares


def test_a_run_gets_its_share(tmp_path):
    core = min(cells.os.sched_getaffinity(0))
    assert cells.run_cell(Cell("c"), tmp_path, [], {core})["cores"] == [core]


def test_a_failure_is_one_line_and_the_study_goes_on_after_it(tmp_path):
    todo = [Cell("good"), Cell("bad", fails=True), Cell("later")]
    with pytest.raises(errors.UserError) as raised:
        cells.run_all(todo, tmp_path, [], parallel=1)
    assert str(raised.value) == "bad: exit status 1: error: labels: are wrong; mend them"
    assert "Traceback of something" in (tmp_path / "bad.log").read_text()
    mended = [dataclasses.replace(cell, fails=False) for cell in todo]
    assert len(cells.run_all(mended, tmp_path, [], parallel=1)) == 3


def test_commands_are_runs_of_the_main_program():
    made = cells.command("configs/x.py:y", pathlib.Path("runs/z"), ["seed=1", "data.root=d"])
    assert made == [
        sys.executable,
        "-m",
        "clipdg_jax.main",
        "--config=configs/x.py:y",
        "--workdir=runs/z",
        "--config.seed=1",
        "--config.data.root=d",
    ]
