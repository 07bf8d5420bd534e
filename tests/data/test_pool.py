"""Items of pools become records, or drops with a reason, one for one."""

import dataclasses
import pickle

import numpy as np

from clipdg_jax.data import engine, pool, schema, tars, tokenizer, writing


def sample(key, image=b"image", caption="a cat", **meta):
    return tars.TarSample(key, image, caption, meta)


def test_there_is_one_outcome_for_each_item_in_order():
    items = [
        sample("t/0", url="u"),
        sample("t/1", image=None),
        sample("t/2", caption=""),
        sample("t/0", caption="a second time"),
        sample("t/1"),
        sample("t/3", image=b""),
        schema.Record("t/4", b"x", "a dog", label=3, domain="rendition", meta={"a": 1}),
        schema.Record("t/4", b"y", "a dog"),
        schema.Record("t/5", b"y"),
    ]
    expected = [
        schema.Record("t/0", b"image", "a cat", meta={"url": "u"}),
        engine.Drop("no_image"),
        engine.Drop("no_caption"),
        engine.Drop("duplicate_key"),
        engine.Drop("duplicate_key"),
        schema.Record("t/3", b"", "a cat"),  # cannot be decoded: found when it is
        items[6],
        engine.Drop("duplicate_key"),
        engine.Drop("no_caption"),
    ]
    assert list(pool.ToRecords()(iter(items))) == expected
    expected[2], expected[8] = schema.Record("t/2", b"image"), items[8]
    convert = pickle.loads(pickle.dumps(pool.ToRecords(keep_uncaptioned=True)))
    assert list(convert(iter(items))) == expected
    # Keys are remembered for one shard only.
    assert list(convert(iter(items[:1]))) == expected[:1]


def test_what_is_written_gets_its_tokens():
    encoder = tokenizer.get_tokenizer(1024)
    record = schema.Record("t/0", b"x", "a red house", domain="natural", meta={"a": 1})
    outcomes = [
        record,
        engine.Drop("no_image"),
        writing.Routed(record, ("a", "b"), "natural"),
        writing.Routed(record, (), "conflict"),
    ]
    found = list(pool.Tokenise(1024)(iter(outcomes)))
    np.testing.assert_array_equal(found[0].tokens, encoder.encode(["a red house"])[0])
    assert dataclasses.replace(found[0], tokens=None) == record
    assert found[1] is outcomes[1]
    assert (found[2].to, found[2].reason) == (("a", "b"), "natural")
    np.testing.assert_array_equal(found[2].record.tokens, found[0].tokens)
    assert found[3] is outcomes[3]


def test_tokens_of_the_same_tokeniser_are_kept_and_others_are_made_anew():
    encoder = tokenizer.get_tokenizer(1024)
    record = schema.Record("t/0", b"x", "a red house", tokens=np.array([1, 2], np.uint16))
    without = dataclasses.replace(record, tokens=None)
    kept = pool.Tokenise(1024, made_by=encoder.hash)
    assert kept.record(record) is record
    assert kept.record(without).tokens.tolist() == encoder.encode(["a red house"])[0].tolist()
    for other in (pool.Tokenise(1024), pool.Tokenise(1024, made_by="another")):
        assert other.record(record).tokens.tolist() == kept.record(without).tokens.tolist()
