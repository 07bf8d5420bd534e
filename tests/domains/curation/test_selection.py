"""Counting outcomes and drawing controls, against a brute-force look at all rows at once."""

import collections

import numpy as np
import pytest

from clipdg_jax.domains.curation import duplicates, selection
from clipdg_jax.errors import UserError
from tests.domains.curation import small_curation

SIZES = (400, 300, 0, 500)
DROPPED = [(0, 7), (0, 8), (1, 1), (1, 0), (3, 250)]  # (1, 0) has no score.


@pytest.fixture(scope="module")
def shards():
    return small_curation.random_shards(SIZES)


@pytest.fixture(scope="module")
def pool(shards, tmp_path_factory):
    made = small_curation.scored(
        tmp_path_factory.mktemp("pool") / "scores", shards, [d for d in DROPPED if d != (1, 0)]
    )
    rows = [(s, r, shards[s][r - (s == 1)][0] if (s, r) != (1, 0) else "?") for s, r in DROPPED]
    small_curation.drop_list(made.scores / "duplicates.parquet", rows)
    return made


def all_rows(shards):
    """(key, natural, rendition, domain) of everything that is no duplicate."""
    for index, rows in enumerate(shards):
        for row, one in enumerate(rows, index == 1):
            if (index, row) not in DROPPED:
                yield one


def outcome(natural, rendition):
    if natural >= 0.5:
        return 3 if rendition >= 0.5 else 0
    return 1 if rendition >= 0.5 else 2


def test_counts_are_those_of_all_rows(pool, shards):
    selected = selection.select(pool, (), 0)
    expected = collections.Counter((d, outcome(n, r)) for _, n, r, d in all_rows(shards))
    for (domain, number), count in expected.items():
        assert selected.counts[1 + domain, number] == count
    assert selected.counts[:, selection.DUPLICATE].sum() == 4
    assert selected.counts.sum() == sum(SIZES)
    assert selected.seen == sum(SIZES) + 1
    assert selected.unscored == {"corrupt_image": 1}
    for which in range(2):
        values = [one[1 + which] for one in all_rows(shards)]
        wanted, _ = np.histogram(np.float32(values), selection.BINS, (0, 1))
        np.testing.assert_array_equal(selected.histograms[which].sum(axis=0), wanted)
    again = selection.Selection.from_json(selected.to_json())
    assert again.to_json() == selected.to_json()


def drawn_keys(pool, selected, seed=0):
    found = collections.defaultdict(set)
    for index in range(pool.shards):
        scored = pool.shard(index)
        for name, taken in selection.members(scored, (), selected.drawn, seed).items():
            found[name] |= {scored.keys[i] for i in np.flatnonzero(taken)}
    return found


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_controls_are_the_records_of_the_smallest_hashes(pool, shards, seed):
    controls = ("natural", "rendition", "ambiguous")
    selected = selection.select(pool, controls, seed)
    sizes = {name: selection.size_of(selected.counts, name) for name in controls}
    keys = [one[0] for one in all_rows(shards)]
    order = np.argsort(selection.lots(keys, seed))
    found = drawn_keys(pool, selected, seed)
    for name in controls:
        assert found[f"random-{name}"] == {keys[i] for i in order[: sizes[name]]}
    assert sum(sizes.values()) == len(keys)  # Conflicts count as ambiguous.


def test_controls_do_not_depend_on_the_shards_and_are_uniform(shards, tmp_path):
    flat = [one for rows in shards for one in rows]
    whole = small_curation.scored(tmp_path / "whole", [flat])
    parts = small_curation.scored(tmp_path / "parts", [flat[900:], flat[:500], flat[500:900]])
    chosen = [selection.select(pool, ("natural",), 3) for pool in (whole, parts)]
    keys = [drawn_keys(p, s, 3)["random-natural"] for p, s in zip((whole, parts), chosen)]
    assert keys[0] == keys[1]
    # The lot is blind to what an image is: its share of each domain is the pool's.
    natural = np.array([one[3] == 0 for one in flat])
    drawn = np.array([one[0] in keys[0] for one in flat])
    share, n = natural.mean(), drawn.sum()
    assert abs(natural[drawn].mean() - share) < 3.5 * (share * (1 - share) / n) ** 0.5


def test_nothing_is_drawn_for_a_dataset_of_nothing(tmp_path):
    pool = small_curation.scored(tmp_path / "scores", [[("a", 0.9, 0.1, 0), ("b", 0.9, 0.2, 0)]])
    selected = selection.select(pool, ("natural", "rendition"), 0)
    found = drawn_keys(pool, selected)
    assert found == {"random-natural": {"a", "b"}, "random-rendition": set()}


def test_keys_that_cannot_be_told_apart_are_refused(tmp_path):
    rows = [("same", 0.9, 0.1, 0), ("same", 0.1, 0.9, 1), ("same", 0.1, 0.1, 2)]
    pool = small_curation.scored(tmp_path / "scores", [rows])
    with pytest.raises(UserError, match="two records of the pool have the same key"):
        selection.select(pool, ("natural",), 0)


def test_a_drop_list_of_other_records_is_refused(pool, tmp_path):
    path = tmp_path / "duplicates.parquet"
    small_curation.drop_list(path, [(0, 5, "x/1")])
    other = selection.ScoredPool(pool.scores, pool.shards, duplicates.Duplicates(path))
    with pytest.raises(UserError, match=r"row 5 of shard 0 is 'x/1', but 'k/5' in the pool"):
        other.shard(0)


def test_drop_lists_are_opened_with_care(tmp_path):
    path = tmp_path / "duplicates.parquet"
    assert not duplicates.Duplicates.open("", "f00d").of(0)
    with pytest.raises(UserError, match=r"does not exist.*configs/dedup.py"):
        duplicates.Duplicates.open(path, "f00d")
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is no Parquet file that can be read"):
        duplicates.Duplicates.open(path, "f00d")
    small_curation.drop_list(path, [(1, 4, "b"), (1, 2, "a"), (2, 0, "c")], pool="f00d")
    assert dict(duplicates.Duplicates.open(path, "f00d").of(1)) == {2: "a", 4: "b"}
    with pytest.raises(UserError, match="duplicates of another pool"):
        duplicates.Duplicates.open(path, "beef")
