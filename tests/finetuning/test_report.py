"""What a comparison says: means and intervals over seeds, the verdict, tables and the picture."""

import csv
import math

import cv2
import numpy as np
import pytest

from clipdg_jax.finetuning import comparison, picture, report

INSIDE, OUTSIDE = ["in"], ["a", "b"]


def candidate(top1, point=None, alpha=1.0, protection=0.0, validation=0.9, n=400):
    """One that answers the sets `in`, `a` and `b` with these accuracies."""
    drift = {"cosine": 0.9, "cka": 0.8}
    sets = {k: {"top1": v, "n": n, **drift} for k, v in zip((*INSIDE, *OUTSIDE), top1)}
    sets["validation"] = {"top1": validation, "n": n}
    measured = {"alpha": alpha, "test_sets": sets, "distance": {"all": 0.02 * alpha, "head": 0.1}}
    took = {"seconds": 12.0, "peak_bytes": 3 << 20, "trained": 1234}
    return comparison.Candidate(point or {}, alpha, protection, measured, took)


def one(*args, **kwargs):
    return comparison.Result((candidate(*args, **kwargs),), 0)


def runs():
    """zero_shot .80 in, .60 out; full .90, .50; l2 protects, wise_ft too strongly, lora not."""
    sweep = comparison.Result(
        (
            candidate((0.89, 0.55, 0.55), {"l2": 0.1}, protection=0.0),
            candidate((0.86, 0.59, 0.59), {"l2": 1.0}, protection=1.0),
        ),
        1,
    )
    alphas = comparison.Result(
        tuple(
            candidate((0.8 + 0.1 * a**2, 0.6 - 0.1 * a**2, 0.6), alpha=a, protection=1 - a)
            for a in (0.0, 0.5, 1.0)
        ),
        1,
    )
    return {
        "zero_shot": {0: one((0.8, 0.5, 0.7))},
        "full": {0: one((0.9, 0.4, 0.6))},
        "l2": {0: sweep},
        "lora": {0: one((0.89, 0.55, 0.6), {"lora": 4.0})},
        "wise_ft": {0: alphas},
    }


@pytest.fixture
def results():
    return report.gather(runs(), INSIDE, OUTSIDE, {"wise_ft": 1.0})


def test_the_verdict_names_what_keeps_both(results):
    told = results["verdict"]
    assert told["gain"] == pytest.approx(0.1)
    assert told["loss"] == pytest.approx(0.1)
    expected = math.sqrt(0.8 * 0.2 / 400 + 0.9 * 0.1 / 400)
    assert told["gain_standard_error"] == pytest.approx(expected)
    # l2: .86 and .59. lora: .89, but .575. wise_ft at .5: .825 is less than half of the gain.
    assert told["protecting"] == ["l2"]
    assert told["sweep_protecting"] == {"l2": [{"l2": 1.0}]}
    assert report.verdict({"full": {}}) == {}
    last = "above it out of distribution: l2\nsomewhere on its sweep: l2 (l2 1)"
    assert report.text(results).endswith(last)


def test_methods_are_told_of_by_their_chosen_point(results):
    own = results["methods"]["l2"]
    assert own["chosen"] == {"l2": 1.0, "validation": 0.9}
    assert (own["id"], own["ood"]) == (pytest.approx(0.86), pytest.approx(0.59))
    assert [point["l2"] for point in own["sweep"]] == [1.0, 0.1], "the most protected first"
    half, end = (results["methods"][name] for name in ("wise_ft", "wise_ft@1"))
    assert half["chosen"]["alpha"] == 0.5
    assert end["id"] == pytest.approx(0.9)
    error = math.sqrt(2 * 0.59 * 0.41 / 400) / 2
    assert own["ood_interval"] == pytest.approx([0.59 - 1.96 * error, 0.59 + 1.96 * error])


def test_seeds_are_averaged_and_widen_the_interval():
    found = report.gather(
        {"full": {1: one((0.9, 0.5, 0.5)), 2: one((0.8, 0.4, 0.4))}}, INSIDE, OUTSIDE, {}
    )["methods"]["full"]
    assert found["id"] == pytest.approx(0.85)
    assert [seed["id"] for seed in found["seeds"]] == [0.9, 0.8]
    images = (math.sqrt(0.9 * 0.1 / 400) + math.sqrt(0.8 * 0.2 / 400)) / 2
    seeds = np.std([0.9, 0.8], ddof=1) / math.sqrt(2)
    assert found["id_standard_error"] == pytest.approx(math.hypot(images, seeds))


def test_what_is_written_can_be_read(results, tmp_path):
    report.write(tmp_path, results)
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(results["methods"])
    full = rows[1]
    assert full["ID %"] == "90.0 ± 2.9"
    assert (full["a"], full["moved %"], full["peak MiB"], full["trained"]) == (
        *("40.0", "2.00", "3"),
        "1,234",
    )
    with open(tmp_path / "sweeps.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1 + 1 + 2 + 1 + 3
    assert (tmp_path / "table.md").read_text().count("\n| wise_ft |") == 2
    picture.draw(results, tmp_path / "tradeoff.png")
    drawn = cv2.imread(str(tmp_path / "tradeoff.png"))
    assert drawn.shape[0] > 500
    halo = (drawn[..., 0] < 180) & (drawn[..., 1] > 220) & (drawn[..., 2] > 220)
    assert halo.sum() > 1000, "the Pareto front is marked"
