import contextlib
import math
import multiprocessing
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.domains import label_table, labels
from clipdg_jax.errors import UserError
from tests.domains.small_pool import SmallPool

POOL = SmallPool()
DOMAINS = ("natural", "rendition", "ambiguous")


def items(*indices: int, probability: float = 0.1) -> list[labels.Item]:
    return [labels.Item(i, f"pool/{i}", probability) for i in indices]


@pytest.fixture
def store(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as opened:
        yield opened


@pytest.fixture
def draw(store) -> int:
    return store.add_draw(POOL, "random", 7, items(*range(10)))


def said(store, *args) -> dict[tuple[str, str], str]:
    return {(label.annotator, label.key): label.domain for label in store.labels(*args)}


def test_a_draw_keeps_its_origin_and_its_order(store):
    first = store.add_draw(POOL, "random", 7, items(3, 1, 2))
    assert store.add_draw(POOL, "random", 7, items(3, 1, 2)) == first
    others = [
        store.add_draw(POOL, "random", 8, items(3, 1, 2)),
        store.add_draw(POOL, "audit", 7, items(3, 1, 2)),
        store.add_draw(POOL, "random", 7, items(1, 2, 3)),
        store.add_draw(POOL, "random", 7, items(3, 1, 2, probability=0.2)),
        store.add_draw(SmallPool(50, fingerprint="beef"), "random", 7, items(3, 1, 2)),
        store.add_draw(POOL, "uncertain", 0, items(3, 1, probability=math.nan)),
    ]
    assert len({first, *others}) == 7
    assert store.items(first) == items(3, 1, 2)
    assert all(math.isnan(item.probability) for item in store.items(others[-1]))
    found = {d.id: (d.fingerprint, d.order, d.seed, d.size, d.population) for d in store.draws()}
    assert found[first] == ("f00d", "random", 7, 3, 100)
    assert found[others[4]] == ("beef", "random", 7, 3, 50)
    assert found[others[5]] == ("f00d", "uncertain", 0, 2, 100)


@pytest.mark.parametrize(
    ("order", "chosen", "match"),
    [
        ("best", items(1), "must be one of"),
        ("random", [], "need items"),
        ("random", items(100), "need items with indices below 100"),
        ("audit", items(1, probability=math.nan), "needs the probability"),
    ],
)
def test_draws_that_make_no_sense(store, order, chosen, match):
    with pytest.raises(ValueError, match=match):
        store.add_draw(POOL, order, 0, chosen)
    assert store.draws() == []


def test_keys_of_a_draw_are_unique(store):
    with pytest.raises(UserError, match="two of its records have the key 'pool/1'"):
        store.add_draw(POOL, "random", 0, [*items(1), labels.Item(2, "pool/1", 0.1)])


def test_random_walks_of_labels_and_undos_agree_with_lists(store, draw):
    """Against a plain model: per annotator a stack of changes; the last of a key holds."""
    rng = random.Random(0)
    stacks: dict[str, list[tuple[str, str | None]]] = {"ann": [], "bob": []}
    for _ in range(400):
        who, key = rng.choice(["ann", "bob"]), f"pool/{rng.randrange(10)}"
        now = dict(stacks[who])
        if rng.random() < 0.35:
            expected = None
            if stacks[who]:
                last, _ = stacks[who].pop()
                expected = (last, dict(stacks[who]).get(last))
            assert store.undo(who, draw) == expected
        else:
            domain = rng.choice([None, *DOMAINS])
            if now.get(key) != domain:
                stacks[who].append((key, domain))
            store.set(who, draw, key, domain)
        for name, stack in stacks.items():
            holds = {(name, k): d for k, d in dict(stack).items() if d is not None}
            assert said(store, draw, name) == holds
            assert store.progress(draw, name) == (len(holds), 10)
    assert store.annotators() == ["ann", "bob"]
    with sqlite3.connect(store.path) as file:  # nothing was ever forgotten
        assert file.execute("SELECT COUNT(*) FROM changes WHERE undone").fetchone()[0] > 50


def test_undo_stays_within_the_draw(store, draw):
    other = store.add_draw(POOL, "random", 8, items(1, 2))
    store.set("ann", draw, "pool/1", "natural")
    store.set("ann", other, "pool/1", "rendition")
    assert store.undo("ann", draw) == ("pool/1", None)
    assert store.undo("ann", draw) is None
    assert [(label.draw, label.domain) for label in store.labels()] == [(other, "rendition")]


def test_nobody_can_change_the_labels_of_another(store, draw):
    store.set("ann", draw, "pool/1", "natural")
    before = store.labels(draw, "ann")
    store.set("bob", draw, "pool/1", "rendition")
    store.set("bob", draw, "pool/1", None)
    store.set_all("bob", draw, {"pool/1": "ambiguous", "pool/2": "natural"})
    for _ in range(5):
        store.undo("bob", draw)
    store.adjudicate("bob", draw, "pool/1", "rendition")
    assert store.labels() == before
    # Not even a program that opens the file itself can rewrite what was said.
    with contextlib.closing(sqlite3.connect(store.path)) as file:
        for change in (
            "DELETE FROM changes",
            "UPDATE changes SET domain = 'rendition'",
            "UPDATE changes SET annotator = 'bob'",
            "DELETE FROM decisions",
            "UPDATE decisions SET domain = 'natural'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                file.execute(change)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("ann", 1, "pool/55", "natural"), r"draw 1 holds no key 'pool/55' \(1 of 1 keys"),
        (("ann", 9, "pool/1", "natural"), r"draw 9 holds no key .* the draws \[1\]"),
        (("ann", 1, "pool/1", "drawing"), "pool/1: cannot be labelled 'drawing'; domains are nat"),
        (("", 1, "pool/1", "natural"), "annotator: '' is no name"),
        ((" ann", 1, "pool/1", "natural"), "annotator: ' ann' is no name"),
        (("a\nb", 1, "pool/1", "natural"), "is no name"),
        (("a" * 65, 1, "pool/1", "natural"), "is no name"),
        (("ann", 10**30, "pool/1", "natural"), "cannot hold such a value"),
        (("ann", 1, "\ud800", "natural"), "cannot hold such a value"),
    ],
)
def test_labels_that_cannot_be(store, draw, args, match):
    assert draw == 1
    for write in (store.set, store.adjudicate):
        with pytest.raises(UserError, match=match):
            write(*args)
    assert store.labels() == store.adjudications() == []


def test_many_labels_are_all_written_or_none(store, draw):
    with pytest.raises(UserError, match=r"'pool/77' \(1 of 2 keys are unknown\)"):
        store.set_all("ann", draw, {"pool/1": "natural", "pool/77": "natural"})
    assert store.labels() == []
    with pytest.raises(UserError, match=r"no draw 5; its draws are \[1\]"):
        store.items(5)


def test_the_latest_decision_on_a_record_holds_in_all_draws(store, draw):
    other = store.add_draw(POOL, "disagreement", 0, items(1, 99, probability=math.nan))
    elsewhere = store.add_draw(SmallPool(fingerprint="beef"), "random", 0, items(1))
    store.adjudicate("ann", draw, "pool/1", "natural")
    store.adjudicate("bob", other, "pool/1", "rendition")
    store.adjudicate("bob", other, "pool/99", "natural")
    store.adjudicate("bob", draw, "pool/2", "natural")
    store.adjudicate("ann", draw, "pool/2", None)

    def decided(*args) -> list[tuple[str, str, str]]:
        return [(a.key, a.annotator, a.domain) for a in store.adjudications(*args)]

    both = [("pool/1", "bob", "rendition"), ("pool/99", "bob", "natural")]
    assert decided() == both
    assert decided(draw) == both[:1]
    assert decided(other) == both
    assert decided(elsewhere) == []


WRITER = """
import sys
from clipdg_jax.domains import labels
store = labels.Store(sys.argv[1])
domains = ("natural", "rendition", "ambiguous")
for turn in range(10**9):
    for n in range(10):
        store.set(sys.argv[2], 1, f"pool/{n}", domains[turn % 3])
        print(turn, n, flush=True)
"""


def test_a_kill_loses_nothing_that_was_acknowledged(store, draw):
    """Two processes label at once and are killed; what they said before is there."""
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(store.path)]
    writers = {
        name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True, cwd=root)
        for name in ("ann", "bob")
    }
    for writer in writers.values():
        for _ in range(25):
            assert writer.stdout.readline()
    for writer in writers.values():
        writer.send_signal(signal.SIGKILL)
    for name, writer in writers.items():
        acknowledged = 25 + len(writer.communicate()[0].splitlines())
        assert writer.returncode == -signal.SIGKILL
        with contextlib.closing(sqlite3.connect(store.path)) as file:
            query = "SELECT key, domain FROM changes WHERE annotator = ? ORDER BY id"
            written = file.execute(query, (name,)).fetchall()
        # One more may have been written and not yet acknowledged.
        assert len(written) in (acknowledged, acknowledged + 1)
        expected = [(f"pool/{n % 10}", DOMAINS[n // 10 % 3]) for n in range(len(written))]
        assert written == expected
        assert said(store, 1, name) == {(name, key): domain for key, domain in expected}


def _open_and_label(path: str, name: str) -> int:
    with labels.Store(path) as opened:
        draw = opened.add_draw(POOL, "random", 7, items(*range(10)))
        for n in range(10):
            opened.set(name, draw, f"pool/{n}", "natural")
    return draw


def test_several_processes_may_make_the_store_at_once(tmp_path):
    path = str(tmp_path / "new.sqlite")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        draws = pool.starmap(_open_and_label, [(path, f"a{n}") for n in range(6)], chunksize=1)
    assert set(draws) == {1}
    with labels.Store(path) as opened:
        assert len(opened.draws()) == 1
        assert len(opened.labels()) == 60


def test_threads_share_a_store(store, draw):
    def work(name: str) -> None:
        for n in range(20):
            store.set(name, draw, f"pool/{n % 10}", DOMAINS[n // 10])
            assert store.progress(draw, name)[0] == min(n + 1, 10)

    threads = [threading.Thread(target=work, args=(f"a{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(said(store).values()) == {"rendition"}
    assert len(store.labels()) == 40


def test_files_that_are_no_store(tmp_path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no database " * 500)
    foreign = tmp_path / "foreign"
    with contextlib.closing(sqlite3.connect(foreign)) as file:
        file.execute("CREATE TABLE labels (x)")
        file.commit()
    later = tmp_path / "later"
    labels.Store(later).close()
    with contextlib.closing(sqlite3.connect(later)) as file:
        file.execute("PRAGMA user_version = 2")
    for path, match in (
        (garbage, "is not a label store; give the name of one"),
        (foreign, "another program's SQLite file"),
        (later, "has format 2; this version reads format 1"),
        (tmp_path, "unable to open"),
        (tmp_path / "no" / "labels", "its directory does not exist"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(UserError, match=match) as caught:
            labels.Store(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert (path.read_bytes() if path.is_file() else None) == before


def test_a_damaged_store_says_so(store, draw, tmp_path):
    for n in range(10):
        store.set("ann", draw, f"pool/{n}", "natural")
    store.close()
    data = store.path.read_bytes()
    page = 4096
    refused = 0
    for start in range(page, len(data), page):  # all pages but the first, one at a time
        path = tmp_path / f"damaged{start}"
        path.write_bytes(data[:start] + b"\xff" * page + data[start + page :])
        with pytest.raises(UserError, match=f"{path}: .*it is damaged; restore a copy"):
            labels.Store(path)
        refused += 1
    assert refused >= 5
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="it is damaged"):
        labels.Store(cut)


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
