"""launch/local.sh with a stand-in for the interpreter, so that only the script is tested."""

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "local.sh"

# Notes its process id and arguments; then `--behave=<process>:<what>` says what it does.
STAND_IN = """#!{python}
import os, pathlib, sys, time
if sys.argv[1] == "-c":
    os.execv("{python}", ["{python}", *sys.argv[1:]])
own = next(a.split("=")[1] for a in sys.argv if a.startswith("--process_id="))
print("output of", own, flush=True)
pathlib.Path("{notes}", own).write_text("\\n".join([str(os.getpid()), *sys.argv[1:]]))
while not all(pathlib.Path("{notes}", p).exists() for p in "01"):
    time.sleep(0.01)
for argument in sys.argv:
    if argument.startswith(f"--behave={{own}}:"):
        exec(argument.split(":", 1)[1])
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the script with these arguments; `notes` has what its processes noted."""
    notes = tmp_path / "notes"
    notes.mkdir()
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, notes=notes))
    stand_in.chmod(0o755)
    (tmp_path / "logs").mkdir()
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [SCRIPT, *arguments],
            env={**os.environ, "PYTHON": str(stand_in), "TMPDIR": str(tmp_path / "logs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where this process was started in a background job, it ignores Ctrl-C, and so would
            # the script, for a shell cannot trap what it inherits as ignored.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    start.notes = notes
    start.logs = tmp_path / "logs"
    yield start
    for process in started:
        process.kill()
        process.communicate()


def noted(launch, process: int) -> list[str]:
    """The process id and the arguments of one process, once it has noted them."""
    path = launch.notes / str(process)
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"process {process} never started"
        time.sleep(0.02)
    return path.read_text().splitlines()


def wait_until_gone(launch) -> None:
    deadline = time.monotonic() + 20
    for process in (0, 1):
        pid = noted(launch, process)[0]
        while pathlib.Path("/proc", pid).exists():
            assert time.monotonic() < deadline, f"process {process} outlived the script"
            time.sleep(0.02)


def test_arguments_and_output(launch):
    script = launch("2", "--config=configs/mix.py", "--config.data.mix=a b")
    out, err = script.communicate(timeout=20)
    assert script.returncode == 0, err
    assert out == "output of 0\n"
    first, second = noted(launch, 0), noted(launch, 1)
    port = first[4].rpartition(":")[2]
    assert 1024 <= int(port) < 65536
    for process, arguments in enumerate((first, second)):
        assert arguments[1:] == [
            "-m",
            "clipdg_jax.main",
            "--multihost",
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={process}",
            "--config=configs/mix.py",
            "--config.data.mix=a b",
        ]
    assert not list(launch.logs.iterdir())


def test_first_failure_ends_all_and_is_the_status(launch):
    script = launch("2", "--behave=0:time.sleep(60)", "--behave=1:sys.exit('the reason')")
    _, err = script.communicate(timeout=20)
    assert script.returncode == 1
    assert "the reason" in err
    wait_until_gone(launch)
    assert [path.name for path in launch.logs.glob("*/*")] == ["1.log"]


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
if shutil.which("setpriv"):  # util-linux; without it nothing can be done about -9.
    SIGNALS.append((signal.SIGKILL, -9))


@pytest.mark.parametrize(("sent", "status"), SIGNALS)
def test_signals_reach_all(launch, sent, status):
    script = launch("2", "--behave=0:time.sleep(60)", "--behave=1:time.sleep(60)")
    noted(launch, 0), noted(launch, 1)
    script.send_signal(sent)
    assert script.wait(timeout=20) == status
    wait_until_gone(launch)


# The signal has to find the stand-in's handler set, which it tells of as it starts to sleep.
SAVING = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit({status})); time.sleep(60)"
)


@pytest.mark.parametrize(("statuses", "expected"), [((75, 75), 75), ((75, 3), 143)])
def test_what_saves_and_stops_is_to_be_begun_again(launch, statuses, expected):
    behaviours = [f"--behave={i}:{SAVING.format(status=s)}" for i, s in enumerate(statuses)]
    script = launch("2", *behaviours)
    noted(launch, 0), noted(launch, 1)
    time.sleep(1)
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == expected
    wait_until_gone(launch)


def test_stopped_processes_are_the_status(launch):
    script = launch("2", "--behave=0:sys.exit(75)", "--behave=1:sys.exit(75)")
    assert script.wait(timeout=60) == 75
    assert not list(launch.logs.glob("*/*"))


def test_each_process_sees_a_gpu_of_its_own(launch, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    tell = "print(os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr)"
    told = f"pathlib.Path('{launch.notes}/told')"
    wait = f"while not {told}.exists(): time.sleep(0.01)\n"
    script = launch(
        "gpus", f"--behave=0:{tell};{told}.touch()", f"--behave=1:{wait}{tell};sys.exit(1)"
    )
    _, err = script.communicate(timeout=60)
    assert err.split()[0] == "3"
    assert err.split()[-1] == "5"
    assert "--num_processes=2" in noted(launch, 0)


@pytest.mark.parametrize("arguments", [[], ["0"], ["two"], ["--config=configs/mix.py"]])
def test_bad_count_is_one_line(launch, arguments):
    script = launch(*arguments)
    out, err = script.communicate(timeout=20)
    assert (script.returncode, out) == (2, "")
    assert err == "error: usage: launch/local.sh N|gpus [arguments of clipdg_jax.main]\n"
