"""Pre-training end to end: results, resuming, device counts, wrong inputs."""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.data import mixture
from clipdg_jax.jobs import pretrain
from tests import children
from tests.jobs import small_runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory, command):
    """One uninterrupted run by command line on one device: what all others are compared with."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = small_runs.run(command(workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def test_results_and_files(finished):
    found = small_runs.results(finished)
    assert found["job"] == "pretrain"
    assert (found["steps"], found["examples"], found["masked"]) == (20, 20 * 16, 0)
    assert len(found["params_sha256"]) == 64
    tests = found["zero_shot"]["demo"]
    assert tests["natural"]["domain"] == "natural"
    assert tests["natural"]["n"] == 36
    assert {t["domain"] for name, t in tests.items() if name != "natural"} == {"rendition"}
    assert len(found["zero_shot"]["demo_heldout"]) == 1
    lines = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines()]
    trained = [x for x in lines if "loss" in x]
    assert [x["step"] for x in trained] == list(range(1, 21))
    assert trained[-1]["loss"] == found["loss"]
    # A new model tells nothing: the loss starts near ln(batch size).
    assert trained[0]["loss"] == pytest.approx(math.log(16), rel=0.25)
    for name in ("accuracy", "logit_scale", "grad_norm", "learning_rate", "examples_per_second"):
        assert all(name in x for x in trained), name
    assert list(finished.glob("events.*"))
    assert (finished / "summary.png").exists()


def test_the_same_command_again_says_complete(finished, command):
    before = (finished / "results.json").read_bytes()
    again = small_runs.run(command(finished))
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert (finished / "results.json").read_bytes() == before


def test_eight_devices_give_the_same_losses(finished, command, tmp_path):
    done = small_runs.run(command(tmp_path, "--virtual_devices=8"))
    assert done.returncode == 0, done.stderr
    _assert_same_losses(tmp_path, finished)


@pytest.mark.full
def test_fsdp_and_loader_workers_give_the_same_losses(finished, command, tmp_path):
    flags = ("--virtual_devices=4", "--config.mesh.fsdp=2", "--config.data.workers=2")
    done = small_runs.run(command(tmp_path, *flags))
    assert done.returncode == 0, done.stderr
    _assert_same_losses(tmp_path, finished)


@pytest.mark.full
def test_two_processes_of_four_devices_give_the_same_losses(finished, command, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ["--virtual_devices=4", "--multihost", f"--coordinator=localhost:{port}"]
    both = [
        subprocess.Popen(
            command(tmp_path, *flags, "--num_processes=2", f"--process_id={i}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=children.environment(),
            cwd=small_runs.REPO,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    _assert_same_losses(tmp_path, finished)
    ours, theirs = small_runs.results(tmp_path), small_runs.results(finished)
    assert ours["zero_shot"].keys() == theirs["zero_shot"].keys()


def _assert_same_losses(run: pathlib.Path, reference: pathlib.Path) -> None:
    ours, theirs = small_runs.losses(run), small_runs.losses(reference)
    assert ours.keys() == theirs.keys()
    for step, (loss, records) in theirs.items():
        assert ours[step][1] == records, f"step {step} saw other records"
        assert ours[step][0] == pytest.approx(loss, rel=1e-6), step


def test_killed_runs_end_with_the_same_bits(finished, command, tmp_path):
    _kill_when(command(tmp_path), lambda: (tmp_path / "checkpoints" / "5").exists())
    done = small_runs.run(command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    _assert_same_run(tmp_path, finished)


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_stopped_on_eight_devices_goes_on_on_four(
    finished, command, tmp_path, processes
):
    """SIGTERM, to one process or to the launcher of two; then half of the devices."""
    devices = 8 // processes
    first = command(tmp_path, f"--virtual_devices={devices}", "--config.data.workers=2")
    environment = children.environment()
    if processes == 2:
        first = [str(small_runs.REPO / "launch" / "local.sh"), "2", *first[3:]]
        environment["PYTHON"] = sys.executable
    running = subprocess.Popen(
        first,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=small_runs.REPO,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and '"step": 7,' in metrics.read_text()):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 75, err
    saved = re.search(r"error: stopped: step (\d+) of 20 is saved", err)
    assert saved, err
    assert 7 < int(saved[1]) < 20
    assert (tmp_path / "checkpoints" / saved[1]).is_dir()
    done = small_runs.run(command(tmp_path, "--virtual_devices=4"))
    assert done.returncode == 0, done.stderr
    assert f"resuming {tmp_path} at step {saved[1]} of 20" in done.stdout
    _assert_same_losses(tmp_path, finished)


@pytest.mark.full
def test_kill_campaign(finished, command, tmp_path):
    """Killed at the start, within a checkpoint, between two, late, and twice in a row."""
    checkpoints = tmp_path / "checkpoints"

    def logged(step: int) -> bool:
        file = tmp_path / "metrics.jsonl"
        return file.exists() and f'"step": {step},' in file.read_text()

    points = [
        lambda: (tmp_path / "config.json").exists(),
        lambda: any(checkpoints.glob("*tmp*")),
        lambda: logged(8),
        lambda: logged(9),  # At once again: no checkpoint came between.
        lambda: logged(19),
    ]
    for reached in points:
        _kill_when(command(tmp_path, "--config.data.workers=2"), reached)
    _assert_nothing_left(tmp_path)
    done = small_runs.run(command(tmp_path))
    assert done.returncode == 0, done.stderr
    _assert_same_run(tmp_path, finished)


def _kill_when(command: list[str], reached, limit: float = 240) -> None:
    """Starts a run and kills it with SIGKILL as soon as `reached()`."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=children.environment(),
        cwd=small_runs.REPO,
    )
    deadline = time.monotonic() + limit
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get to where it was to be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _assert_same_run(run: pathlib.Path, reference: pathlib.Path) -> None:
    ours, theirs = small_runs.results(run), small_runs.results(reference)
    assert ours["params_sha256"] == theirs["params_sha256"]
    assert ours["zero_shot"] == theirs["zero_shot"]
    assert small_runs.losses(run) == small_runs.losses(reference)


def _assert_nothing_left(workdir: pathlib.Path) -> None:
    """No process of the run is alive a few seconds after it was killed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = [
            pid
            for pid in filter(str.isdigit, os.listdir("/proc"))
            if str(workdir) in _command_line(pid)
        ]
        if not alive:
            return
        time.sleep(0.2)
    raise AssertionError(f"still alive: {alive}")


def _command_line(pid: str) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_another_identity_is_refused(finished, small):
    with pytest.raises(errors.UserError, match=r"seed \(was 0, now 7\)"):
        pretrain.run(small(seed=7), finished)


def test_a_flipped_bit_in_a_checkpoint_is_refused(finished, command, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "results.json").unlink()
    data = max(
        (p for p in (run / "checkpoints" / "20" / "params").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x10
    data.write_bytes(content)
    refused = small_runs.run(command(run))
    _assert_one_line(refused, "damaged")


@pytest.mark.parametrize(
    ("flags", "argument", "named"),
    [
        (("--config.lerning_rate=1",), "", "config.lerning_rate"),
        (("--config.optim.lrr=1",), "", "did you mean config.optim.lr?"),
        (("--config.batch_size=many",), "", "batch_size"),
        ((), "natural=1,sculpture=1", "sculpture"),
        ((), "natural=-1", "negative"),
        ((), "natural=0,rendition=0", "no weight is positive"),
        ((), "natual", "natual"),
        (("--config.batch_size=20", "--virtual_devices=8"), "", "20 is not divisible by 8"),
    ],
)
def test_wrong_inputs_are_one_line(command, tmp_path, flags, argument, named):
    refused = small_runs.run(command(tmp_path / "run", *flags, argument=argument))
    _assert_one_line(refused, named)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_missing_config_is_one_line():
    refused = small_runs.run([sys.executable, "-m", "clipdg_jax.main", "--config=configs/no.py"])
    _assert_one_line(refused, "configs/no.py")


def _assert_one_line(refused: subprocess.CompletedProcess, named: str) -> None:
    assert refused.returncode == 2, refused.stderr
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, refused.stderr
    assert named in lines[0]
    assert "Traceback" not in refused.stderr


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(small, tmp_path):
    config = small(**{"optim.lr": 1e30, "optim.warmup": 0, "checkpoint_every": 1})
    with pytest.raises(errors.UserError, match="is not finite"):
        pretrain.run(config, tmp_path)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    losses = small_runs.losses(tmp_path)
    assert all(math.isfinite(losses[step][0]) for step in losses)
    assert not (tmp_path / "results.json").exists()
    assert not kept or max(kept) <= max(losses)


@pytest.mark.full
def test_the_other_ways_to_compute_run_too(small, tmp_path):
    ways = {
        "loss": "siglip",
        "dtype": "bfloat16",
        "model.scan_layers": True,
        "model.remat": "full",
        "optim.clip": 1.0,
        "steps": 4,
        "profile_start": 2,
        "profile_steps": 2,
        "images_every": 2,
    }
    pretrain.run(small(**ways), tmp_path)
    found = small_runs.losses(tmp_path)
    # The sigmoid loss of a new model: ln 2-like terms, nearly all of negatives at a bias of -10.
    assert all(math.isfinite(loss) and 0 < loss < 20 for loss, _ in found.values())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_scanned_blocks_are_planned_in_one_array_each_and_take_no_other_memory(small):
    plans = [
        pretrain.plan(small(**{"model.scan_layers": scan, "model.text.layers": 3}))
        for scan in (False, True)
    ]
    (apart, stacked), (text, same) = zip(*((p.abstract, pretrain.describe(p)) for p in plans))
    name = "transformer.resblocks.{}.mlp.c_fc.weight"
    assert stacked["params"][name.format("*")].shape == (
        2,
        *apart["params"][name.format(0)].shape,
    )
    assert stacked["params"][name.format(2)] == apart["params"][name.format(2)]
    assert [line for line in same.splitlines() if line.startswith(("state", "trained"))] == [
        line for line in text.splitlines() if line.startswith(("state", "trained"))
    ]


def test_length_follows_steps_then_examples_then_epochs(small):
    weights, amounts = mixture.parse_mix("a=3,b=1"), mixture.parse_mix("a=1k,b=1k")
    assert pretrain.length(small(steps=7, examples=1000, epochs=9), amounts) == 7
    assert pretrain.length(small(steps=0, examples=1000, epochs=9), amounts) == 62
    assert pretrain.length(small(steps=0, examples=0, epochs=9), amounts) == 2000 // 16 * 9
    with pytest.raises(errors.UserError, match="gives shares only"):
        pretrain.length(small(steps=0, examples=0, epochs=9), weights)


def test_record_checksum_tells_batches_apart():
    rng = np.random.default_rng(0)
    rows = {
        "image": np.zeros((64, 1, 1, 3), np.uint8),
        "tokens": np.zeros((64, 2), np.int32),
        "valid": np.ones(64, bool),
        "source": rng.integers(0, 2, 64).astype(np.int32),
        "index": rng.integers(0, 10**9, 64),
    }
    first = pretrain.device_fields(rows)["record"]
    assert first.dtype == np.uint32
    assert first.max() < 2**24
    other = pretrain.device_fields({**rows, "source": 1 - rows["source"]})["record"]
    assert (first != other).all()
    assert len(np.unique(first)) == 64
