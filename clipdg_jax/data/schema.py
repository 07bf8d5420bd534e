"""One record, its bytes on disk, and the TFDS metadata that lets others open them.

A record is a serialised `tf.train.Example`. The message class is built here from its (public,
frozen) field numbers, because importing it from TFDS costs half a second in every worker
process. Serialisation is deterministic: equal records have equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from clipdg_jax.data import files

DOMAINS = ("natural", "rendition", "ambiguous")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One captioned image.

    Attributes:
        key: unique name, `<shard>/<member>`.
        image: the encoded file (JPEG, PNG, WebP), exactly as it came.
        caption: the text beside it, or "".
        tokens: uint16 [n <= 77], from SOT to EOT, unpadded; None when not tokenised yet.
        label: class index into the dataset's `classes`, or -1.
        domain: one of `DOMAINS`, or "" when unknown.
        meta: whatever else came with the image; must be JSON-able.
    """

    key: str
    image: bytes
    caption: str = ""
    tokens: np.ndarray | None = None
    label: int = -1
    domain: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _example_class() -> Any:
    """The `tf.train.Example` message, in a private pool so that TensorFlow may load its own."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="clipdg_jax/example.proto", package="clipdg", syntax="proto3"
    )

    def add(message, name, number, kind, repeated=False, type_name=None, oneof=None):
        new = message.field.add(name=name, number=number, type=kind)
        new.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        if type_name:
            new.type_name = type_name
        if oneof is not None:
            new.oneof_index = oneof

    lists = (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    )
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(lists, start=1):
        add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
        lower = name.replace("List", "_list").lower()
        add(feature, lower, number, field.TYPE_MESSAGE, type_name=f".clipdg.{name}", oneof=0)
    file.message_type.append(feature)

    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".clipdg.Feature")
    entries = ".clipdg.Features.FeatureEntry"
    add(features, "feature", 1, field.TYPE_MESSAGE, repeated=True, type_name=entries)
    example = file.message_type.add(name="Example")
    add(example, "features", 1, field.TYPE_MESSAGE, type_name=".clipdg.Features")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("clipdg.Example"))


_Example = _example_class()
# Made once: json.dumps would build an encoder for each record.
_encode_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def encode(record: Record) -> bytes:
    """Serialises a record as a `tf.train.Example`; equal records give equal bytes."""
    if record.domain and record.domain not in DOMAINS:
        raise ValueError(f"domain of {record.key!r} is {record.domain!r}; must be in {DOMAINS}")
    example = _Example()
    feature = example.features.feature
    feature["key"].bytes_list.value.append(record.key.encode())
    feature["image"].bytes_list.value.append(record.image)
    # A lone surrogate (from broken JSON) has no UTF-8 form; it becomes "?".
    feature["caption"].bytes_list.value.append(record.caption.encode(errors="replace"))
    tokens = feature["tokens"].int64_list
    tokens.SetInParent()  # an absent list must still say which kind it is
    if record.tokens is not None:
        tokens.value.extend(record.tokens.tolist())
    feature["label"].int64_list.value.append(record.label)
    feature["domain"].bytes_list.value.append(record.domain.encode())
    feature["meta"].bytes_list.value.append(_encode_json(dict(record.meta)).encode())
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """The inverse of `encode`. Raises ValueError on bytes that are not such a record."""
    try:
        feature = _Example.FromString(data).features.feature
        tokens = feature["tokens"].int64_list.value
        return Record(
            key=feature["key"].bytes_list.value[0].decode(),
            image=feature["image"].bytes_list.value[0],
            caption=feature["caption"].bytes_list.value[0].decode(),
            tokens=np.array(tokens, dtype=np.uint16) if tokens else None,
            label=feature["label"].int64_list.value[0],
            domain=feature["domain"].bytes_list.value[0].decode(),
            meta=json.loads(feature["meta"].bytes_list.value[0]),
        )
    except Exception as error:  # protobuf has its own family of errors
        raise ValueError(f"not a clipdg record: {error}") from error


def read_features(data: bytes) -> dict[str, list]:
    """Any serialised `tf.train.Example` as {feature name: list of values}."""
    found = {}
    for name, feature in _Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """TFDS's file name for shard `index` of `count`."""
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def _features_json(classes: Sequence[str]) -> dict[str, Any]:
    """TFDS's `features.json`; `-1` stands for an open dimension."""
    module = "tensorflow_datasets.core.features"

    def text() -> dict[str, Any]:
        return {"pythonClassName": f"{module}.text_feature.Text", "text": {}}

    def shaped(dtype: str, *dimensions: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": {"dimensions": list(dimensions)}}

    label: dict[str, Any] = {
        "pythonClassName": f"{module}.tensor_feature.Tensor",
        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
    }
    if classes:
        label = {
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(classes))},
        }
    return {
        "pythonClassName": f"{module}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "key": text(),
                "image": {
                    "pythonClassName": f"{module}.image_feature.Image",
                    "image": shaped("uint8", "-1", "-1", "3"),
                },
                "caption": text(),
                "tokens": {
                    "pythonClassName": f"{module}.tensor_feature.Tensor",
                    "tensor": {**shaped("uint16", "-1"), "encoding": "none"},
                },
                "label": label,
                "domain": text(),
                "meta": text(),
            }
        },
    }


def write_tfds_metadata(
    directory: Path,
    name: str,
    splits: Mapping[str, Sequence[tuple[int, int]]],
    classes: Sequence[str] = (),
) -> None:
    """Writes `dataset_info.json`, `features.json` and, with classes, `label.labels.txt`.

    Args:
        directory: the dataset's directory, which holds the shards named by `shard_name`.
        name: the dataset's name as in the shard names.
        splits: per split, (records, bytes) of each shard in order.
        classes: class names in label order; none leaves the label a plain integer.
    """
    info = {
        "fileFormat": "array_record",
        "name": name,
        "version": "1.0.0",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(size for _, size in shards)),
                "shardLengths": [str(records) for records, _ in shards],
            }
            for split, shards in splits.items()
        ],
    }
    files.write_json(directory / "features.json", _features_json(classes))
    if classes:
        files.write_text(directory / "label.labels.txt", "\n".join(classes) + "\n")
    files.write_json(directory / "dataset_info.json", info)
