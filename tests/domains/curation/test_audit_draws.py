"""What an audit draws: with which chance, from where, and when it refuses to."""

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.data import dataset, engine, schema, writing
from clipdg_jax.domains import calibration, labels, orders
from clipdg_jax.domains.curation import audit_draws, routing
from clipdg_jax.errors import UserError
from tests.domains.curation import small_audit


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_audit.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def store(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as opened:
        yield opened


def of_pool(store, world, n=200, seed=0, drop=""):
    return audit_draws.of_pool(store, world.pool, audit_draws.frame(world.scored(drop)), n, seed)


def of_dataset(store, world, name="natural", n=40, seed=0):
    return audit_draws.of_dataset(store, name, world.written(name), n, seed, routing.TRUE_DOMAIN)


def test_a_written_datasets_draw_is_an_audit_draw_of_it(world, store):
    queue = of_dataset(store, world)
    source = world.written("natural")
    assert list(queue.items) == orders.audit(source, 40, 0) == store.items(queue.draw)
    (draw,) = store.draws()
    assert (draw.order, draw.size, draw.population) == ("audit", 40, len(source))
    assert set(queue.groups.values()) == {"natural"}
    truth = {small_audit.key(i): int(domain) for i, domain in enumerate(world.truth)}
    assert all(truth[key] == domain for key, domain in queue.truth.items())
    assert of_dataset(store, world).draw == queue.draw  # and not another one


def test_the_pools_draw_has_a_known_chance_in_each_stratum(world, store):
    queue = of_pool(store, world)
    sizes = np.bincount(world.decision, minlength=4)
    assert queue.sizes == dict(zip(calibration.DECISIONS, sizes.tolist(), strict=True))
    assert len(queue.items) == len({item.key for item in queue.items}) == 200
    decided = {small_audit.key(i): calibration.DECISIONS[d] for i, d in enumerate(world.decision)}
    pool = world.pool
    drawn = dict.fromkeys(calibration.DECISIONS, 0)
    for item in queue.items:
        assert pool.record(item.index).key == item.key
        assert queue.groups[item.key] == decided[item.key]
        assert schema.DOMAINS[queue.truth[item.key]] == pool.record(item.index).domain
        drawn[decided[item.key]] += 1
    for name, count in drawn.items():
        assert count >= min(30, queue.sizes[name])
        chances = {i.probability for i in queue.items if queue.groups[i.key] == name}
        assert chances == {count / queue.sizes[name]}
    (draw,) = store.draws()
    assert (draw.order, draw.size, draw.population) == ("stratified", 200, 600)
    assert draw.order not in labels.RANDOM_ORDERS  # unweighted, they would not be of the pool
    # The order tells nothing of the strata: the first half holds about half of each.
    half = [queue.groups[item.key] for item in queue.items[:100]]
    assert abs(half.count("ambiguous") - drawn["ambiguous"] / 2) < 20
    assert of_pool(store, world).draw == queue.draw


def test_every_record_of_a_stratum_is_drawn_as_often(world):
    counts = audit_draws.frame(world.scored()).counts
    assert counts.sum(axis=0).tolist() == np.bincount(world.decision, minlength=4).tolist()
    size, runs, n = int(counts[:, 2].sum()), 600, 40
    times = [np.zeros(count) for count in counts[:, 2]]
    for seed in range(runs):
        for shard, ranks in enumerate(audit_draws._ranks(counts, {2: n}, seed)):
            np.add.at(times[shard], ranks.get(2, np.zeros(0, int)), 1)
    p = n / size
    assert np.concatenate(times).sum() == runs * n
    assert np.abs(np.concatenate(times) - runs * p).max() < 5 * np.sqrt(runs * p * (1 - p))


def drop_list(path, world, out):
    per = len(world.truth) // 3
    columns = {
        "shard": pa.array([i // per for i in out], pa.int32()),
        "row": pa.array([i % per for i in out], pa.int32()),
        "key": [small_audit.key(i) for i in out],
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_duplicates_are_not_drawn_nor_counted(world, store, tmp_path):
    out = list(range(0, 600, 3))
    queue = of_pool(store, world, n=400, drop=drop_list(tmp_path / "d.parquet", world, out))
    assert sum(queue.sizes.values()) == len(queue.items) == 400
    assert {item.probability for item in queue.items} == {1.0}
    assert not {small_audit.key(i) for i in out} & queue.groups.keys()
    assert store.draws()[0].population == 400


def test_rows_that_damaged_records_moved_are_found(world, store, monkeypatch):
    """Scores count the records that could be read: those after a damaged one lie further on."""
    whole = of_pool(store, world, n=600)
    record = dataset.Dataset.record
    moved = 5

    def later(self, index):
        """As if the first records of each shard were damaged, and all others so much later."""
        shard, row = divmod(index, 200)
        if row < moved:
            raise dataset.RecordError("damaged")
        return record(self, shard * 200 + row - moved)

    monkeypatch.setattr(dataset.Dataset, "record", later)
    source, scored = world.pool, world.scored()
    for item in whole.items[:50]:
        shard, row = divmod(item.index, 200)
        if row + moved < 200:
            found = audit_draws._locate(source, shard, row, item.key, scored)
            assert found == item.index + moved


def test_scores_of_another_pool_are_refused(world, store, tmp_path):
    other = small_audit.make(tmp_path / "other", 300, seed=9)
    mixed = audit_draws.frame(world.scored())
    with pytest.raises(UserError, match=r"\.parquet: row \d+ is 'r/\d+', which pool does not have"):
        audit_draws.of_pool(store, other.pool, mixed, 200, 0)


def test_missing_scores_are_told(world, tmp_path):
    scored = dataclasses.replace(world.scored(), scores=tmp_path)
    with pytest.raises(UserError, match="holds no scores of 3 of the pool's 3 shards"):
        audit_draws.fingerprint(scored)
    assert audit_draws.fingerprint(world.scored()) == audit_draws.fingerprint(world.scored())


def test_numbers_that_cannot_be_drawn(world, store):
    for n in (0, 10_000):
        with pytest.raises(UserError, match=rf"config\.n: is {n}, but natural has \d+ records"):
            of_dataset(store, world, n=n)
    for n in (50, 601):
        with pytest.raises(UserError, match=rf"config\.pool\.n: is {n}; the pool has 600 scored"):
            of_pool(store, world, n=n)
    assert store.draws() == []


def test_records_without_a_decision_are_refused(store, tmp_path):
    source = writing.write_dataset(
        tmp_path / "plain",
        engine.index_shards(12, 12),
        engine.Each(lambda i: schema.Record(small_audit.key(i), b"")),
        config={},
    )
    with pytest.raises(UserError, match=r"r/\d+ of plain names no domain \(12 of 12 drawn"):
        audit_draws.of_dataset(store, "plain", source, 12, 0, routing.TRUE_DOMAIN)


def test_labels_of_another_version_are_refused(world, store, tmp_path):
    other = small_audit.make(tmp_path / "other", 300, seed=9)
    old = of_dataset(store, other)
    of_dataset(store, world)  # nobody has labelled the old one yet
    with labels.Store(tmp_path / "second.sqlite") as second:
        old = of_dataset(second, other)
        second.set("anna", old.draw, old.items[0].key, "natural")
        with pytest.raises(UserError, match=r"second\.sqlite: its 1 labels of natural are of an"):
            of_dataset(second, world)


def test_damaged_records_are_left_out_aloud(world, store, monkeypatch, caplog):
    record = dataset.Dataset.record

    def broken(self, index):
        if index == 7:
            raise dataset.RecordError("damaged")
        return record(self, index)

    monkeypatch.setattr(dataset.Dataset, "record", broken)
    size = len(world.written("natural"))
    with caplog.at_level(logging.WARNING):
        queue = of_dataset(store, world, n=size)
    assert len(queue.items) == size - 1
    assert "1 of" in caplog.text
