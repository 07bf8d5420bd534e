"""The metrics file is cut back to the checkpoint; grids tile images."""

import json

import jax
import numpy as np

from clipdg_jax.training import metrics


def _lines(*steps):
    return "".join(json.dumps({"step": s, "loss": float(s)}) + "\n" for s in steps)


def test_lines_past_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_lines(10, 20, 30, 40) + '{"step": 5')  # The last line was cut by a kill.
    kept = metrics.cut_back(path, 30)
    assert [v["step"] for v in kept] == [10, 20, 30]
    assert path.read_text() == _lines(10, 20, 30)


def test_log_appends_after_resume_without_repeats(tmp_path):
    for start, last in [(0, 3), (2, 4)]:
        log = metrics.MetricLog(tmp_path, start, 4)
        for step in range(start + 1, last + 1):
            log.write(step, {"loss": 10.0 * step})
        log.close()
    assert metrics.read(tmp_path) == [{"step": s, "loss": 10.0 * s} for s in (1, 2, 3, 4)]
    assert list(tmp_path.glob("events.*"))


def test_grid_places_each_image():
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), np.uint8)
    grid = metrics.image_grid(images, gap=1)
    assert grid.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    np.testing.assert_array_equal(grid[5:9, 7:13], images[4])
    assert (grid[5:9, 14:] == 255).all()


def test_peak_is_unknown_on_a_cpu_and_specific_before_general():
    assert metrics.peak_flops(jax.devices()[0]) is None
    kinds = list(metrics.PEAK_FLOPS)
    for i, kind in enumerate(kinds):
        assert not any(earlier in kind for earlier in kinds[:i]), kind
