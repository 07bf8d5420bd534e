"""Index maps: bijections, nested subsets, and orders that look random."""

import pickle

import numpy as np
import pytest

from clipdg_jax.data import shuffle


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097])
def test_permutations_are_bijections_with_their_inverse(n):
    for seed in range(20):
        permutation = shuffle.Permutation(n, seed)
        image = permutation(np.arange(n))
        assert sorted(image) == list(range(n))
        np.testing.assert_array_equal(permutation.inverse(image), np.arange(n))


def test_a_permutation_of_billions_inverts():
    permutation = shuffle.Permutation(5_000_000_000, 1)
    positions = np.random.default_rng(0).integers(0, 5_000_000_000, 1000)
    image = permutation(positions)
    assert image.max() > 4_500_000_000
    np.testing.assert_array_equal(permutation.inverse(image), positions)


def test_where_an_element_goes_is_uniform_over_seeds():
    n, seeds = 12, 6000
    table = np.zeros((n, n))
    for seed in range(seeds):
        table[np.arange(n), shuffle.Permutation(n, shuffle.seed_of(seed))(np.arange(n))] += 1
    expected = seeds / n
    chi2 = ((table - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_part():
    moved = shuffle.Permutation(100_000, 3)(np.arange(1000))
    assert abs(np.corrcoef(np.arange(1000), moved)[0, 1]) < 0.12
    assert (np.abs(np.diff(moved)) < 100).mean() < 0.01


def order(size, amount=None, **options):
    options = {"seed": 0, "subset_seed": 0, "block": 1} | options
    return shuffle.Order(options.pop("name", "a"), size, amount or size, **options)


@pytest.mark.parametrize("block", [1, 2, 8, 100, 1000])
@pytest.mark.parametrize(("size", "amount"), [(101, 101), (101, 100), (101, 7), (64, 1)])
def test_every_epoch_holds_the_subset_once(size, amount, block):
    made = order(size, amount, block=block)
    epochs = made.records(np.arange(5 * amount)).reshape(5, amount)
    members = np.sort(order(size, amount).records(np.arange(amount)))
    assert len(np.unique(members)) == amount
    assert (np.sort(epochs, axis=1) == members).all()
    if amount > 50:
        assert len({tuple(epoch) for epoch in epochs}) == 5
    # Any positions, in any order, give the same records.
    some = np.array([3 * amount, 0, 2 * amount - 1])
    np.testing.assert_array_equal(made.records(some), epochs.reshape(-1)[some])


def test_subsets_are_nested_seeded_and_differ_by_source():
    def subset(amount, **options):
        return set(order(1000, amount, **options).records(np.arange(amount)).tolist())

    assert subset(100) < subset(300) < subset(999)
    assert subset(100, seed=5) == subset(100)
    assert len(subset(100) & subset(100, subset_seed=1)) < 30
    assert len(subset(100) & subset(100, name="b")) < 30


def test_epoch_one_of_a_seed_is_not_epoch_zero_of_the_next():
    first, second = order(500, seed=0), order(500, seed=1)
    positions = np.arange(500)
    assert (first.records(positions + 500) == second.records(positions)).mean() < 0.05


def test_blocks_stay_together_and_are_shuffled_within():
    made = order(1000, block=50)
    records = made.records(np.arange(1000)).reshape(20, 50)
    blocks = records // 50
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].tolist() != sorted(blocks[:, 0])
    assert all(row.tolist() != sorted(row) for row in records)
    assert not np.array_equal(blocks[:, 0], made.records(np.arange(1000, 2000))[::50] // 50)


def test_members_of_a_block_are_the_subsets():
    made = order(1000, 400, block=64)
    members = np.concatenate([made.members(block) for block in range(16)])
    np.testing.assert_array_equal(members, np.sort(made.records(np.arange(400))))


def test_pickling_keeps_the_order():
    made = order(1000, 400, block=64)
    made.records(np.arange(10))
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.records(np.arange(900)), made.records(np.arange(900)))
