"""The tokeniser against open_clip's ids, and the properties of its small vocabularies."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.data import tokenizer

# Written by fixtures/make_tokenizer_fixture.py with open_clip's SimpleTokenizer.
REFERENCE = json.loads((pathlib.Path(__file__).parent / "fixtures/tokenizer.json").read_text())


def test_ids_equal_open_clips_on_awkward_captions():
    tokens = tokenizer.get_tokenizer()
    encoded = tokens.encode([caption for caption, _ in REFERENCE])
    wrong = [
        (caption, ids.tolist(), expected)
        for ids, (caption, expected) in zip(encoded, REFERENCE, strict=True)
        if ids.tolist() != expected
    ]
    assert len(REFERENCE) > 250
    assert not wrong


def test_words_of_ascii_one_by_one_are_the_whole_text():
    tokens = tokenizer.get_tokenizer()
    rng = np.random.default_rng(0)
    pieces = [
        "'s",
        "'ll",
        "'",
        "s",
        "don't",
        "it's",
        "42",
        "...",
        "!'re",
        "a-b",
        " ",
        "\x00",
        "\x7f",
    ]
    for _ in range(2000):
        text = "".join(rng.choice(pieces, rng.integers(1, 9)))
        if rng.integers(2):
            text += bytes(rng.integers(0, 128, 12, np.uint8)).decode()
        whole = tokens._bpe.encode(tokenizer.clean(text), add_special_tokens=False).ids
        assert tokens.encode([text])[0][1:-1].tolist() == whole, text


def test_call_pads_with_zeros_and_cuts_with_eot_last():
    tokens = tokenizer.get_tokenizer()
    rows = tokens(["a photo", "a photo of a dog on a beach"], context_length=6)
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [49406, 320, 1125, 49407, 0, 0]
    assert rows[1].tolist() == [49406, 320, 1125, 539, 320, 49407]


def test_stored_tokens_are_cut_like_fresh_ones():
    tokens = tokenizer.get_tokenizer()
    caption = "one two three four five six seven"
    (stored,) = tokens.encode([caption])
    for length in (3, 9, 77):
        row = tokenizer.fit_length(stored, length, tokens.eot)
        np.testing.assert_array_equal(row, tokens([caption], length)[0])


def test_a_small_vocabulary_keeps_the_ids_of_the_merges_it_has():
    full, small = tokenizer.get_tokenizer(), tokenizer.get_tokenizer(4096)
    assert (small.sot, small.eot) == (4094, 4095)
    caption = "the photo of a cat in the garden"
    big = full.encode([caption])[0][1:-1]
    kept = small.encode([caption])[0][1:-1]
    assert kept.max() < small.sot
    # Every word whose id the small vocabulary has is one token there too, with the same id.
    assert [t for t in big if t < 4094] == [t for t in kept if t in set(big)]
    assert len({full.hash, small.hash, tokenizer.get_tokenizer(4097).hash}) == 3


def test_bytes_alone_are_enough_for_any_text():
    smallest = tokenizer.get_tokenizer(514)
    (ids,) = smallest.encode(["naïve 猫"])
    # 'n a ï(2 bytes) v e</w>' and three bytes of one character.
    assert len(ids) == 2 + 6 + 3
    assert ids[-1] == 513
    assert ids[1:-1].max() < 512


@pytest.mark.parametrize("size", [0, 513, 49409])
def test_an_impossible_vocabulary_size_is_refused(size):
    with pytest.raises(errors.UserError, match=f"vocab_size: {size}"):
        tokenizer.get_tokenizer(size)


def test_pickling_keeps_the_function():
    tokens = tokenizer.get_tokenizer(1000)
    again = pickle.loads(pickle.dumps(tokens))
    assert again.hash == tokens.hash
    np.testing.assert_array_equal(again(["a cat"]), tokens(["a cat"]))
