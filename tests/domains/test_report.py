import csv
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import schema
from clipdg_jax.domains import calibration, examples, measures, pictures, report, scores

N = 600


def colour(i):
    """One that tells the record; none is that of a frame or of text."""
    return (40 + i // 25 * 8, 40 + i % 25 * 8, 10)


class Solid:
    """A dataset whose record i is a plain square of `colour(i)`."""

    name = "solid"

    def record(self, i):
        image = np.broadcast_to(np.array(colour(i), np.uint8)[::-1], (8, 8, 3))
        return schema.Record(f"k{i}", cv2.imencode(".png", image)[1].tobytes())


def scored(seed, separation, n=N):
    rng = np.random.default_rng(seed)
    domain = rng.choice(3, n, p=[0.45, 0.35, 0.2]).astype(np.int32)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), domain] += separation
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    keys = tuple(f"k{i}" for i in range(n))
    return scores.Scores(keys, domain, p[:, :2].astype(np.float32), np.ones(n, bool))


def compared(name="good", separation=6.0, **other_sets):
    validation = scored(0, separation)
    made = calibration.calibrate(
        validation.probability, validation.domain, target=0.95, rule="point", allow_unreached=True
    )
    sets = {"validation": validation, "test": scored(1, separation), **other_sets}
    return report.Compared(name, f"is {name}", made, sets)


@pytest.fixture(scope="module")
def both():
    return [compared(), compared("hopeless|", 0.0)]


@pytest.fixture(scope="module")
def results(both):
    return report.measure(both, resamples=100)


def test_results_are_measures_at_the_thresholds_and_survive_json(both, results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    test = both[0].sets["test"]
    for column, decider in enumerate(both[0].calibration.deciders):
        got = results["sets"]["test"]["methods"]["good"][decider.domain]
        expected = measures.measure(
            test.probability[:, column], test.domain == column, decider.threshold, resamples=100
        )
        assert measures.Measured.from_json(got) == expected
        validation = results["sets"]["validation"]["methods"]["good"][decider.domain]
        assert validation["precision"] == decider.validation.to_json()["precision"]
    decisions = np.array(results["sets"]["test"]["methods"]["good"]["decisions"])
    np.testing.assert_array_equal(decisions.sum(axis=1), np.bincount(test.domain))
    taken = results["sets"]["test"]["methods"]["good"]["natural"]["decided"]
    assert decisions[:, [0, 3]].sum() == taken  # a conflict was taken by both


def test_images_without_a_label_or_unreadable_are_left_out_and_counted():
    part = scored(2, 6.0)
    part.domain[:5] = -1
    part.valid[3:9] = False
    nothing = scores.Scores(part.keys[:4], part.domain[:4], part.probability[:4], part.valid[:4])
    found = report.measure([compared(zoo=part, unlabelled=nothing)], resamples=10)["sets"]
    assert "unlabelled" not in found
    assert (found["zoo"]["n"], found["zoo"]["left_out"]) == (N - 9, 9)
    kept = slice(9, None)
    got = found["zoo"]["methods"]["good"]["rendition"]["average_precision"]["value"]
    assert got == measures.average_precision(part.probability[kept, 1], part.domain[kept] == 1)


def test_the_table_as_csv(results):
    rows = list(csv.DictReader(io.StringIO(report.csv(results))))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        value = results["sets"][row["set"]]["methods"][row["method"]][row["decider"]]
        assert float(row["recall_low"]) == value["recall"]["low"]
        assert int(row["positives"]) == value["positives"]
        if row["method"] == "good":
            assert float(row["precision"]) == int(row["correct"]) / int(row["decided"])
        else:
            assert row["precision"] == row["precision_high"] == row["threshold"] == ""


def test_the_table_for_a_terminal_and_as_markdown(results):
    value = results["sets"]["test"]["methods"]["good"]["rendition"]
    precision = "{value:.1f} ({low:.1f} - {high:.1f})".format(
        **{k: 100 * v for k, v in value["precision"].items()}
    )
    text, markdown = report.text(results), report.markdown(results)
    line = next(
        part for part in text.split("test: ")[1].splitlines() if part.startswith("rendition  good")
    )
    assert precision in line
    assert f" {value['decided']} " in line
    assert precision in markdown.split("## test")[1]
    # A decider without a threshold: dashes, and the reason once, with a "|" that breaks no table.
    for shown in (text, markdown):
        assert shown.count("natural decider: no threshold reaches precision 0.95") == 1
    assert r"| natural | hopeless\| | - | 0 | - | 0.0 (" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {9, 7}


def shown(path):
    """The records whose pictures stand in a sheet, row by row, each row from the left."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    known = {colour(i): i for i in range(N)}
    rows = []
    for line in pixels[:, 12::126]:  # a column of pixels through each picture
        found = [known[tuple(p)] for p in line.tolist() if tuple(p) in known]
        if found and (not rows or rows[-1] != found):
            rows.append(found)
    return rows


def test_a_contact_sheet_shows_the_right_images_in_order(tmp_path, both):
    test = both[0].sets["test"]
    decider = both[0].calibration.deciders[1]
    data = examples.Examples(
        (Solid(),), np.zeros(N, np.int32), np.arange(N), test.domain, test.keys
    )
    shuffled = data.subset(np.random.default_rng(0).permutation(N))  # found by key, not by row
    report.write(tmp_path, both, {"test": shuffled}, resamples=10)
    p, own = test.probability[:, 1], test.domain == 1
    falling = np.argsort(-p, kind="stable").tolist()
    taken = [i for i in falling if p[i] >= decider.threshold]
    rest = [i for i in falling if p[i] < decider.threshold]
    false = [i for i in taken if not own[i]][:16]
    missed = [i for i in reversed(rest) if own[i]][:16]
    expected = [falling[:8], falling[8:16], taken[-8:], rest[:8]]
    expected += [part[i : i + 8] for part in (false, missed) for i in (0, 8) if part[i : i + 8]]
    assert len(false) > 0
    assert shown(tmp_path / "sheets" / "test-good-rendition.png") == expected
    # Where there is no threshold: the surest, and the surest of the others.
    p = both[1].sets["test"].probability[:, 1]
    falling = np.argsort(-p, kind="stable")
    others = falling[test.domain[falling] != 1].tolist()
    rows = shown(tmp_path / "sheets" / "test-hopeless_-rendition.png")
    assert rows == [*(falling[i : i + 8].tolist() for i in (0, 8)), others[:8], others[8:16]]


def test_files_are_written(tmp_path, both):
    part = scored(5, 6.0, n=80)
    returned = report.write(tmp_path, [compared(**{"zoo/a b": part})], resamples=20)
    assert (tmp_path / report.TABLE).read_text() == report.markdown(returned)
    assert (tmp_path / report.CSV).read_text() == report.csv(returned)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["curves-test.png", "curves-validation.png", "curves-zoo_a_b.png"]


def test_a_threshold_is_marked_where_it_lies_and_nowhere_without_one(tmp_path):
    test = scored(1, 3.0)
    curves = [measures.curve(test.probability[:, i], test.domain == i) for i in (0, 1)]

    def draw(left, right):
        path = tmp_path / "curves.png"
        pictures.precision_recall(path, {"m": curves}, {"m": [left, right]}, 0.95, "test")
        return np.asarray(Image.open(path).convert("RGB")).astype(int)

    bare, places = draw(None, None), []
    for threshold in (0.9, 0.5):
        point = measures.measure(test.probability[:, 0], test.domain == 0, threshold, resamples=10)
        rows, columns = np.nonzero((draw(point, None) != bare).any(axis=2))
        assert columns.max() < bare.shape[1] / 2  # the other panel is as before
        places.append((columns.mean(), rows.min(), rows.max(), point))
    (x, top, bottom, sure), (x2, top2, bottom2, less) = places
    assert sure.recall.value < less.recall.value
    assert x + 20 < x2
    assert sure.precision.low > less.precision.low
    assert top < top2
    assert bottom < bottom2
