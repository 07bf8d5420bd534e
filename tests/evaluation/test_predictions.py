import numpy as np
import pyarrow.parquet as pq
import pytest

from clipdg_jax.evaluation import predictions


def _unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _predictions(**changes):
    fields = {
        "domain": "rendition",
        "classes": ("cat", "dog", "owl"),
        "evaluated": np.array([True, False, True]),
        "index": np.array([0, 2, 5]),
        "label": np.array([0, 2, 2]),
        "prediction": np.array([0, 0, 2]),
        "probability": np.array([0.9, 0.5, 0.75], np.float32),
        "in_top5": np.array([True, True, True]),
        "invalid": 2,
        "unlabelled": 1,
    }
    return predictions.Predictions(**fields | changes)


def test_score_agrees_with_float64(rng):
    # More images than are scored at once, so that the seams are tested too.
    images, classes = _unit(rng, 5000, 16), _unit(rng, 30, 16)
    labels = rng.integers(0, 20, 5000)
    evaluated = np.arange(30) < 20
    logits = 100 * images @ classes[:20].T
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    expected = exponents.max(1) / exponents.sum(1)
    ranked = np.argsort(-logits, axis=1)

    prediction, probability, in_top5 = predictions.score(
        images.astype(np.float32), classes.astype(np.float32), labels, evaluated
    )

    gaps = -np.diff(-np.sort(-logits, axis=1), axis=1)
    clear = gaps.min(axis=1) > 1e-3  # the others may be ranked differently in float32
    np.testing.assert_array_equal(prediction[clear], ranked[clear, 0])
    np.testing.assert_array_equal(in_top5[clear], (ranked[:, :5] == labels[:, None]).any(1)[clear])
    np.testing.assert_allclose(probability, expected, rtol=2e-4)
    assert clear.mean() > 0.9


def test_of_several_rows_for_a_class_the_best_counts_with_its_bias(rng):
    images, rows = rng.normal(size=(50, 8)), rng.normal(size=(5, 8))
    bias = rng.normal(size=5)
    owner, labels = np.array([0, 0, 1, 2, 2]), rng.integers(0, 2, 50) * 2
    evaluated = np.array([True, False, True])
    found, probability, _ = predictions.score(
        images, rows, labels, evaluated, scale=3.0, bias=bias, owner=owner
    )
    logits = 3 * images @ rows.T + bias
    own = np.stack([logits[:, :2].max(axis=1), logits[:, 3:].max(axis=1)], axis=1)
    np.testing.assert_array_equal(found, np.array([0, 2])[own.argmax(axis=1)])
    wanted = 1 / (1 + np.exp(-np.abs(own[:, 0] - own[:, 1])))
    np.testing.assert_allclose(probability, wanted, rtol=1e-5)


def test_score_answers_only_evaluated_classes_in_the_datasets_numbering():
    classes = np.eye(4, dtype=np.float32)
    images = np.array([[0.1, 0.9, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3]], np.float32)
    evaluated = np.array([False, False, True, True])
    prediction, probability, _ = predictions.score(images, classes, np.array([2, 3]), evaluated, 1)
    np.testing.assert_array_equal(prediction, [3, 3])
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-0.1)), rtol=1e-6)


def test_ties_go_to_the_first_class_and_top5_counts_them_so():
    classes = np.ones((8, 2), np.float32)
    labels = np.arange(8)
    prediction, probability, in_top5 = predictions.score(
        np.ones((8, 2), np.float32), classes, labels, np.ones(8, bool)
    )
    np.testing.assert_array_equal(prediction, 0)
    np.testing.assert_allclose(probability, 1 / 8)
    np.testing.assert_array_equal(in_top5, labels < 5)


def test_class_embeddings_are_the_renormalised_means(rng):
    prompts = _unit(rng, 3, 4, 8)
    means = prompts.mean(1)
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    actual = predictions.class_embeddings(prompts.reshape(12, 8).astype(np.float32), 4)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_measures():
    assert _predictions().measures() == {
        "domain": "rendition",
        "top1": pytest.approx(2 / 3),
        "n": 3,
        "classes": 2,
        "chance": 0.5,
        "invalid": 2,
        "unlabelled": 1,
    }
    many = _predictions(
        classes=tuple("abcdefghij"),
        evaluated=np.ones(10, bool),
        in_top5=np.array([True, False, True]),
    )
    assert many.measures()["top5"] == pytest.approx(2 / 3)


def test_parquet_round_trip(tmp_path):
    path = tmp_path / "predictions.parquet"
    other = _predictions(
        domain="natural",
        classes=("ant", "bee"),
        evaluated=np.array([True, True]),
        label=np.array([1, 1, 0]),
        prediction=np.array([1, 0, 0]),
    )
    predictions.write(
        path,
        [("zoo", "drawn", _predictions(), "abc"), ("zoo", "photo", other, ["d/0", "d/1", "d/2"])],
        checkpoint="runs/mix",
        step="7",
    )

    table = pq.read_table(path)
    assert table.schema.metadata == {b"checkpoint": b"runs/mix", b"step": b"7"}
    rows = table.to_pylist()
    assert rows[1] == {
        "suite": "zoo",
        "test_set": "drawn",
        "domain": "rendition",
        "key": "b",
        "index": 2,
        "label": 2,
        "prediction": 0,
        "label_class": "owl",
        "predicted_class": "cat",
        "probability": 0.5,
        "correct": False,
    }
    assert [row["correct"] for row in rows] == [True, False, True, True, False, True]
    assert [row["label_class"] for row in rows[3:]] == ["bee", "bee", "ant"]
    assert [row["key"] for row in rows[3:]] == ["d/0", "d/1", "d/2"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]
