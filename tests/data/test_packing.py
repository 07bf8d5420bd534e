"""Captions in shared rows: none is lost, none meets another, and few slots stay empty."""

import math

import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.data import packing


def _tokens(lengths, columns=77):
    """A caption of random tokens, the largest last, in each row."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(lengths), columns), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = rng.integers(1, 90, length)
        row[length - 1] = 98
    return tokens


def _web_like(count, seed=0):
    words = np.random.default_rng(seed).lognormal(np.log(11.0), 0.7, count)
    return np.clip(2 + np.rint(words), 3, 77).astype(int)


@pytest.mark.parametrize("groups", [1, 4])
def test_every_caption_lies_whole_in_a_row_of_its_group(groups):
    lengths = _web_like(256)
    tokens = _tokens(lengths)
    layout = packing.layout(256, groups, 77, (0.25, 0.5))
    found = packing.pack(tokens, layout)
    assert found["tokens"].shape == found["positions"].shape == (64, 80)
    assert found["ends"].shape == (groups, 256 // groups)
    rows = found["tokens"].reshape(groups, -1)
    positions = found["positions"].reshape(groups, -1)
    used = np.zeros(rows.shape, int)
    captions = tokens.reshape(groups, -1, 77)
    for group, ends in enumerate(found["ends"]):
        for caption, end in zip(captions[group], ends, strict=True):
            length = int(caption.argmax()) + 1
            slots = slice(end + 1 - length, end + 1)
            np.testing.assert_array_equal(rows[group, slots], caption[:length])
            np.testing.assert_array_equal(positions[group, slots], np.arange(length))
            assert slots.start // 80 == end // 80
            used[group, slots] += 1
    assert used.max() == 1
    assert not rows[used == 0].any()
    assert not positions[used == 0].any()


@pytest.mark.parametrize("seed", range(5))
def test_captions_of_web_like_lengths_leave_hardly_a_slot_empty(seed):
    lengths = _web_like(2048, seed)
    *_, rows = packing.assign(lengths, 80)
    assert lengths.sum() / (80 * rows) > 0.99


def test_the_smallest_size_that_suffices_is_taken_and_the_largest_always_does():
    layout = packing.layout(64, 2, 77, (0.25, 0.5))
    assert layout == packing.Layout(2, 32, 80, (8, 16, 32))

    def rows(lengths, agree=lambda rows: rows):
        return len(packing.pack(_tokens(lengths), layout, agree)["tokens"]) // 2

    assert rows([20] * 64) == 8
    assert rows([20] * 63 + [21]) == 16  # One group of the two needs nine rows.
    assert rows([77] * 64) == 32
    assert rows([20] * 64, agree=lambda rows: 17) == 32  # Another process needs more.


def test_a_process_packs_its_own_groups():
    tokens = _tokens(_web_like(64))
    layout = packing.layout(64, 4, 77, (0.3,))
    whole = packing.pack(tokens, layout)
    for half in range(2):
        part = packing.pack(tokens[32 * half :][:32], layout)
        for name, values in part.items():
            np.testing.assert_array_equal(values, np.split(whole[name], 2)[half])


def test_records_without_a_caption_take_a_slot():
    tokens = _tokens([5] * 8)
    tokens[3] = 0
    found = packing.pack(tokens, packing.layout(8, 1, 77, (1 / 8,)))
    assert found["tokens"].shape == (1, 80)
    end = found["ends"][0, 3]
    assert found["tokens"][0, end] == found["positions"][0, end] == 0


def test_no_assignment_is_far_from_the_fewest_rows():
    rng = np.random.default_rng(1)
    for _ in range(200):
        lengths = rng.integers(1, 17, rng.integers(1, 40))
        row, start, rows = packing.assign(lengths, 16)
        assert rows <= 11 / 9 * math.ceil(lengths.sum() / 16) * 1.5 + 1
        assert np.bincount(row, lengths).max() <= 16
        assert (start + lengths <= 16).all()


@pytest.mark.parametrize("rows", [(0.0, 0.5), (0.5, 1.5), (-1,)])
def test_shares_that_are_none_are_refused(rows):
    with pytest.raises(errors.UserError, match=r"data.pack_rows: .* above 0 and at most 1"):
        packing.layout(64, 1, 77, rows)
