"""The command: weights in, a checkpoint out, and one line for what is refused."""

import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ROOT / "tests" / "interop" / "fixtures" / "open_clip" / "open_clip_pytorch_model.bin"


def convert(*flags):
    return subprocess.run(
        [sys.executable, "-m", "tools.convert_openclip", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        check=False,
    )


@pytest.mark.full  # a process, as the one below; what it does is tested in tests/interop
def test_weights_become_a_checkpoint(tmp_path):
    done = convert(f"--weights={WEIGHTS}", f"--out={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "open_clip, 50 parameters of 8,785 numbers" in done.stdout
    assert "activation gelu, stated by" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()


def test_a_pickle_that_runs_code_is_one_line(tmp_path):
    class Program:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "ran",)

    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"state_dict": Program()}, protocol=2))
    done = convert(f"--weights={tmp_path / 'w.pt'}", f"--out={tmp_path / 'run'}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'w.pt'}: its pickle names ")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()
