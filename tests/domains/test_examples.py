"""Labelled records: subsets, batches, joins, and as a dataset for the training loader."""

import pickle

import numpy as np
import pytest

from clipdg_jax.data import dataset, shards
from clipdg_jax.domains import examples
from clipdg_jax.errors import UserError
from tests.domains import records, small_datasets, small_pool


def test_batches_hold_every_example_once_in_order():
    data = records.labelled([0, 1, 2, 1, 0], ["a", "b", "c", "d", "e"])
    batches = list(data.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [caption for batch in batches for caption in batch.captions] == list("abcde")
    assert tuple(key for batch in batches for key in batch.keys) == data.keys
    assert list(data.subset(np.zeros(0, np.int64)).batches()) == []


def test_subsets_by_number_and_by_mask_keep_what_belongs_together():
    data = records.labelled([0, 1, 2, 1, 0], ["a", "b", "c", "d", "e"])
    chosen = data.subset(np.array([3, 0]))
    assert chosen.keys == ("r/3", "r/0")
    assert chosen.domain.tolist() == [1, 0]
    assert chosen.record(0).caption == "d"
    masked = data.subset(data.domain == 1)
    assert masked.keys == ("r/1", "r/3")
    assert masked.counts() == {"natural": 0, "rendition": 2, "ambiguous": 0}
    assert masked.subset(np.array([1])).record(0).caption == "d"


def test_everything_takes_the_records_own_domains(tmp_path):
    told = examples.everything(small_datasets.write(tmp_path / "told", 7))
    assert told.domain.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert told.index.tolist() == list(range(7))
    untold = examples.everything(small_datasets.write(tmp_path / "untold", 3, domains=False))
    assert untold.domain.tolist() == [-1, -1, -1]


def test_a_damaged_record_is_named():
    pool = small_pool.SmallPool(size=5, damaged=(3,))
    with pytest.raises(UserError, match="pool: record 3 is damaged"):
        examples.everything(pool)
    whole = examples.everything(small_pool.SmallPool(size=5))
    broken = examples.Examples((pool,), whole.source, whole.index, whole.domain, whole.keys)
    with pytest.raises(UserError, match="pool: pool/3 is damaged"):
        list(broken.batches())
    # Training masks such a record instead, as the loader does for every dataset.
    with pytest.raises(shards.RecordError):
        broken.as_source().record(3)


def test_joined_examples_find_their_records_and_have_keys_of_their_own():
    first, second = (
        examples.everything(small_pool.SmallPool(size=4, name=name)) for name in ("a", "b")
    )
    # A dataset that calls its records as another does.
    second = examples.Examples(
        second.sources, second.source, second.index, second.domain, first.keys
    )
    joined = examples.join([first.subset(np.array([2, 1])), second, first.subset(np.array([0]))])
    assert len(joined.sources) == 2
    assert joined.source.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert len(set(joined.keys)) == len(joined) == 7
    assert [joined.record(row).key for row in (0, 3, 6)] == ["a/2", "b/1", "a/0"]
    assert joined.keys[0] == "a/a/2"
    assert examples.join([first]).keys == first.keys


def test_as_a_source_the_label_is_the_domain(tmp_path):
    data = examples.everything(small_datasets.write(tmp_path / "d", 6))
    relabelled = examples.Examples(
        data.sources, data.source, data.index, np.array([2, 2, 0, 0, 1, 1], np.int32), data.keys
    )
    source = relabelled.subset(np.array([4, 0])).as_source()
    assert len(source) == 2
    assert [source.record(i).label for i in range(2)] == [1, 2]
    assert source.record(0).key == data.keys[4]
    again = pickle.loads(pickle.dumps(source))
    assert again.record(1).image == source.record(1).image
    assert again.fingerprint == source.fingerprint


def test_the_fingerprint_changes_with_labels_records_and_datasets(tmp_path):
    data = examples.everything(small_datasets.write(tmp_path / "d", 6))
    other = examples.everything(small_datasets.write(tmp_path / "e", 6, domains=False))
    flipped = examples.Examples(
        data.sources, data.source, data.index, data.domain[::-1].copy(), data.keys
    )
    moved = examples.Examples(other.sources, data.source, data.index, data.domain, data.keys)
    subset = data.subset(np.arange(5))
    made = {part.as_source().fingerprint for part in (data, flipped, moved, subset)}
    assert len(made) == 4
    same = examples.everything(dataset.open_dataset(tmp_path / "d"))
    assert same.as_source().fingerprint == data.as_source().fingerprint
