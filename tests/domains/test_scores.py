"""Scores and the file that keeps them."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipdg_jax.domains import scores
from clipdg_jax.errors import UserError
from tests.domains import records, small_datasets


def test_scores_are_of_every_example_in_order():
    method = small_datasets.fitted()
    images = [records.solid((9, 9, 9)), b"broken", records.solid((1, 2, 3))]
    data = records.labelled([0, 1, 2], small_datasets.CAPTIONS, images)
    found = scores.of(method, data, batch=2)
    (whole,) = data.batches(3)
    np.testing.assert_array_equal(found.probability, method.score(whole))
    assert found.valid.tolist() == [True, False, True]
    assert found.readable().keys == ("r/0", "r/2")
    assert found.readable().domain.tolist() == [0, 2]
    nothing = scores.of(method, data.subset(np.zeros(0, np.int64)))
    assert (len(nothing), nothing.probability.shape) == (0, (0, 2))


def test_written_scores_come_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)

    def some(n, prefix):
        return scores.Scores(
            tuple(f"{prefix}/{i}" for i in range(n)),
            rng.integers(-1, 3, n).astype(np.int32),
            rng.random((n, 2)).astype(np.float32),
            rng.random(n) < 0.8,
        )

    sets = {"validation": some(5, "v"), "test/pool": some(7, "t")}
    path = tmp_path / "deep" / "scores.parquet"
    scores.write(path, sets)
    found = scores.read(path)
    assert list(found) == list(sets)
    for name, part in sets.items():
        assert found[name].keys == part.keys
        for field in ("domain", "probability", "valid"):
            ours, theirs = getattr(found[name], field), getattr(part, field)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    joined = scores.join(list(sets.values()))
    assert len(joined) == 12
    np.testing.assert_array_equal(joined.probability[5:], sets["test/pool"].probability)


def test_there_may_be_no_set_to_score(tmp_path):
    path = tmp_path / "scores.parquet"
    scores.write(path, {})
    assert scores.read(path) == {}


def test_damaged_files_and_full_disks_are_told(tmp_path, monkeypatch):
    path = tmp_path / "scores.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is damaged") as refused:
        scores.read(path)
    assert "\n" not in str(refused.value)
    pq.write_table(scores.pa.table({"set": ["a"]}), path)
    with pytest.raises(UserError, match="is damaged"):
        scores.read(path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scores.pq, "write_table", full)
    with pytest.raises(UserError, match=r"more\.parquet: no space left to write it"):
        scores.write(tmp_path / "more.parquet", {})
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]
