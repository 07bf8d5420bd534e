"""The job sweep: its list, its directory, and, in full, a sweep that is killed twice."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from clipdg_jax import errors, jobs
from clipdg_jax.jobs import report, sweep
from clipdg_jax.study import cells as cells_lib
from tests import children
from tests.jobs import small_runs

MIXES = (
    "natural=0.12k,rendition=0k",
    "natural=0.08k,rendition=0.04k",
    "natural=0.04k,rendition=0.08k",
    "natural=0k,rendition=0.12k",
)


@pytest.fixture
def config(monkeypatch):
    """Two cells, two seeds."""
    monkeypatch.chdir(small_runs.REPO)
    made = small_runs.load_config("sweep").get_config("demo")
    made.cells = ("configs/mix.py:natural=1", "configs/mix.py:natural=1,rendition=1 optim.lr=1e-3")
    made.seeds = (0, 1)
    made.set = ("steps=10",)
    return made


@pytest.fixture
def quick(monkeypatch):
    """Runs of cells are a line of Python that writes results of its name."""

    def command(cell, directory):
        place = directory / cell.name
        results = {"zero_shot": {}, "name": cell.name}
        code = f"""
import pathlib
place = pathlib.Path({str(place)!r})
place.mkdir(exist_ok=True)
(place / "results.json").write_text({json.dumps(results)!r})
"""
        return [sys.executable, "-c", code]

    monkeypatch.setattr(cells_lib.Cell, "command", command)


def test_all_cells_are_run_and_noted(config, quick, tmp_path, capsys):
    jobs.module(config).run(config, tmp_path / "sweep")
    names = [
        f"mix-{mix}-seed{seed}"
        for seed in (0, 1)
        for mix in ("natural=1", "natural=1,rendition=1-lr=1e-3")
    ]
    done = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert done == {"job": "sweep", "cells": names}
    for name in names:
        assert (tmp_path / "sweep" / name / "results.json").exists()
    noted = cells_lib.read(tmp_path / "sweep")
    assert len({one["identity"] for one in noted.values()}) == 4
    assert "4 of 4 complete" in capsys.readouterr().out
    assert "4 of 4 complete" in (tmp_path / "sweep" / "status.txt").read_text()


def test_more_seeds_are_added_and_other_runs_of_a_name_are_refused(config, quick, tmp_path):
    config.seeds = (0,)
    sweep.run(config, tmp_path)
    config.seeds = (0, 1)
    sweep.run(config, tmp_path)
    assert len(cells_lib.read(tmp_path)) == 4
    config.set = ("steps=20",)
    with pytest.raises(errors.UserError, match=r"has another mix-natural=1-seed0, of fields"):
        sweep.run(config, tmp_path)
    # What is operational may change.
    config.set = ("steps=10", "log_every=1")
    sweep.run(config, tmp_path)


def test_the_list_for_a_launcher(config, tmp_path, capsys):
    config.print_array = True
    sweep.run(config, tmp_path / "sweep")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    assert lines[1] == [
        "--config=configs/mix.py:natural=1,rendition=1",
        f"--workdir={tmp_path}/sweep/mix-natural=1,rendition=1-lr=1e-3-seed0",
        "--config.steps=10",
        "--config.optim.lr=1e-3",
        "--config.seed=0",
    ]
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("set", ("optim.lrr=1",), "mix-natural=1-seed0: .*did you mean config.optim.lr"),
        ("set", ("batch_size=many",), "batch_size"),
        ("cells", ("configs/no.py",), "configs/no.py is no config file"),
        ("cells", ("configs/mix.py:natual",), "'natual' is neither a preset"),
        ("parallel", 0, "config.parallel: 0"),
    ],
)
def test_wrong_fields_are_one_line(config, tmp_path, field, value, reason):
    config[field] = value
    with pytest.raises(errors.UserError, match=reason):
        sweep.run(config, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.full
def test_a_sweep_that_is_killed_twice_and_its_report(demo_root, tmp_path):
    """TERM to it while a run trains, then KILL; in the end every run is complete, and as alone."""
    place = tmp_path / "sweep"
    fields = {"data.root": demo_root, **{f"data.demo.{k}": v for k, v in small_runs.WORLD.items()}}
    fields |= {k: v for k, v in small_runs.RUN.items() if k != "inputs"}
    command = [
        *(sys.executable, "-m", "clipdg_jax.main", "--config=configs/sweep.py"),
        f"--workdir={place}",
        f"--config.cells={tuple(f'configs/mix.py:study,{mix}' for mix in MIXES)!r}",
        "--config.seeds=(0,)",
        f"--config.set={tuple(f'{k}={v}' for k, v in fields.items())!r}",
    ]

    def begin() -> subprocess.Popen:
        return subprocess.Popen(
            command, env=children.environment(), cwd=small_runs.REPO, stderr=subprocess.PIPE
        )

    for number, (sent, status) in enumerate(((signal.SIGTERM, 75), (signal.SIGKILL, -9)), 1):
        running = begin()
        metrics = place / f"mix-study,{MIXES[number]}-seed0" / "metrics.jsonl"
        _wait(metrics, running)
        running.send_signal(sent)
        assert running.wait(timeout=300) == status, running.stderr.read()
    running = begin()
    assert running.wait(timeout=1200) == 0, running.stderr.read()
    losses = [small_runs.losses(place / f"mix-study,{mix}-seed0") for mix in MIXES]
    assert all(sorted(one) == list(range(1, 21)) for one in losses)
    alone = small_runs.command(demo_root, tmp_path / "alone", argument=f"study,{MIXES[1]}")
    done = small_runs.run(alone)
    assert done.returncode == 0, done.stderr
    assert small_runs.losses(tmp_path / "alone") == losses[1]

    config = small_runs.load_config("report").get_config("demo")
    config.runs, config.resamples = str(place), 100
    report.run(config, tmp_path / "report")
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["left_out"] == {}
    assert len(results["curves"][0]["points"]) == 4
    assert results["paired_images"]


def _wait(path: pathlib.Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not (path.exists() and os.path.getsize(path)):
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
