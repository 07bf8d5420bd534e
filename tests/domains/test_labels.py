import contextlib
import math
import multiprocessing
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from clipdg_jax.domains import labels
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


def test_the_population_of_a_draw_may_be_smaller_than_the_dataset(store):
    first = store.add_draw(POOL, "stratified", 0, [*items(1), *items(2, probability=0.9)], 40)
    (found,) = store.draws()
    assert (found.id, found.order, found.size, found.population) == (first, "stratified", 2, 40)
    for population in (1, 101):
        with pytest.raises(ValueError, match=f"2 items of a population of {population}"):
            store.add_draw(POOL, "audit", 0, items(1, 2), population)


@pytest.mark.parametrize(
    ("order", "chosen", "match"),
    [
        ("best", items(1), "must be one of"),
        ("random", [], "need items"),
        ("random", items(100), "need items with indices below 100"),
        ("audit", items(1, probability=math.nan), "needs the probability"),
        ("stratified", items(1, probability=0.0), "needs the probability"),
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
