"""Shards appear whole or not at all, and damage is found where it is."""

import concurrent.futures
import hashlib
import os
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from clipdg_jax.data import shards
from clipdg_jax.errors import UserError


def payloads(count):
    return [np.random.default_rng(i).bytes(200 + i) for i in range(count)]


def write(path, data):
    writer = shards.ShardWriter(path)
    for one in data:
        writer.write(one)
    return writer.close()


def test_a_written_shard_is_what_its_info_says(tmp_path):
    data = payloads(100)
    path = tmp_path / "a.array_record"
    info = write(path, data)
    content = path.read_bytes()
    assert info == shards.ShardInfo(
        "a.array_record", 100, len(content), hashlib.sha256(content).hexdigest()
    )
    assert ArrayRecordReader(str(path)).read_all() == data
    assert os.listdir(tmp_path) == ["a.array_record"]


def test_nothing_is_visible_before_close_or_after_discard(tmp_path):
    writer = shards.ShardWriter(tmp_path / "a")
    writer.write(b"abc")
    assert not (tmp_path / "a").exists()
    writer.discard()
    assert os.listdir(tmp_path) == []


def test_equal_records_give_equal_bytes(tmp_path):
    assert write(tmp_path / "a", payloads(50)).sha256 == write(tmp_path / "b", payloads(50)).sha256


def test_many_threads_read_many_shards_through_few_open_files(tmp_path, monkeypatch):
    cache = shards._ReaderCache(limit=3)
    monkeypatch.setattr(shards, "_CACHE", cache)
    data = payloads(40)
    readers = []
    for k in range(10):
        path = tmp_path / str(k)
        readers.append(shards.ShardReader(path, write(path, [bytes([k]) + d for d in data])))

    def read(number):
        k, i = number * 7 % 10, number * 13 % 40
        return readers[k].read(i) == bytes([k]) + data[i]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))
    assert len(cache._readers) <= 3


def test_a_flipped_bit_costs_its_record_only(tmp_path):
    path = tmp_path / "a"
    data = [bytes([i]) * 500 for i in range(150)]
    info = write(path, data)
    content = bytearray(path.read_bytes())
    content[content.find(data[77]) + 100] ^= 1
    path.write_bytes(content)
    reader = shards.ShardReader(path, info)
    with pytest.raises(shards.RecordError, match="record 77"):
        reader.read(77)
    assert reader.read(76) == data[76]
    found = list(reader.read_all())
    assert [i for i, r in enumerate(found) if isinstance(r, shards.RecordError)] == [77]
    assert found[:77] + found[78:] == data[:77] + data[78:]


@pytest.mark.parametrize("damage", ["missing", "truncated", "unclosed", "foreign", "count"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    path = tmp_path / "a.array_record"
    info = write(path, payloads(30))
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        path.write_bytes(b"hello" * 20_000)
    elif damage == "unclosed":
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        writer.write(b"abc")
    else:
        write(path, payloads(29))
    reader = pickle.loads(pickle.dumps(shards.ShardReader(path, info)))
    with pytest.raises(UserError, match=r"a\.array_record"):
        reader.read(0)
    with pytest.raises(UserError, match=r"a\.array_record"):
        next(reader.read_all())


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        shards.ShardWriter(tmp_path / "no" / "a")
