"""Folders become training and test datasets that share classes and prompts."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import dataset, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites
from tools import import_folder


def picture(seed, kind):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path):
    """Two domains, three classes; one class is missing in the second domain."""
    root = tmp_path / "tree"
    for d, domain in enumerate(("photo", "oil_painting")):
        for c, name in enumerate(("dog", "alarm_clock", "zebra")):
            if (d, c) == (1, 2):
                continue
            (root / domain / name).mkdir(parents=True)
            for i in range(20):
                suffix, kind = ((".jpg", "JPEG"), (".PNG", "PNG"))[i % 2]
                path = root / domain / name / f"{i:03d}{suffix}"
                path.write_bytes(picture(1000 * d + 100 * c + i, kind))
    (root / "photo" / "dog" / "notes.txt").write_text("x")
    (root / "photo" / "dog" / ".DS_Store").write_text("x")
    (root / "photo" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "photo" / "zebra" / "more").mkdir()
    (root / "photo" / "zebra" / "more" / "inner.jpg").write_bytes(picture(7, "JPEG"))
    return root


DOMAINS = {"photo": "natural", "oil_painting": "rendition"}


def run(tree, out, **options):
    return import_folder.import_folder(
        {name: tree / name for name in DOMAINS}, DOMAINS, out, vocab_size=1024, **options
    )


def records(data):
    return [data.record(i) for i in range(len(data))]


def test_every_file_is_a_record_or_counted(tree, tmp_path):
    photo, painting = run(tree, tmp_path / "out")
    assert photo.path == tmp_path / "out" / "photo"
    assert photo.manifest.seen == 63
    assert photo.manifest.dropped == {"corrupt_image": 1, "not_an_image": 1}
    assert (len(photo), len(painting)) == (61, 40)
    assert photo.classes == painting.classes == ("alarm clock", "dog", "zebra")
    assert (photo.domain, painting.domain) == ("natural", "rendition")
    assert not (tmp_path / "out" / "suite.json").exists()
    for data in (photo, painting):
        for record in records(data):
            domain, name, *_, file = record.key.split("/")
            assert record.image == (tree / record.key).read_bytes(), file
            assert photo.classes[record.label] == name.replace("_", " ")
            assert record.domain == DOMAINS[domain]


def test_captions_come_from_the_templates_and_are_tokenised(tree, tmp_path):
    _, painting = run(tree, tmp_path / "out", templates=("{style} of a {}", "the {}!"))
    captions = {record.caption for record in records(painting)}
    names = ("dog", "alarm clock")
    assert captions == {f"an oil painting of a {n}" for n in names} | {f"the {n}!" for n in names}
    counts = [sum(r.caption.endswith("!") for r in records(painting)), len(painting)]
    assert 0.2 < counts[0] / counts[1] < 0.8
    tokens = tokenizer.get_tokenizer(1024)
    assert painting.tokenizer == tokens.hash
    for record in records(painting)[:5]:
        np.testing.assert_array_equal(record.tokens, tokens.encode([record.caption])[0])


def test_held_out_images_are_a_stable_disjoint_share(tree, tmp_path):
    whole = run(tree, tmp_path / "whole")
    half = run(tree, tmp_path / "half", holdout=0.5)
    assert [d.path.relative_to(tmp_path / "half").as_posix() for d in half] == [
        "photo",
        "oil_painting",
        "test/photo",
        "test/oil_painting",
    ]
    for k in (0, 1):
        train, test = half[k], half[k + 2]
        train_keys = {record.key for record in records(train)}
        test_keys = {record.key for record in records(test)}
        assert not train_keys & test_keys
        assert train_keys | test_keys == {record.key for record in records(whole[k])}
        assert 0.25 < len(test) / len(whole[k]) < 0.75
        assert test.manifest.split == "test"
        assert test.classes == train.classes
    more = run(tree, tmp_path / "more", holdout=0.7)
    assert {r.key for r in records(half[2])} < {r.key for r in records(more[2])}
    other = run(tree, tmp_path / "other", holdout=0.5, seed=1)
    assert {r.key for r in records(half[2])} != {r.key for r in records(other[2])}


def test_the_share_held_out_is_what_was_asked():
    keys = [f"photo/dog/{i:05d}.jpg" for i in range(20_000)]
    share = np.mean([import_folder.held_out(key, 0.2, 0) for key in keys])
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 20_000)
    assert not any(import_folder.held_out(key, 0.0, 0) for key in keys)
    assert all(import_folder.held_out(key, 1.0, 0) for key in keys)


def test_the_suite_opens_and_can_grow(tree, tmp_path):
    out = tmp_path / "data" / "mine"
    for name in DOMAINS:
        import_folder.import_folder({name: tree / name}, DOMAINS, out, holdout=1.0, vocab_size=1024)
    assert not (out / "photo").exists()
    (suite,) = suites.load(["mine"], str(tmp_path / "data"))
    assert suite.name == "mine"
    assert [(t.name, t.domain, len(t.source)) for t in suite.test_sets] == [
        ("photo", "natural", 61),
        ("oil_painting", "rendition", 40),
    ]
    written = json.loads((out / "suite.json").read_text())
    assert "a photo of a {}." in written["templates"]
    assert "an oil painting of a {}." in written["templates"]
    assert len(set(written["templates"])) == len(written["templates"])


def test_class_names_may_be_given(tree, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["clock", "hound", "striped horse"]))
    assert run(tree, tmp_path / "a", classnames=str(names))[0].classes[1] == "hound"
    names.write_text(json.dumps({"zebra": "z", "dog": "d", "alarm_clock": "c"}))
    data = run(tree, tmp_path / "b", classnames=str(names))[0]
    assert data.classes == ("c", "d", "z")
    names.write_text(json.dumps({"zebra": "z", "dog": "d"}))
    with pytest.raises(UserError, match="no name for the folder 'alarm_clock'"):
        run(tree, tmp_path / "c", classnames=str(names))
    names.write_text(json.dumps(["a", "b"]))
    with pytest.raises(UserError, match="names 2 classes; there are 3 folders"):
        run(tree, tmp_path / "c", classnames=str(names))


def test_another_holdout_is_refused_by_name(tree, tmp_path):
    run(tree, tmp_path / "out", holdout=0.5)
    with pytest.raises(UserError, match=r"holdout=0.5, now holdout=0.2"):
        run(tree, tmp_path / "out", holdout=0.2)


def test_folders_without_images_are_an_error(tmp_path):
    (tmp_path / "tree" / "photo" / "dog").mkdir(parents=True)
    (tmp_path / "tree" / "oil_painting").mkdir()
    with pytest.raises(UserError, match="photo"):
        run(tmp_path / "tree", tmp_path / "out")
    with pytest.raises(UserError, match="drawing"):
        import_folder.parse_domains("photo:natural,sketch:drawing")
    assert import_folder.parse_domains("a:natural, b:rendition") == {
        "a": "natural",
        "b": "rendition",
    }


def test_tfds_opens_the_result(tree, tmp_path):
    import tensorflow_datasets as tfds

    run(tree, tmp_path / "out", holdout=0.5)
    builder = tfds.builder_from_directory(str(tmp_path / "out" / "test" / "photo"))
    found = builder.as_data_source("test")
    ours = dataset.open_dataset(tmp_path / "out" / "test" / "photo")
    assert [found[i]["label"] for i in range(len(found))] == [r.label for r in records(ours)]
    assert found[0]["image"].shape == (8, 10, 3)
    assert builder.info.features["label"].names == ["alarm clock", "dog", "zebra"]
