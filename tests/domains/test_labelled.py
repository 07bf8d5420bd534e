"""From label files to examples and their splits."""

import ml_collections
import numpy as np
import pytest

from clipdg_jax.domains import annotators as annotators_lib
from clipdg_jax.domains import examples, labelled, labels
from clipdg_jax.errors import UserError
from tests.domains import records, small_datasets, small_pool


def config(**fields):
    return ml_collections.ConfigDict({"validation": 10, "test": 8, "min_annotators": 2, **fields})


@pytest.fixture
def pool():
    return small_pool.SmallPool(size=60)


@pytest.fixture
def store(pool, tmp_path):
    """30 records of one annotator, 20 of two."""
    truth = np.arange(60) % 3
    path = tmp_path / "labels.sqlite"
    with labels.Store(path) as opened:
        annotators_lib.simulate(
            opened,
            pool,
            truth,
            train=30,
            validation_and_test=20,
            train_noise=0.0,
            annotators=2,
            error=0.0,
            seed=1,
        )
    return path


def test_labels_find_their_records(pool, store):
    read = labelled.read(str(store), [pool])
    assert len(read.examples) == 50
    for row in range(50):
        record = read.examples.record(row)
        assert record.key == read.examples.keys[row] == read.consensus.key[row]
        assert read.examples.domain[row] == int(record.key.removeprefix("pool/")) % 3
    told = read.provenance
    assert (told["records"], told["of_other_datasets"], told["ties"]) == (50, 0, 0)
    assert (told["from_random_draws"], told["annotators_per_record"]) == (50, 70 / 50)


def test_excluded_records_are_counted_and_left_out(pool, store):
    whole = labelled.read(str(store), [pool])
    out = set(whole.examples.keys[:20])
    read = labelled.read(str(store), [pool], {pool.fingerprint: out, "another": {"pool/1"}})
    assert read.examples.keys == whole.examples.keys[20:]
    assert read.examples.domain.tolist() == whole.examples.domain.tolist()[20:]
    assert list(read.consensus.key) == list(read.examples.keys)
    told = read.provenance
    assert (told["records"], told["excluded"], told["of_other_datasets"]) == (30, 20, 0)
    with pytest.raises(UserError, match=r"none of its 50 labels is of pool \(50 are excluded\)"):
        labelled.read(str(store), [pool], {pool.fingerprint: set(whole.examples.keys)})


def test_splits_are_disjoint_and_of_enough_annotators(pool, store):
    read = labelled.read(str(store), [pool])
    parts = labelled.split(read, config(), seed=3)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 32,
        "validation": 10,
        "test": 8,
    }
    keys = [key for part in parts.values() for key in part.keys]
    assert len(set(keys)) == 50
    twice = dict(zip(read.consensus.key, read.consensus.random_annotators, strict=True))
    assert all(twice[key] == 2 for name in ("validation", "test") for key in parts[name].keys)
    labelled.check(parts)
    with pytest.raises(UserError, match="need 41 labels"):
        labelled.split(read, config(validation=33), seed=3)


def test_labels_of_several_datasets_go_where_they_belong(tmp_path):
    first, second = small_pool.SmallPool(20, "a", "f1"), small_pool.SmallPool(20, "b", "f2")
    path = tmp_path / "labels.csv"
    path.write_text(
        "key,domain,dataset,fingerprint\n"
        "b/3,rendition,b,\n"  # By its name.
        "a/7,natural,renamed,f1\n"  # By its content, whatever it was called.
        "c/1,natural,c,\n"
        "a/2,ambiguous,a,other\n"  # Of another version of a.
    )
    read = labelled.read(str(path), [first, second])
    found = [read.examples.record(row).key for row in range(len(read.examples))]
    assert found == ["a/7", "b/3"]
    assert read.examples.domain.tolist() == [0, 1]
    assert read.examples.keys == ("a/a/7", "b/b/3")
    assert list(read.consensus.key) == found
    assert read.provenance["of_other_datasets"] == 2


def test_a_plain_file_is_of_the_only_dataset(pool, tmp_path):
    path = tmp_path / "plain.csv"
    path.write_text("key,domain\npool/5,rendition\npool/1,natural\n")
    read = labelled.read(str(path), [pool])
    assert sorted(zip(read.examples.index.tolist(), read.examples.domain.tolist())) == [
        (1, 0),
        (5, 1),
    ]
    with pytest.raises(UserError, match="none of its 2 labels is of pool, b; name the datasets"):
        labelled.read(str(path), [pool, small_pool.SmallPool(3, "b", "f2")])
    path.write_text("key,domain\npool/5,rendition\npool/77,natural\nx,natural\n")
    with pytest.raises(UserError, match=r"pool: has no record 'pool/77' \(2 of 3"):
        labelled.read(str(path), [pool])


def test_records_own_domains_count_as_decided(tmp_path):
    told = small_datasets.write(tmp_path / "told", 12)
    more = small_datasets.write(tmp_path / "more", 9, name="more")
    read = labelled.of_records([told, more])
    assert len(read.examples) == 21
    assert read.examples.domain.tolist() == [*([0, 1, 2] * 4), *([0, 1, 2] * 3)]
    assert len(set(read.examples.keys)) == 21
    parts = labelled.split(read, config(validation=6, test=5, min_annotators=9), seed=0)
    assert [len(part) for part in parts.values()] == [10, 6, 5]
    untold = small_datasets.write(tmp_path / "untold", 4, domains=False, name="untold")
    with pytest.raises(UserError, match="untold: r/000 and 3 more records name no domain"):
        labelled.of_records([told, untold])


def test_the_fingerprint_is_of_what_is_said(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,domain\na,natural\nb,rendition\n")
    before = labelled.fingerprint(str(path))
    path.write_text("key,domain,annotator\na,natural,\nb,rendition,\n")
    assert labelled.fingerprint(str(path)) == before
    path.write_text("key,domain\na,natural\nb,ambiguous\n")
    assert labelled.fingerprint(str(path)) != before


def test_every_part_needs_both_deciders_domains():
    good, bad = records.labelled([0, 1, 2]), records.labelled([0, 0, 2])
    labelled.check({"train": good})
    with pytest.raises(UserError, match=r"none of the 3 for test says rendition .2 nat"):
        labelled.check({"train": good, "test": bad})
    empty = examples.join([good]).subset(np.zeros(0, np.int64))
    with pytest.raises(UserError, match="none of the 0 for validation says natural"):
        labelled.check({"validation": empty})
