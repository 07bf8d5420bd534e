"""A dataset reads what was written, notices what was changed, and starts fast."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from clipdg_jax.data import dataset, engine, schema, shards, writing
from clipdg_jax.errors import UserError

PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
    b"\x90wS\xde\x00\x00\x00\x0cIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef"
    b"\x00\x00\x00\x00IEND\xaeB`\x82"
)


def make(i):
    if i % 10 == 3:
        return engine.Drop("three")
    tokens = np.array([510, i, 511], np.uint16) if i % 2 else None
    return schema.Record(f"x/{i}", PNG, f"number {i}", tokens, label=i % 3, meta={"i": i})


def write(path, count=100, **options):
    options = {"config": {"a": 1}, "classes": ["a", "b", "c"], "target_shard_bytes": 4000} | options
    return writing.write_dataset(path, engine.index_shards(count, 7), engine.Each(make), **options)


def test_records_come_back_in_order(tmp_path):
    data = write(tmp_path / "numbers")
    expected = [i for i in range(100) if i % 10 != 3]
    assert len(data) == 90
    assert len(data.manifest.shards) > 3
    assert [data.record(i).meta["i"] for i in range(90)] == expected
    shuffled = np.random.default_rng(0).permutation(90)
    assert [data.record(i).key for i in shuffled] == [f"x/{expected[i]}" for i in shuffled]
    assert [r.key for shard in data.shards() for r in shard] == [f"x/{i}" for i in expected]
    for outside in (-1, 90):
        with pytest.raises(IndexError):
            data.record(outside)
    assert pickle.loads(pickle.dumps(data)).record(89).key == "x/99"


def test_the_manifest_keeps_what_the_dataset_is(tmp_path):
    options = {"domain": "natural", "tokenizer": "hash", "parents": [{"name": "p"}]}
    written = write(tmp_path / "numbers", **options)
    data = dataset.open_dataset(tmp_path / "numbers")
    assert data.manifest == written.manifest
    assert (data.name, data.classes, data.domain) == ("numbers", ("a", "b", "c"), "natural")
    assert data.tokenizer == "hash"
    assert data.manifest.seen == 100
    assert data.manifest.dropped == {"three": 10}
    sizes = [os.path.getsize(data.path / s.file) for s in data.manifest.shards]
    assert data.manifest.bytes == sum(sizes)


def test_the_fingerprint_tells_content_from_name(tmp_path):
    first = write(tmp_path / "a" / "numbers")
    again = write(tmp_path / "b" / "other", config={"a": 2})
    fewer = write(tmp_path / "c" / "numbers", count=99)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != fewer.fingerprint


@pytest.mark.parametrize("classes", [["a", "b", "c"], []])
def test_tfds_opens_it(tmp_path, classes):
    import tensorflow_datasets as tfds

    write(tmp_path / "num-bers", split="test", classes=classes)
    builder = tfds.builder_from_directory(str(tmp_path / "num-bers"))
    found = builder.as_data_source("test")
    assert len(found) == 90
    for i in (0, 3, 89):
        ours = dataset.open_dataset(tmp_path / "num-bers").record(i)
        assert found[i]["key"].decode() == ours.key
        assert found[i]["caption"].decode() == ours.caption
        assert found[i]["label"] == ours.label
        assert found[i]["image"].shape == (1, 1, 3)
        np.testing.assert_array_equal(
            found[i]["tokens"], [] if ours.tokens is None else ours.tokens
        )
    if classes:
        assert builder.info.features["label"].names == classes


def test_an_empty_dataset_is_a_dataset(tmp_path):
    data = writing.write_dataset(tmp_path / "none", [], engine.Each(make), config={})
    assert len(data) == 0
    assert [list(shard) for shard in data.shards()] == [[]]


def test_tfds_opens_a_shard_without_records(tmp_path):
    import tensorflow_datasets as tfds

    sizes = []
    for k, count in enumerate((2, 0, 1)):
        writer = shards.ShardWriter(tmp_path / schema.shard_name("some", "train", k, 3))
        for i in range(count):
            writer.write(schema.encode(make(100 * k + i)))
        info = writer.close()
        sizes.append((info.records, info.bytes))
    schema.write_tfds_metadata(tmp_path, "some", {"train": sizes})
    found = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
    assert [found[i]["key"] for i in range(len(found))] == [b"x/0", b"x/1", b"x/200"]


def change(path, function):
    raw = json.loads((path / "manifest.json").read_text())
    function(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d, s: (d / s[1]).unlink(), "00001-of.*missing"),
        (lambda d, s: os.truncate(d / s[2], 1000), "00002-of.*1000 bytes.*truncated"),
        (lambda d, s: (d / s[0].replace("00000-", "00099-")).touch(), "00099-of.*not in manifest"),
        (lambda d, s: (d / "manifest.json").unlink(), "not a dataset.*import_folder"),
        (lambda d, s: (d / "manifest.json").write_text("{"), "manifest.json.*JSON"),
        (lambda d, s: change(d, lambda m: m.update(format=99)), "format 99"),
        (lambda d, s: change(d, lambda m: m.update(records=91)), "records is 91.*90"),
        (lambda d, s: change(d, lambda m: m.update(seen=101)), "seen is 101, not 90.*10"),
        (lambda d, s: change(d, lambda m: m.pop("classes")), "'classes' is missing"),
        (lambda d, s: change(d, lambda m: m["shards"].reverse()), "shard 0 is named"),
        (lambda d, s: change(d, lambda m: m.update(shards=[])), "lists no shards"),
    ],
)
def test_what_does_not_fit_the_manifest_is_named_at_the_start(tmp_path, damage, words):
    data = write(tmp_path / "numbers")
    damage(data.path, [shard.file for shard in data.manifest.shards])
    with pytest.raises(UserError, match=words) as error:
        dataset.open_dataset(data.path)
    assert "\n" not in str(error.value)


def test_a_wrong_count_is_found_when_the_shard_is_first_read(tmp_path):
    data = write(tmp_path / "numbers")

    def move_one(raw):  # sums and sizes still agree
        raw["shards"][0]["records"] += 1
        raw["shards"][1]["records"] -= 1

    change(data.path, move_one)
    opened = dataset.open_dataset(data.path)
    with pytest.raises(UserError, match="00000-of"):
        opened.record(0)


def test_a_damaged_record_is_an_error_of_its_own(tmp_path):
    data = write(tmp_path / "numbers")
    path = data.path / data.manifest.shards[0].file
    content = bytearray(path.read_bytes())
    content[content.find(b"number 5")] ^= 1
    path.write_bytes(content)
    opened = dataset.open_dataset(data.path)
    bad = 4  # 3 was dropped
    with pytest.raises(shards.RecordError):
        opened.record(bad)
    assert opened.record(bad + 1).meta["i"] == 6


_MANY = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from clipdg_jax.data import dataset
start = time.perf_counter()
data = dataset.open_dataset(sys.argv[1])
first = data.record(123_456).key
took = time.perf_counter() - start
for i in range(1500):  # more shards than descriptors, and most of them twice
    data.record(i * 90)
    data.record(i * 91)
print(len(data), took)
"""


def test_ten_thousand_shards_start_in_time_and_fit_a_thousand_descriptors(tmp_path):
    count = 10_000
    one = writing.write_dataset(
        tmp_path / "one", engine.index_shards(50, 50), engine.Each(make), config={}
    )
    info = one.manifest.shards[0]
    per_shard = info.records
    many = tmp_path / "many"
    many.mkdir()
    listed = []
    for i in range(count):
        name = schema.shard_name("many", "train", i, count)
        os.link(one.path / info.file, many / name)
        listed.append(shards.ShardInfo(name, info.records, info.bytes, f"{i:064x}"))
    dataset.Manifest("many", "train", tuple(listed), seen=per_shard * count).save(many)
    result = subprocess.run(
        [sys.executable, "-c", _MANY, str(many)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    records, took = result.stdout.split()
    assert int(records) == per_shard * count
    assert float(took) < 5
