"""The training benchmark: its inputs, its variants, and what it counts."""

import re
import subprocess
import sys

import numpy as np
import pytest

from clipdg_jax import errors
from tests import children
from tools import bench, bench_inputs, bench_step


def test_captions_have_web_like_lengths():
    tokens = bench_inputs.tokens(20_000)
    ends = tokens.argmax(axis=1)
    np.testing.assert_array_equal(ends + 1, bench_inputs.lengths(20_000))
    assert (ends + 1).mean() == pytest.approx(16, abs=0.3)
    assert 0 < np.mean(ends == 76) < 0.01
    assert (tokens[:, 0] == 49406).all()
    assert (tokens[np.arange(20_000), ends] == 49407).all()
    behind = np.arange(77) > ends[:, None]
    assert not tokens[behind].any()
    inside = ~behind
    inside[:, 0] = inside[np.arange(20_000), ends] = False
    assert tokens[inside].min() > 0
    assert tokens[inside].max() < 49406


def test_variants_say_what_differs():
    variant = bench_step.parse("64+packed+dots+scan+accumulate:4")
    assert (variant.batch_size, variant.remat, variant.scan) == (64, "dots", True)
    config = variant.config("tiny-plain", "float32")
    assert (config.accumulate, config.model.remat, config.model.scan_layers) == (4, "dots", True)
    assert config.data.pack_rows
    assert not bench_step.parse("64").config("tiny-plain", "float32").data.pack_rows
    assert bench_step.parse("8+xla").config("ViT-B-32", "bfloat16").model.kernels == "xla"
    for text, problem in (("64+pakced", "'pakced'; options are"), ("packed", "begin with a batch")):
        with pytest.raises(errors.UserError, match=problem):
            bench_step.parse(text)


def test_packing_saves_a_quarter_of_training_and_most_of_a_head():
    done = _run("--parts=counts", "--head_classes=20")
    assert done.returncode == 0, done.stderr
    share = float(re.search(r"training, a pair .*: x([\d.]+)", done.stdout)[1])
    assert share <= 0.75
    assert float(re.search(r"head, 20 x 80 .*: /([\d.]+)", done.stdout)[1]) >= 4
    chunks, whole = map(int, re.search(r"(\d+) MiB of .* (\d+) at once", done.stdout).groups())
    assert whole >= 4 * 16_384**2 / 2**20
    assert chunks < whole / 3


def test_a_part_that_is_none_is_refused():
    done = _run("--parts=steps")
    assert done.returncode == 2
    assert "--parts: no 'steps'; there are counts, step" in done.stderr


def _run(*arguments):
    """In a process of its own: each tool has flags of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tools.bench", *arguments],
        capture_output=True,
        text=True,
        env=children.environment(),
        cwd=children.REPO,
        check=False,
    )


def test_the_spread_is_median_lowest_and_highest():
    assert bench.spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0 to 3.0)"
