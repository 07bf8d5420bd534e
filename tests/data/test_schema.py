"""Records survive the disk, and TFDS reads the bytes that we write by hand."""

import dataclasses
import json

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_generated_pb2

from clipdg_jax.data import schema


def a_record(**changes):
    record = schema.Record(
        key="00000/000000012",
        image=b"\xff\xd8 not really a JPEG \x00",
        caption="ein Hund – 犬 🐕",
        tokens=np.array([49406, 320, 65535, 0, 49407], np.uint16),
        label=3,
        domain="rendition",
        meta={"url": "http://example.org/a?b=ü", "similarity": 0.3125, "nested": {"a": [1, None]}},
    )
    return dataclasses.replace(record, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"tokens": None}, {"caption": "", "label": -1, "domain": "", "meta": {}}]
)
def test_a_record_survives_the_round_trip(changes):
    record = a_record(**changes)
    found = schema.decode(schema.encode(record))
    if record.tokens is None:
        assert found.tokens is None
    else:
        assert found.tokens.dtype == np.uint16
        np.testing.assert_array_equal(found.tokens, record.tokens)
    without = {"tokens": None}
    assert dataclasses.replace(found, **without) == dataclasses.replace(record, **without)


def test_the_bytes_are_a_tf_example_and_do_not_depend_on_the_order_of_meta():
    data = schema.encode(a_record())
    feature = tf_example_generated_pb2.Example.FromString(data).features.feature
    assert feature["image"].bytes_list.value[0] == a_record().image
    assert list(feature["tokens"].int64_list.value) == [49406, 320, 65535, 0, 49407]
    assert list(feature["label"].int64_list.value) == [3]
    assert json.loads(feature["meta"].bytes_list.value[0]) == a_record().meta
    turned = dict(reversed(a_record().meta.items()))
    assert schema.encode(a_record(meta=turned)) == data


def test_a_foreign_example_can_be_read_field_by_field():
    example = tf_example_generated_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(b"abc")
    example.features.feature["box"].float_list.value.extend([0.5, 0.25])
    example.features.feature["none"].SetInParent()
    found = schema.read_features(example.SerializeToString())
    assert found == {"image": [b"abc"], "box": [0.5, 0.25], "none": []}


def test_text_that_has_no_utf8_form_is_replaced_not_fatal():
    assert schema.decode(schema.encode(a_record(caption="a\ud800b"))).caption == "a?b"


@pytest.mark.parametrize("data", [b"", b"\x00\x01\x02", schema.encode(a_record())[:-20]])
def test_other_bytes_are_a_value_error(data):
    with pytest.raises(ValueError, match="not a clipdg record"):
        schema.decode(data)


def test_an_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="sketch"):
        schema.encode(a_record(domain="sketch"))


def test_tfds_metadata_equals_what_tfds_itself_writes(tmp_path):
    import tensorflow_datasets as tfds

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    classes = ["guitar", "art work"]
    schema.write_tfds_metadata(ours, "pool", {"train": [(3, 70_000), (0, 152)]}, classes)

    f = tfds.features
    features = f.FeaturesDict(
        {
            "key": f.Text(),
            "image": f.Image(shape=(None, None, 3)),
            "caption": f.Text(),
            "tokens": f.Tensor(shape=(None,), dtype=np.uint16),
            "label": f.ClassLabel(names=classes),
            "domain": f.Text(),
            "meta": f.Text(),
        }
    )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="pool", version=tfds.core.Version("1.0.0"), data_dir=str(theirs), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=theirs, dataset_name="pool", split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[3, 0], num_bytes=70_152, filename_template=template
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(theirs)
    for name in ("dataset_info.json", "features.json"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
    labels = "label.labels.txt"
    assert (ours / labels).read_text().split("\n") == (theirs / labels).read_text().split("\n")


def test_shard_names_are_those_that_tfds_looks_for():
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir="/d", dataset_name="pool", split="train", filetype_suffix="array_record"
    )
    expected = template.sharded_filepath(shard_index=7, num_shards=12).name
    assert schema.shard_name("pool", "train", 7, 12) == expected
