"""A run of `configs/mix.py` that takes seconds, on a small demo world; shared by job tests."""

import importlib.util
import json
import pathlib
import subprocess
import sys

from tests import children

REPO = children.REPO
WORLD = {
    "natural": 200,
    "rendition": 120,
    "pool": 0,
    "pool_copies": 0.0,
    "test_natural": 36,
    "test_style": 24,
    "size": 40,
    "cue_correlation": 0.6,
    "vocab_size": 2048,
}
RUN = {
    "inputs": (),  # The world above has its training sets sorted.
    "eval.suites": "demo,demo_heldout",
    # Small enough that compiling it, which each process and number of devices does, is quick.
    "model.name": "tiny-plain",
    "model.vision.width": 64,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.text.width": 64,
    "model.text.layers": 1,
    "model.text.heads": 2,
    "steps": 20,
    "batch_size": 16,
    "log_every": 1,
    "checkpoint_every": 5,
    "eval_every": 0,
    "images_every": 0,
    "eval.batch_size": 64,
}


def load_config(name: str):
    """The module of a config file."""
    spec = importlib.util.spec_from_file_location(name, REPO / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(
    root: pathlib.Path, workdir: pathlib.Path, *flags: str, argument: str = ""
) -> list[str]:
    """The command line of the small run on the world in `root`."""
    fields = {"data.root": root, **{f"data.demo.{k}": v for k, v in WORLD.items()}, **RUN}
    return [
        sys.executable,
        "-m",
        "clipdg_jax.main",
        f"--config={REPO / 'configs' / 'mix.py'}{':' if argument else ''}{argument}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *flags,
    ]


def run(command: list[str], timeout: float = 400) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=children.environment(),
        cwd=REPO,
        check=False,
    )


def results(workdir: pathlib.Path) -> dict:
    """A finished run's results."""
    return json.loads((workdir / "results.json").read_text())


def losses(workdir: pathlib.Path) -> dict[int, tuple[float, float]]:
    """step -> (loss, checksum of the batch's records)."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {v["step"]: (v["loss"], v["records"]) for v in lines if "loss" in v}
