import json

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.evaluation import plots


def measures(domain, top1, n=400):
    base = {"domain": domain, "top1": top1, "n": n, "classes": 10, "chance": 0.1}
    return base | {"invalid": 0, "unlabelled": 0}


def bar_lengths(path, colour):
    """Lengths in pixels of the bars of one colour, from top to bottom."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows = np.abs(pixels - wanted.reshape(1, 1, 3)).max(axis=2) < 3
    lengths = np.where(rows.any(axis=1), pixels.shape[1] - rows[:, ::-1].argmax(1), 0)
    lengths = np.where(lengths > 0, lengths - rows.argmax(axis=1), 0)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], rows.sum(axis=1) > 40])) == 1)
    return [int(np.median(lengths[start + 2 : start + 8])) for start in starts]


def test_bars_are_as_long_as_the_accuracies(tmp_path):
    path = tmp_path / "bars.png"
    results = {
        "zoo": {
            "photo": measures("natural", 0.8),
            "web": measures("natural", 0.4),
            "sketch": measures("rendition", 0.6),
        }
    }
    plots.run_summary(path, [], results, "a run")
    photo, web, *legend = bar_lengths(path, plots.COLOURS["natural"])
    sketch = bar_lengths(path, plots.COLOURS["rendition"])[0]
    assert web / photo == pytest.approx(0.5, abs=0.01)
    assert sketch / photo == pytest.approx(0.75, abs=0.01)
    assert len(legend) == 1


def test_grouped_bars_are_means_over_seeds(tmp_path):
    path = tmp_path / "groups.png"
    groups = {
        "natural only": [{"natural": 0.9, "sketch": 0.3}],
        "mix": [{"natural": 0.7, "sketch": 0.4}, {"natural": 0.5, "sketch": 0.8}],
    }
    plots.grouped_bars(groups, path, chance=0.1)
    first = bar_lengths(path, "#0072B2")
    second = bar_lengths(path, "#009E73")
    unit = first[0] / 0.9
    assert first[1] / unit == pytest.approx(0.3, abs=0.01)
    assert second[0] / unit == pytest.approx(0.6, abs=0.01)
    assert second[1] / unit == pytest.approx(0.6, abs=0.01)


def test_a_training_summary_reads_the_log(tmp_path):
    rows = [{"step": step, "loss": 3 - step / 100} for step in range(1, 101)]
    rows += [{"step": step, "zero_shot/zoo/photo": step / 200} for step in (50, 100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plots.training_summary(tmp_path, {"zero_shot": {"zoo": {"photo": measures("natural", 0.5)}}})
    with_curves = Image.open(tmp_path / "summary.png")
    (tmp_path / "metrics.jsonl").write_text("")
    plots.training_summary(tmp_path, {"zero_shot": {"zoo": {"photo": measures("natural", 0.5)}}})
    without = Image.open(tmp_path / "summary.png")
    assert with_curves.size[0] == without.size[0] == 1200
    assert with_curves.size[1] > without.size[1] + 300
    # A run that evaluated nothing still has its loss.
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:100]))
    plots.training_summary(tmp_path, {"zero_shot": {}})
    plots.run_summary(tmp_path / "nothing.png", [], {}, "empty")
    assert not (tmp_path / "nothing.png").exists()
