"""Names become data, or one line that says how to make the data."""

import io
import itertools
import os
import pickle

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from clipdg_jax.data import dataset, engine, resolve, schema, tars, writing
from clipdg_jax.errors import UserError


def make(i):
    return schema.Record(f"x/{i}", b"image", f"number {i}")


def build(path):
    return writing.write_dataset(path, engine.index_shards(5, 5), engine.Each(make), config={})


def test_datasets_are_found_below_the_root_or_by_path(tmp_path, monkeypatch):
    build(tmp_path / "data" / "group" / "numbers")
    for name in ("group/numbers", str(tmp_path / "data" / "group" / "numbers")):
        found = resolve.resolve(name, tmp_path / "data")
        assert isinstance(found, dataset.Dataset)
        assert found.record(3).caption == "number 3"
    monkeypatch.chdir(tmp_path)
    assert len(resolve.resolve("data/group/numbers", "elsewhere")) == 5
    assert len(resolve.resolve("group/numbers", "data")) == 5


def test_a_missing_dataset_says_how_to_make_it(tmp_path):
    build(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"did you mean 'numbers'\? .*import_webdataset") as error:
        resolve.resolve("nunbers", tmp_path)
    assert f"--out={tmp_path}/nunbers" in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"not a dataset.*import_folder"):
        resolve.resolve("empty", tmp_path)
    with pytest.raises(UserError, match="empty"):
        resolve.resolve("", tmp_path)


def test_tars_are_a_pool_but_not_a_source(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "00000.tar").write_bytes(bytes(1024))
    with pytest.raises(UserError, match=f"import_webdataset --tars={tmp_path}/web"):
        resolve.resolve("web", tmp_path)
    pool = resolve.resolve_pool("web", tmp_path)
    assert isinstance(pool, tars.TarPool)
    assert [shard.name for shard in pool.shards()] == ["00000"]
    build(tmp_path / "numbers")
    shards = resolve.resolve_pool("numbers", tmp_path).shards()
    assert [r.key for shard in shards for r in shard] == [f"x/{i}" for i in range(5)]


def png(i):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (i, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small foreign dataset, its examples and metadata made by TFDS."""
    root = tmp_path_factory.mktemp("tfds")
    directory = root / "coloured" / "1.0.0"
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["dog", "cat"]),
            "file_name": tfds.features.Text(),
            "bbox": tfds.features.BBoxFeature(),
        }
    )
    splits = []
    for split, lengths in {"train": [17, 13], "validation": [7]}.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory,
            dataset_name="coloured",
            split=split,
            filetype_suffix="array_record",
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=1, filename_template=template
            )
        )
        number = iter(range(100))
        for k, length in enumerate(lengths):
            path = template.sharded_filepath(shard_index=k, num_shards=len(lengths))
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for i in itertools.islice(number, length):
                example = {
                    "image": io.BytesIO(png(i)),
                    "label": i % 2,
                    "file_name": f"{i}.png",
                    "bbox": tfds.features.BBox(0.0, 0.0, 0.5, 1.0),
                }
                writer.write(features.serialize_example(features.encode_example(example)))
            writer.close()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="coloured",
            version=tfds.core.Version("1.0.0"),
            data_dir=str(directory),
            module_name="",
        ),
        features=features,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(directory)
    return root


def test_tfds_data_are_records(prepared):
    source = resolve.resolve("tfds:coloured:validation", prepared)
    theirs = tfds.builder_from_directory(str(prepared / "coloured" / "1.0.0"))
    expected = theirs.as_data_source("validation")
    assert len(source) == 7
    assert source.classes == ("dog", "cat")
    assert source.tokenizer is None
    for i in range(7):
        record = pickle.loads(pickle.dumps(source)).record(i)
        assert record.key == expected[i]["file_name"].decode()
        assert record.label == expected[i]["label"]
        assert record.image == png(int(record.key[:-4]))
        assert expected[i]["image"][0, 0, 0] == int(record.key[:-4])
    with pytest.raises(IndexError):
        source.record(7)


def test_tfds_splits_may_be_slices(prepared):
    whole = resolve.resolve("tfds:coloured:train", prepared)
    part = resolve.resolve("tfds:coloured/1.0.0:train[10:20]", prepared)
    assert [part.record(i).key for i in range(len(part))] == [
        whole.record(i).key for i in range(10, 20)
    ]
    assert part.fingerprint != whole.fingerprint


def test_our_own_data_can_be_named_as_tfds_data(tmp_path):
    data = build(tmp_path / "numbers")
    source = resolve.resolve("tfds:numbers:train", tmp_path)
    assert [source.record(i) for i in range(5)] == [data.record(i) for i in range(5)]


def test_missing_tfds_data_name_the_command(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.devnull)
    for name, words in {
        "tfds:imagenet2012:validation": "download_and_prepare",
        "tfds:coloured:test": "no such split; it has train, validation",
        "tfds:coloured": "are named tfds:",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            resolve.resolve(name, prepared)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="at random only"):
        resolve.resolve_pool("tfds:coloured:train", prepared)
