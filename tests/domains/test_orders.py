import logging
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.domains import labels, orders
from clipdg_jax.errors import UserError
from tests.domains.small_pool import SmallPool

POOL = SmallPool(60)


@pytest.mark.parametrize("order", [orders.random, orders.audit])
def test_every_record_is_drawn_as_often_as_its_probability_says(order):
    n, seeds = 15, 2000
    times = np.zeros((n, len(POOL)))
    for seed in range(seeds):
        chosen = order(POOL, n, seed)
        assert {item.probability for item in chosen} == {n / len(POOL)}
        assert all(item.key == f"pool/{item.index}" for item in chosen)
        times[np.arange(n), [item.index for item in chosen]] += 1
    assert times.sum(axis=0).max() <= seeds  # none twice in a draw
    # Binomial: 5 standard errors, over all places and at the first and last place alone.
    for seen, p in ((times.sum(axis=0), n / 60), (times[0], 1 / 60), (times[-1], 1 / 60)):
        error = math.sqrt(seeds * p * (1 - p))
        assert np.abs(seen - seeds * p).max() < 5 * error


def test_draws_are_seeded_and_nested_and_audits_are_others():
    assert orders.random(POOL, 20, 3) == orders.random(POOL, 20, 3)
    keys = [item.key for item in orders.random(POOL, 20, 3)]
    assert [item.key for item in orders.random(POOL, 40, 3)][:20] == keys
    assert [item.key for item in orders.random(POOL, 20, 4)] != keys
    assert [item.key for item in orders.audit(POOL, 20, 3)] != keys
    everything = orders.random(POOL, 60, 0)
    assert sorted(item.index for item in everything) == list(range(60))
    assert {item.probability for item in everything} == {1.0}


def test_more_than_there_is_cannot_be_drawn():
    for n in (0, 61):
        with pytest.raises(UserError, match=f"pool: cannot draw {n} of its 60 records"):
            orders.random(POOL, n, 0)


def test_damaged_records_are_left_out_aloud(caplog):
    broken = SmallPool(60, damaged=(1, 5, 9))
    with caplog.at_level(logging.WARNING):
        chosen = orders.random(broken, 60, 0)
    assert sorted(item.index for item in chosen) == [i for i in range(60) if i not in (1, 5, 9)]
    assert "3 of 60 drawn records are damaged" in caplog.text
    with pytest.raises(UserError, match="all drawn records are damaged"):
        orders.audit(SmallPool(2, damaged=(0, 1)), 2, 0)


def scores() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.dirichlet([0.5, 0.5, 0.3], 60)[:, :2].astype(np.float32)


def test_the_least_sure_come_first():
    given = scores()
    given[[4, 40]] = np.nan
    given[7] = (0.5, 0.5)
    chosen = orders.uncertain(POOL, given, 20)
    assert all(math.isnan(item.probability) for item in chosen)

    def margin(index: int) -> float:
        natural, rendition = map(float, given[index])
        ranked = sorted((natural, rendition, 1 - natural - rendition))
        return ranked[-1] - ranked[-2]

    scored = [i for i in range(60) if i not in (4, 40)]
    expected = sorted(scored, key=margin)
    assert [item.index for item in chosen][:20] == expected[:20]
    assert chosen[0].index == 7
    assert len(orders.uncertain(POOL, given, 500)) == 58
    with pytest.raises(UserError, match="no record has a score"):
        orders.uncertain(POOL, np.full((60, 2), np.nan), 5)
    with pytest.raises(UserError, match="cannot draw 0"):
        orders.uncertain(POOL, given, 0)


def test_scores_from_a_file_with_and_without_indices(tmp_path):
    given = scores()
    order = np.random.default_rng(1).permutation(60)[:50]  # some records have no score
    path = tmp_path / "scores.parquet"
    table = pa.table(
        {
            "key": [f"pool/{i}" for i in order],
            "natural": given[order, 0],
            "rendition": given[order, 1],
        }
    )
    known = np.full_like(given, np.nan)
    known[order] = given[order]
    expected = [item.index for item in orders.uncertain(POOL, known, 30)]
    for content in (table, table.append_column("index", pa.array(order))):
        pq.write_table(content, path)
        assert [item.index for item in orders.uncertain(POOL, path, 30)] == expected


def test_scores_that_are_not_of_this_dataset(tmp_path):
    path = tmp_path / "scores.parquet"
    columns = {"key": ["pool/3", "pool/77"], "natural": [0.1, 0.2], "rendition": [0.3, 0.4]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"has no record 'pool/77' \(1 of 2"):
        orders.uncertain(POOL, path, 1)
    for index in ([3, 77], [3, 4], [-1, 3]):
        pq.write_table(pa.table({**columns, "index": index}), path)
        with pytest.raises(UserError, match=r"scores\.parquet: its keys are not those of pool"):
            orders.uncertain(POOL, path, 1)
    pq.write_table(pa.table({"key": ["pool/3"], "natural": [0.5]}), path)
    with pytest.raises(UserError, match=r"cannot be read as scores .*rendition"):
        orders.uncertain(POOL, path, 1)
    path.write_text("key")
    with pytest.raises(UserError, match="cannot be read as scores"):
        orders.uncertain(POOL, path, 1)


def test_disagreement_ranks_the_most_even_first_and_leaves_out_the_settled(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        with pytest.raises(UserError, match="no undecided record of pool has labels that differ"):
            orders.disagreement(store, POOL)
        draw = store.add_draw(POOL, "random", 0, orders.random(POOL, 60, 0))
        other = SmallPool(60, name="other", fingerprint="beef")
        elsewhere = store.add_draw(other, "random", 0, orders.random(other, 60, 0))
        names = {"n": "natural", "r": "rendition", "a": "ambiguous"}
        # pool/0 unanimous; 1: two to one; 2: one each; 3: decided; 4: alone; 5: two to one.
        letters = {"ann": "nnnnnr", "bob": "nnrr-n", "cat": "nra--n"}
        for who, said in letters.items():
            store.set_all(
                who, draw, {f"pool/{i}": names[x] for i, x in enumerate(said) if x != "-"}
            )
        store.adjudicate("dan", draw, "pool/3", "natural")
        store.set("ann", elsewhere, "other/9", "natural")
        store.set("bob", elsewhere, "other/9", "rendition")
        chosen = orders.disagreement(store, POOL)
        assert [(item.index, item.key) for item in chosen] == [
            (2, "pool/2"),
            (1, "pool/1"),
            (5, "pool/5"),
        ]
        assert all(math.isnan(item.probability) for item in chosen)
        assert [item.key for item in orders.disagreement(store, other)] == ["other/9"]
        # Whoever changes his mind in another draw no longer disagrees.
        again = store.add_draw(POOL, "disagreement", 0, chosen)
        store.set("cat", again, "pool/1", "natural")
        assert [item.index for item in orders.disagreement(store, POOL)] == [2, 5]


@pytest.mark.parametrize("order", [orders.random, orders.audit])
def test_excluded_records_are_taken_out_of_the_order(order):
    out = {3, 17, 18, 40, 59}
    keys = {f"pool/{i}" for i in out}
    mask = np.isin(np.arange(60), list(out))
    everything = [item.index for item in order(POOL, 60, 5)]
    for exclude in (keys, mask):
        assert orders.allowed(POOL, exclude) == 55
        for n in (1, 20, 55):
            chosen = order(POOL, n, 5, exclude)
            assert [item.index for item in chosen] == [i for i in everything if i not in out][:n]
            assert {item.probability for item in chosen} == {n / 55}
        with pytest.raises(UserError, match=r"cannot draw 56 of its 55 records \(besides 5 excl"):
            order(POOL, 56, 5, exclude)
    assert order(POOL, 20, 5, set()) == order(POOL, 20, 5, np.zeros(60, bool)) == order(POOL, 20, 5)
    with pytest.raises(UserError, match=r"cannot draw 1 of its 0 records .*exclude fewer"):
        order(POOL, 1, 5, np.ones(60, bool))
    with pytest.raises(ValueError, match="one bool for each of the 60"):
        order(POOL, 1, 5, np.ones(59, bool))


def test_every_other_record_is_drawn_as_often():
    times, seeds = np.zeros(60), 600
    mask = np.arange(60) < 20
    for seed in range(seeds):
        times[[item.index for item in orders.random(POOL, 10, seed, mask)]] += 1
    assert times[:20].sum() == 0
    error = math.sqrt(seeds * 0.25 * 0.75)
    assert np.abs(times[20:] - seeds / 4).max() < 5 * error
