"""The training benchmark: its inputs, its variants, and what it counts."""

import re

import numpy as np
import pytest
from absl import flags

from clipdg_jax import errors
from clipdg_jax.models import config as model_config
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
    assert bench_step.parse("8+xla").config("ViT-B-32", "bfloat16").model.attention == "xla"
    for text, problem in (("64+pakced", "'pakced'; options are"), ("packed", "begin with a batch")):
        with pytest.raises(errors.UserError, match=problem):
            bench_step.parse(text)


def test_counts_are_those_that_the_issue_asks_for(capsys):
    """Three quarters of the FLOPs of a pair, and a quarter of a zero-shot head's."""
    found = _with_flags(["--head_classes=20"], bench.counts, capsys)
    share = float(re.search(r"training, a pair .*: x([\d.]+)", found)[1])
    assert share <= 0.75
    assert float(re.search(r"head, 20 x 80 .*: /([\d.]+)", found)[1]) >= 4
    chunks, whole = map(int, re.search(r"(\d+) MiB of .* (\d+) at once", found).groups())
    assert whole >= 4 * 16_384**2 / 2**20
    assert chunks < whole / 3


def test_a_part_that_is_none_is_refused():
    with pytest.raises(errors.UserError, match="--parts: no 'steps'; there are counts, step"):
        _with_flags(["--parts=steps"], lambda: bench.main([]))


def _with_flags(arguments, function, capsys=None):
    saved = flags.FLAGS.flag_values_dict()
    flags.FLAGS(["bench", *arguments])
    try:
        function()
    finally:
        for name in (a[2:].partition("=")[0] for a in arguments):
            flags.FLAGS[name].value = saved[name]
    return capsys.readouterr().out if capsys else ""


def test_the_spread_is_median_lowest_and_highest():
    assert bench.spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0 to 3.0)"


def test_a_head_of_prompts_needs_fewer_flops_with_any_model(capsys):
    config = model_config.PRESETS["tiny"]
    found = _with_flags(["--head_classes=5"], lambda: bench.head(config), capsys)
    assert float(re.search(r"/([\d.]+)", found)[1]) > 1
