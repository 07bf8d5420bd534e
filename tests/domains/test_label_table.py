import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.domains import label_table, labels
from clipdg_jax.errors import UserError
from tests.domains.small_pool import SmallPool

POOL = SmallPool()


def items(*indices: int, probability: float = 0.1) -> list[labels.Item]:
    return [labels.Item(i, f"pool/{i}", probability) for i in indices]


@pytest.fixture
def store(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as opened:
        yield opened


@pytest.fixture
def draw(store) -> int:
    return store.add_draw(POOL, "random", 7, items(*range(10)))


def votes(store, draw, **by_annotator: str) -> None:
    """One letter per record from pool/0 on: n, r, a, or - for none."""
    names = {"n": "natural", "r": "rendition", "a": "ambiguous"}
    for who, letters in by_annotator.items():
        store.set_all(who, draw, {f"pool/{i}": names[x] for i, x in enumerate(letters) if x != "-"})


def test_export_and_read_give_the_same_table(store, draw, tmp_path):
    chosen = store.add_draw(POOL, "uncertain", 0, items(1, 2, probability=math.nan))
    votes(store, draw, ann="nra", bob="nnn")
    store.set("ann", chosen, "pool/2", "natural")
    store.adjudicate("bob", chosen, "pool/1", "rendition")
    path = tmp_path / "labels.parquet"
    label_table.export(store, path)
    # One column at a time, since a NaN in it equals no other.
    live, kept = label_table.read(store.path), label_table.read(path)
    assert len(live) == len(kept) == 8
    for name in live.table.column_names:
        np.testing.assert_array_equal(live.column(name), kept.column(name))
    row = dict(zip(kept.table.column_names, (kept.column(n)[-1] for n in kept.table.column_names)))
    assert row.pop("time") > 1.7e9
    assert math.isnan(row.pop("probability"))
    assert row == {
        "dataset": "pool",
        "fingerprint": "f00d",
        "key": "pool/1",
        "index": 1,
        "annotator": "bob",
        "domain": "rendition",
        "order": "uncertain",
        "seed": 0,
        "population": 100,
        "adjudicated": True,
    }
    label_table.export(store, path)  # an earlier export is replaced
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(UserError, match=r"other\.parquet: is not an export of labels"):
        label_table.export(store, other)


def test_consensus_by_decision_then_strict_majority(store, draw):
    votes(store, draw, ann="nnnrra-", bob="nrnraa-", cat="nna-nr-")
    store.adjudicate("dan", draw, "pool/1", "ambiguous")  # over a majority of natural
    store.adjudicate("dan", draw, "pool/7", "natural")  # without any label
    found = label_table.consensus(label_table.from_store(store))
    # pool/4: rendition, ambiguous, natural is a tie; pool/6 has no label.
    assert found.key == tuple(f"pool/{i}" for i in (0, 1, 2, 3, 5, 7))
    assert found.domain.tolist() == [0, 2, 0, 1, 2, 0]
    assert found.annotators.tolist() == [3, 3, 3, 2, 3, 0]
    assert found.adjudicated.tolist() == [False, True, False, False, False, True]
    assert found.index.tolist() == [0, 1, 2, 3, 5, 7]
    assert (found.ties, found.few) == (1, 0)
    assert found.random.all()
    assert set(found.dataset) == {"pool"}
    assert set(found.fingerprint) == {"f00d"}
    strict = label_table.consensus(label_table.from_store(store), min_annotators=3)
    assert strict.key == tuple(f"pool/{i}" for i in (0, 1, 2, 5, 7))
    assert (strict.ties, strict.few) == (1, 1)


def test_two_against_two_is_a_tie_and_one_of_two_too(store, draw):
    votes(store, draw, ann="nn", bob="nr", cat="r-", dan="r-")
    found = label_table.consensus(label_table.from_store(store))
    assert (len(found), found.ties) == (0, 2)


def test_consensus_counts_an_annotator_once_and_knows_the_draws(store, draw):
    picked = store.add_draw(POOL, "uncertain", 0, items(0, 50, probability=math.nan))
    audit = store.add_draw(POOL, "audit", 0, items(0, 60, probability=0.3))
    store.set("ann", draw, "pool/0", "rendition")
    store.set("bob", audit, "pool/0", "natural")
    store.set("ann", picked, "pool/0", "natural")  # changes her mind
    store.set("cat", picked, "pool/0", "natural")
    store.set("ann", picked, "pool/50", "natural")
    store.set("ann", audit, "pool/60", "natural")
    found = label_table.consensus(label_table.from_store(store))
    assert found.key == ("pool/0", "pool/50", "pool/60")
    assert found.domain.tolist() == [0, 0, 0]
    assert found.annotators.tolist() == [3, 1, 1]
    assert found.random_annotators.tolist() == [2, 0, 1]
    assert found.random.tolist() == [True, False, True]
    np.testing.assert_array_equal(found.probability, [0.3, np.nan, 0.3])


def test_consensus_does_not_depend_on_the_order_of_rows(store, draw):
    votes(store, draw, ann="nrannr", bob="nranra", cat="nraarn")
    table = label_table.from_store(store)
    expected = label_table.consensus(table)
    rows = np.random.default_rng(0).permutation(len(table))
    shuffled = label_table.consensus(label_table.LabelTable(table.table.take(rows)))
    assert shuffled.key == expected.key
    np.testing.assert_array_equal(shuffled.domain, expected.domain)


def test_plain_tables(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("domain,key,notes\nnatural,00012,x\nrendition,7,y\nnatural,00012,again\n")
    found = label_table.consensus(label_table.read(path))
    assert found.key == ("00012", "7")
    assert found.domain.tolist() == [0, 1]
    assert found.index.tolist() == [-1, -1]
    assert not found.random.any()
    path.write_text("key,domain,dataset,order,annotator\na,natural,p,random,x\na,rendition,q,,x\n")
    found = label_table.consensus(label_table.read(path))
    assert list(zip(found.dataset, found.random.tolist())) == [("p", True), ("q", False)]
    parquet = tmp_path / "labels.parquet"
    pq.write_table(
        pa.table({"key": ["a"], "domain": pa.array(["natural"]).dictionary_encode()}), parquet
    )
    assert label_table.consensus(label_table.read(parquet)).key == ("a",)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("key,class\na,natural\n", "has no column 'domain'"),
        ("key,domain\na,photo\n", r"row 1 \(a\) has domain 'photo'; domains are natural, rend"),
        ("key,domain\na,natural\n,natural\n", "row 2 has no key"),
        ("key,domain\na,natural\na,rendition\n", "row 2 says that a is rendition, an earlier row"),
        ("key,domain,order\na,natural,best\n", r"row 1 \(a\) has order 'best'"),
        ("key,domain,index\na,natural,first\n", "cannot be read as Parquet or CSV"),
        ("", "cannot be read as Parquet or CSV"),
        ("PAR1 not really", "cannot be read as Parquet or CSV"),
    ],
)
def test_tables_that_cannot_be(tmp_path, text, match):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=match) as caught:
        label_table.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.sqlite: cannot be read"):
        label_table.read(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_still_open_can_be_copied_and_read(store, draw, tmp_path):
    """What was written is in the write-ahead log beside the file until the store is closed."""
    votes(store, draw, ann="nr")
    for path in store.path.parent.glob("labels.sqlite*"):
        shutil.copy(path, tmp_path / path.name.replace("labels", "copy"))
    assert label_table.read(tmp_path / "copy.sqlite").column("key") == ["pool/0", "pool/1"]


def test_locate_finds_keys_and_names_those_it_does_not():
    pool = SmallPool(30, damaged=(4,))
    keys = ["pool/9", "pool/2", "pool/9", "pool/29"]
    assert label_table.locate(pool, keys).tolist() == [9, 2, 9, 29]
    expected = r"pool: has no record 'pool/4' \(2 of 3 labelled keys are unknown\) \(1 of its"
    with pytest.raises(UserError, match=expected):
        label_table.locate(pool, ["pool/4", "pool/5", "other"])
