"""Running cells, with runs that are a line of Python."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from clipdg_jax import errors, stopping
from clipdg_jax.study import cells, progress, runner

ROOT = pathlib.Path(runner.__file__).parents[2]

# Notes each start of a cell in its workdir, then behaves as told.
RUN = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
workdir.mkdir(exist_ok=True)
with open(workdir / "starts", "a") as file:
    file.write(f"{os.getpid()} {sorted(os.sched_getaffinity(0))}\\n")
def done():
    (workdir / "results.json").write_text(json.dumps({"zero_shot": {}}))
def until(path):
    deadline = time.monotonic() + 300
    while not pathlib.Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""


class Sweep:
    """A runner over cells that behave as their code says; `states` is what was shown."""

    def __init__(self, directory: pathlib.Path, **codes: str):
        self.directory, self.codes = directory, codes
        self.states: list[dict[str, progress.State]] = []
        made = [cells.Cell(name, "configs/x.py", ()) for name in codes]
        self.runner = runner.Runner(
            made, directory, lambda cell: self.command(cell.name), self.states.append
        )

    def command(self, name: str) -> list[str]:
        code = RUN + textwrap.dedent(self.codes[name])
        return [sys.executable, "-c", code, str(self.directory / name)]

    def starts(self, name: str) -> int:
        path = self.directory / name / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


def test_each_is_run_once_and_the_finished_are_not_run_again(tmp_path):
    sweep = Sweep(tmp_path, a="print('hello'); done()", b="done()")
    assert sweep.runner.run() == {}
    assert (sweep.starts("a"), sweep.starts("b")) == (1, 1)
    assert (tmp_path / "a.log").read_text() == "hello\n"
    assert {one.kind for one in sweep.states[-1].values()} == {"complete"}
    assert Sweep(tmp_path, a="done()", b="done()", c="done()").runner.run() == {}
    assert [sweep.starts(name) for name in ("a", "b")] == [1, 1]
    assert progress.complete(tmp_path / "c")


def test_a_crash_is_told_and_the_others_go_on(tmp_path):
    sweep = Sweep(
        tmp_path,
        bad="sys.exit('error: labels: are wrong')",
        killed="os.kill(os.getpid(), 9)",
        silent="pass",
        good="done()",
    )
    failed = sweep.runner.run()
    assert failed["bad"] == "exit status 1: error: labels: are wrong"
    assert failed["killed"].startswith("exit status -9")
    assert failed["silent"] == "wrote no results.json: it said nothing"
    assert progress.complete(tmp_path / "good")
    assert sweep.states[-1]["bad"] == progress.State("failed", told=failed["bad"])
    mended = Sweep(tmp_path, bad="done()", killed="done()", silent="done()", good="done()")
    assert mended.runner.run() == {}
    assert mended.starts("good") == 1


def test_one_that_was_told_to_stop_is_begun_again(tmp_path):
    sweep = Sweep(
        tmp_path,
        a="""
        if len((workdir / "starts").read_text().splitlines()) < 3:
            sys.exit(75)
        done()
        """,
    )
    assert sweep.runner.run() == {}
    assert sweep.starts("a") == 3


def test_several_at_a_time_on_shares_of_the_cores(tmp_path, monkeypatch):
    shares = []
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda _, share: shares.append(share))
    # Each waits for the other one to have started.
    codes = {
        "a": "until(workdir.parent / 'b' / 'starts'); done()",
        "b": "until(workdir.parent / 'a' / 'starts'); done()",
    }
    assert Sweep(tmp_path, **codes).runner.run(parallel=2) == {}
    assert set(shares) == {frozenset({0, 2}), frozenset({1, 3})}


OTHER = """
import pathlib, sys
from tests.study import test_runner
sweep = test_runner.Sweep(pathlib.Path(sys.argv[1]), **{codes!r})
print(sweep.runner.run())
"""


def other_process(tmp_path, codes) -> subprocess.Popen:
    """Another process that works on the same sweep."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER.format(codes=codes), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: pathlib.Path, limit: float = 300) -> None:
    deadline = time.monotonic() + limit
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never there"
        time.sleep(0.01)


def test_two_processes_share_the_cells_and_run_none_twice(tmp_path):
    # `a` and `b` each last until the other has been started, and so by another process.
    codes = {
        "a": "until(workdir.parent / 'b' / 'starts'); done()",
        "b": "until(workdir.parent / 'a' / 'starts'); done()",
        **dict.fromkeys("cdef", "time.sleep(0.05); done()"),
    }
    other = other_process(tmp_path, codes)
    try:
        wait_for(tmp_path / "a" / "starts")
        sweep = Sweep(tmp_path, **codes)
        assert sweep.runner.run() == {}
        assert other.communicate(timeout=300)[0].strip() == "{}"
    finally:
        other.kill()
    assert {name: sweep.starts(name) for name in codes} == dict.fromkeys(codes, 1)


def test_what_another_process_leaves_when_it_is_killed_is_taken_over(tmp_path):
    codes = {"a": "until(workdir.parent / 'go'); done()"}
    other = other_process(tmp_path, codes)
    try:
        wait_for(tmp_path / "a" / "starts")
    finally:
        other.kill()
        other.communicate()
    (tmp_path / "go").touch()
    sweep = Sweep(tmp_path, **codes)
    assert sweep.runner.run() == {}
    # The child ended with its parent, or, where nothing ends it, finished the cell on its own.
    assert sweep.starts("a") <= 2
    assert progress.complete(tmp_path / "a")


def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    code = """
    def save(*unused):
        (workdir / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    (workdir / "ready").touch()
    time.sleep(60)
    """
    sweep = Sweep(tmp_path, a=code, b="done()")
    process = os.getpid()
    subprocess.Popen(
        [
            "sh",
            "-c",
            f"while ! [ -e '{tmp_path}/a/ready' ]; do sleep 0.05; done; kill -TERM {process}",
        ]
    )
    with pytest.raises(stopping.Stopped):
        sweep.runner.run()
    assert (tmp_path / "a" / "saved").exists()
    assert sweep.starts("b") == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_states_and_their_table(tmp_path):
    run = tmp_path / "run"
    assert progress.state(run, "", False) == progress.State("waiting")
    run.mkdir()
    lines = [{"step": 50, "loss": 3.21}, {"step": 60, "zero_shot/x": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"st')
    assert progress.state(run, "", True) == progress.State("running", 50, 3.21)
    assert progress.state(run, "", False).kind == "begun"
    tests = {"a": {"domain": "natural", "top1": 0.5}, "b": {"domain": "natural", "top1": 0.7}}
    (run / "results.json").write_text(json.dumps({"zero_shot": {"demo": tests}}))
    states = {
        "run": progress.state(run, "", False),
        "other": progress.State("failed", told="exit status 1: why"),
    }
    assert progress.table(states).splitlines() == [
        "run    state     step  loss",
        "-----  --------  ----  ----",
        "run    complete    50        demo natural 60.0 %",
        "other  failed                exit status 1: why",
        "",
        "1 of 2 complete, 1 failed",
    ]


def test_runs_at_a_time_get_equal_shares_of_the_cores(tmp_path, monkeypatch):
    shares = []
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda _, share: shares.append(share))
    Sweep(tmp_path, a="done()", b="done()", c="done()").runner.run(parallel=2)
    assert len(shares) == 3
    assert set(shares) == {frozenset({0, 2}), frozenset({1, 3})}
    # More at a time than cores: each may use all of them.
    shares.clear()
    many = {f"c{i}": "done()" for i in range(5)}
    Sweep(tmp_path, **many).runner.run(parallel=5)
    assert frozenset({0, 1, 2, 3}) in shares


def test_what_failed_is_told_after_the_others_are_complete(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, bad="sys.exit('error: labels: are wrong')", good="done()")
    monkeypatch.setattr(cells.Cell, "command", lambda cell, _: sweep.command(cell.name))
    made = [cells.Cell(name, "configs/x.py", ()) for name in sweep.codes]
    with pytest.raises(errors.UserError) as raised:
        runner.run_all(made, tmp_path)
    assert "1 of 2 runs failed" in str(raised.value)
    assert str(raised.value).endswith("bad: exit status 1: error: labels: are wrong")
    assert "1 of 2 complete, 1 failed" in (tmp_path / runner.STATUS).read_text()
