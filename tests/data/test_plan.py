"""Which record is in which row: exact shares, whole epochs, and locality in block mode."""

from fractions import Fraction

import numpy as np
import pytest

from clipdg_jax.data import plan, shuffle

SIZES = (1000, 260)
WEIGHTS = (Fraction(10), Fraction(3))


def make(block=1, window=8, batch_size=32, steps=200):
    orders = [
        shuffle.Order(f"s{i}", size, size, seed=1, subset_seed=0, block=block)
        for i, size in enumerate(SIZES)
    ]
    return plan.Plan(orders, WEIGHTS, batch_size=batch_size, steps=steps, window=window)


@pytest.mark.parametrize(("block", "window"), [(1, 1), (4, 1), (16, 8), (16, 64), (300, 3)])
def test_every_epoch_holds_every_record_once(block, window):
    made = make(block, window)
    rows = [made.rows(step, 0, 32) for step in range(200)]
    group = made.group
    for i, size in enumerate(SIZES):
        drawn = np.concatenate([index[source == i] for source, index in rows])
        # In whole groups of batches the positions are a prefix of the order: every record has been
        # drawn equally often, but for those of the epoch in progress.
        whole = [index[source == i] for source, index in rows[: 200 // group * group]]
        counts = np.bincount(np.concatenate(whole), minlength=size)
        assert set(counts) <= {counts.min(), counts.min() + 1}
        assert len(drawn) == int((np.concatenate([s for s, _ in rows]) == i).sum())


def test_every_slice_of_a_batch_has_the_mixs_shares():
    made = make(batch_size=64)
    for step in range(20):
        source, _ = made.rows(step, 0, 64)
        for process in range(4):
            share = (source[process * 16 : (process + 1) * 16] == 1).sum()
            assert abs(share - 16 * 3 / 13) <= 1.5


@pytest.mark.parametrize("block", [1, 16])
def test_slices_make_up_the_batch(block):
    made = make(block)
    whole = made.rows(7, 0, 32)
    parts = [made.rows(7, start, start + 8) for start in range(0, 32, 8)]
    for column in range(2):
        np.testing.assert_array_equal(
            np.concatenate([part[column] for part in parts]), whole[column]
        )


def test_a_run_that_ends_earlier_has_the_same_batches():
    long, short = make(16, 64, steps=200), make(16, 64, steps=33)
    for step in range(33):
        for a, b in zip(long.rows(step, 0, 32), short.rows(step, 0, 32), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_block_is_spread_over_the_group_in_few_rows():
    block, window, batch = 16, 32, 64  # T = 8 batches, so 2 rows of each per block
    made = make(block, window, batch)
    assert made.group == 8
    rows: dict[int, set[int]] = {}
    steps: dict[int, set[int]] = {}
    for step in range(8):
        source, index = made.rows(step, 0, batch)
        ranks = np.cumsum(source == 0) - 1
        for rank, record in zip(ranks[source == 0], index[source == 0], strict=True):
            rows.setdefault(int(record) // block, set()).add(int(rank))
            steps.setdefault(int(record) // block, set()).add(step)
    assert len(rows) >= 8 * (batch * 10 // 13) // block  # each batch mixes that many blocks
    assert max(len(r) for r in rows.values()) <= 3
    full = [b for b, r in rows.items() if len(r) == 2]
    assert all(len(steps[b]) == 8 for b in full[:10])
