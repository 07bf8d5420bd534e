"""Test sets in the folders that they are distributed as: right classes, labels and images."""

import io
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clipdg_jax.data import folders, imagenet, images, resolve, shards
from clipdg_jax.errors import UserError

TENCH, GOLDFISH, SHARK = imagenet.wordnet_ids()[:3]


def put(path, seed=0, size=(12, 10), kind="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return pixels


def labels(source):
    return {source.record(i).key: source.record(i).label for i in range(len(source))}


def test_the_classes_of_imagenet_are_the_packages():
    ids, names = imagenet.wordnet_ids(), imagenet.names()
    assert len(ids) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert [names[ids[i]] for i in (0, 1, 2, 999)] == [
        "tench",
        "goldfish",
        "great white shark",
        "toilet paper",
    ]
    # OpenAI gave two names twice: they stay two classes each.
    twice = sorted(name for name in set(names.values()) if list(names.values()).count(name) > 1)
    assert twice == ["missile", "sunglasses"]
    assert [i for i in range(1000) if names[ids[i]] == "missile"] == [657, 744]
    assert [i for i in range(1000) if names[ids[i]] == "sunglasses"] == [836, 837]
    # "crane" and "maillot", which WordNet has twice, OpenAI told apart.
    assert [names[ids[i]] for i in (134, 517)] == ["crane bird", "construction crane"]
    templates = imagenet.templates()
    assert len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


def test_wordnet_folders_are_numbered_as_imagenet(tmp_path):
    put(tmp_path / "imagenet-r" / SHARK / "art_0.jpg", 1)
    put(tmp_path / "imagenet-r" / TENCH / "sketch_1.jpg", 2)
    (tmp_path / "imagenet-r" / "README.txt").write_text("x")
    source = resolve.resolve("folder:imagenet:imagenet-r", tmp_path)
    assert source.classes == imagenet.wordnet_ids()
    assert labels(source) == {f"{TENCH}/sketch_1.jpg": 0, f"{SHARK}/art_0.jpg": 2}
    assert source.record(0).image == (tmp_path / "imagenet-r" / TENCH / "sketch_1.jpg").read_bytes()
    again = pickle.loads(pickle.dumps(source))
    assert again.record(1) == source.record(1)
    assert again.fingerprint == source.fingerprint
    put(tmp_path / "imagenet-r" / TENCH / "more.jpg", 3)
    assert resolve.resolve("folder:imagenet:imagenet-r", tmp_path).fingerprint != again.fingerprint
    (tmp_path / "imagenet-r" / TENCH / "sketch_1.jpg").unlink()
    with pytest.raises(shards.RecordError, match=r"sketch_1\.jpg"):
        again.record(0)


def test_a_folder_with_a_class_too_many_is_named(tmp_path):
    put(tmp_path / "r" / TENCH / "a.jpg")
    put(tmp_path / "r" / "n99999999" / "a.jpg")
    with pytest.raises(UserError, match="folder 'n99999999' is none of ImageNet's 1000 classes"):
        resolve.resolve("folder:imagenet:r", tmp_path)
    put(tmp_path / "v2" / "1000" / "a.jpg")
    with pytest.raises(UserError, match="folder '1000' is none"):
        resolve.resolve("folder:numbered:v2", tmp_path)


def test_imagenetv2_is_numbered_by_its_folders(tmp_path):
    for name in ("0", "10", "9", "999"):
        put(tmp_path / "v2" / name / "a.jpeg")
    source = resolve.resolve("folder:numbered:v2", tmp_path)
    assert labels(source) == {"0/a.jpeg": 0, "10/a.jpeg": 10, "9/a.jpeg": 9, "999/a.jpeg": 999}


def test_flat_validation_images_take_labels_from_the_development_kit(tmp_path):
    for i in (1, 2, 3):
        put(tmp_path / "imagenet" / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", i)
    kit = tmp_path / "imagenet" / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    # The kit's numbers are not the usual order, and its table goes on to inner nodes.
    rows = [(1, SHARK), (2, TENCH), (3, GOLDFISH), (1001, "n00001740")]
    table = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    scipy.io.savemat(kit / "meta.mat", {"synsets": table})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    source = resolve.resolve("folder:imagenet:imagenet/val", tmp_path)
    assert [source.record(i).label for i in range(3)] == [0, 2, 0]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    with pytest.raises(UserError, match="holds 3 validation images, and .* names 2"):
        resolve.resolve("folder:imagenet:imagenet/val", tmp_path)
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match="unpack ILSVRC2012_devkit_t12"):
        resolve.resolve("folder:imagenet:imagenet/val", tmp_path)


def published():
    """ObjectNet's objects that ImageNet has too -> the places of their classes there.

    The table of the ObjectNet challenge (objectnet.dev; Barbu et al. 2019): a line each for an
    object's number there, its name, and the classes, by their places, that count as it.
    """
    path = pathlib.Path(__file__).parent / "fixtures" / "objectnet.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {name: tuple(map(int, places.split())) for _, name, places in rows}


PUBLISHED = published()


def folder_of(name):
    return re.sub(r"\W+", "_", name.lower())


def objectnet(root):
    """ObjectNet's layout with the objects of PUBLISHED, and one that ImageNet has not."""
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    places = [place for group in PUBLISHED.values() for place in group]
    # The challenge's order, here one of its own: line k of the labels is the class places[k].
    names = [f"name {place}, other name" for place in places]
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(names) + "\n")
    number = {str(place): k for k, place in enumerate(places)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(number))
    objects = {
        name: "; ".join(f"name {place}, other name" for place in reversed(group))
        for name, group in PUBLISHED.items()
    }
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(objects))
    folder = {folder_of(name): name for name in (*PUBLISHED, "Squeegee")}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(folder))
    pixels = {}
    for i, name in enumerate(folder):
        pixels[name] = put(root / "images" / name / "1.png", i, (15, 13), "PNG")
    return pixels


def test_objectnets_mapping_classes_and_border(tmp_path):
    pixels = objectnet(tmp_path / "objectnet-1.0")
    source = resolve.resolve("folder:objectnet:objectnet-1.0", tmp_path)
    ids = imagenet.wordnet_ids()
    found = {}
    for name in source.classes:
        places = tuple(ids.index(identity) for identity in re.findall(r"n\d{8}", name))
        found[name.rpartition(" (")[0]] = places
    assert found == PUBLISHED
    assert (len(found), sum(map(len, found.values()))) == (113, 125)
    assert len(source) == len(PUBLISHED)  # the squeegee is left out
    for i in range(len(source)):
        record = source.record(i)
        folder = record.key.split("/")[1]
        assert folder_of(source.classes[record.label].rpartition(" (")[0]) == folder
        np.testing.assert_array_equal(images.decode(record.image), pixels[folder][2:-2, 2:-2])
        assert Image.open(io.BytesIO(record.image)).format == "PNG"
    put(tmp_path / "objectnet-1.0" / "images" / "gadget" / "1.png", kind="PNG")
    with pytest.raises(UserError, match="folder 'gadget' is none of ObjectNet's objects"):
        resolve.resolve("folder:objectnet:objectnet-1.0", tmp_path)
    (tmp_path / "objectnet-1.0" / "mappings" / "folder_to_objectnet_label.json").unlink()
    with pytest.raises(UserError, match=r"folder_to_objectnet_label\.json: cannot be read"):
        resolve.resolve("folder:objectnet:objectnet-1.0", tmp_path)


def test_domainnets_test_list_chooses_and_labels(tmp_path):
    root = tmp_path / "domainnet"
    for name in ("aircraft_carrier", "zebra"):
        for i in range(3):
            put(root / "clipart" / name / f"{i}.jpg", i)
    whole = resolve.resolve("folder:domainnet:domainnet/clipart", tmp_path)
    assert (len(whole), whole.classes) == (6, ("aircraft_carrier", "zebra"))
    lines = ["clipart/aircraft_carrier/1.jpg 0", "clipart/zebra/0.jpg 344"]
    (root / "clipart_test.txt").write_text("\n".join(lines) + "\n")
    source = resolve.resolve("folder:domainnet:domainnet/clipart", tmp_path)
    assert source.classes == ("aircraft_carrier", "zebra")
    assert labels(source) == {"aircraft_carrier/1.jpg": 0, "zebra/0.jpg": 1}
    put(root / "clipart" / "zzz" / "0.jpg")
    with pytest.raises(UserError, match="folder 'zzz' is no class of"):
        resolve.resolve("folder:domainnet:domainnet/clipart", tmp_path)
    (root / "clipart_test.txt").write_text("\n".join([*lines, "clipart/zebra/1.jpg 0"]))
    with pytest.raises(UserError, match="label 0 is both aircraft_carrier and zebra"):
        resolve.resolve("folder:domainnet:domainnet/clipart", tmp_path)


def test_names_of_folders_that_are_not_there(tmp_path):
    for name in ("folder:imagenet", "folder:other:x", "folder:imagenet:x"):
        with pytest.raises(UserError, match=f"^{name}: "):
            resolve.resolve(name, tmp_path)
        assert not resolve.is_there(name, tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        resolve.resolve("folder:classes:x", tmp_path)
    assert set(folders.LAYOUTS) == {"classes", "imagenet", "numbered", "objectnet", "domainnet"}
