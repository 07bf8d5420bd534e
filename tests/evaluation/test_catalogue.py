"""The suites that come with the package, on miniature trees in the data sets' own layouts."""

import jax
import numpy as np
import pytest

from clipdg_jax.data import dataset, imagenet, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import catalogue, predictions, suites, zero_shot
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding
from tests.data.test_folders import PUBLISHED, objectnet, put

IDS = imagenet.wordnet_ids()


@pytest.fixture
def root(tmp_path):
    """All of ImageNet's test sets but -A, as they are distributed: places in the usual order."""
    for place in (0, 7, 657, 744):
        put(tmp_path / "imagenet" / "val" / IDS[place] / f"{place}.JPEG", place)
    for place in (1, 2):
        folder = tmp_path / "imagenetv2-matched-frequency-format-val" / str(place)
        put(folder / "0.jpeg", place)
    for place in (7, 9):
        put(tmp_path / "imagenet-r" / IDS[place] / "art_0.jpg", place)
        put(tmp_path / "imagenet-sketch" / "sketch" / IDS[place] / "s.JPEG", place)
    objectnet(tmp_path / "objectnet-1.0")
    return tmp_path


def test_a_missing_test_set_is_named_or_skipped(root):
    with pytest.raises(UserError, match=r"test_sets\.imagenet_a: is not there; looked for"):
        suites.load(["imagenet"], str(root))
    (suite,) = suites.load(["imagenet"], str(root), missing="skip")
    assert list(suite.skipped) == ["imagenet_a"]
    counts = {one.name: len(one.source) for one in suite.test_sets}
    assert counts == {
        "imagenet_val": 4,
        "imagenet_v2": 2,
        "imagenet_r": 2,
        "imagenet_sketch": 2,
        "objectnet": len(PUBLISHED),
    }
    domains = {one.name: one.domain for one in suite.test_sets}
    assert [name for name, domain in domains.items() if domain == "rendition"] == [
        "imagenet_r",
        "imagenet_sketch",
    ]
    assert all(one.templates == imagenet.templates() for one in suite.test_sets)


def test_names_of_classes_in_prompts(root):
    (suite,) = suites.load(["imagenet"], str(root), missing="skip")
    by_name = {one.name: one for one in suite.test_sets}
    names = by_name["imagenet_val"].prompt_names
    assert names == tuple((imagenet.names()[identity],) for identity in IDS)
    assert names[657] == names[744] == ("missile",)
    objects = by_name["objectnet"]
    of = dict(zip(objects.classes, objects.prompt_names, strict=True))
    chair = next(name for name in of if name.startswith("Chair"))
    assert of[chair] == ("barber chair", "folding chair", "rocking chair")


def test_our_own_dataset_goes_before_the_folder(root, write_dataset):
    write_dataset(root / "imagenet_val", classes=(IDS[0], IDS[1]))
    (suite,) = suites.load(["imagenet"], str(root), missing="skip")
    assert isinstance(suite.test_sets[0].source, dataset.Dataset)
    assert suite.test_sets[0].prompt_names == (("tench",), ("goldfish",))
    write_dataset(root / "imagenet_a", classes=(IDS[0], "n99999999"))
    with pytest.raises(UserError, match="its class n99999999 is none of ImageNet-1k's"):
        suites.load(["imagenet"], str(root))


def test_domainnet(tmp_path):
    for domain in catalogue.SUITES["domainnet"]["test_sets"]:
        for name in ("aircraft_carrier", "zebra"):
            put(tmp_path / "domainnet" / domain / name / "0.jpg")
    (suite,) = suites.load(["domainnet"], str(tmp_path))
    domains = [one.domain for one in suite.test_sets]
    assert domains == ["natural", *["rendition"] * 4, "ambiguous"]
    assert suite.test_sets[0].prompt_names == (("aircraft carrier",), ("zebra",))


def test_a_class_with_several_names_scores_with_its_best():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, 6))
    names = rng.normal(size=(7, 6))
    owner = np.array([0, 0, 1, 2, 2, 2, 3])
    evaluated = np.array([True, False, True, True])
    labels = rng.choice([0, 2, 3], 50)
    found = predictions.score(images, names, labels, evaluated, scale=2.0, owner=owner)
    logits = 2 * images @ names.T
    per_class = np.stack([logits[:, owner == c].max(axis=1) for c in (0, 2, 3)], axis=1)
    np.testing.assert_array_equal(found[0], np.array([0, 2, 3])[per_class.argmax(axis=1)])
    shares = np.exp(per_class) / np.exp(per_class).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[1], shares.max(axis=1), rtol=1e-5)


def test_evaluation_of_the_miniature_suite(root):
    """Masks and counts come from the data: each set is a task over the classes that occur."""
    (suite,) = suites.load(["imagenet"], str(root), missing="skip")
    few = tuple(
        suites.TestSet(one.name, one.source, one.domain, ("a {}.",), one.classnames)
        for one in suite.test_sets
        if one.name in ("imagenet_r", "objectnet")
    )
    tower = {"width": 16, "layers": 1, "heads": 2}
    config = config_lib.from_config(
        {
            "name": "tiny-plain",
            "embed_dim": 8,
            "vision": {**tower, "image_size": 16, "patch_size": 8},
            "text": {**tower, "vocab_size": 600},
        }
    )
    model = model_lib.Model(config)
    evaluator = zero_shot.Evaluator(
        model,
        tokenizer.get_tokenizer(600),
        [suites.Suite("imagenet", few)],
        sharding.make_mesh(1, 1, jax.devices()[:1]),
        batch_size=128,
    )
    answers = evaluator.predict(model.init(jax.random.key(0)))["imagenet"]
    r, objects = answers["imagenet_r"], answers["objectnet"]
    assert r.measures()["classes"] == 2
    assert np.flatnonzero(r.evaluated).tolist() == [7, 9]
    assert set(r.prediction.tolist()) <= {7, 9}
    assert (len(objects.label), objects.measures()["classes"]) == (len(PUBLISHED),) * 2
    named = [objects.classes[label].rpartition(" (")[0] for label in objects.label]
    assert sorted(named) == sorted(PUBLISHED)
