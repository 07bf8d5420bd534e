import json

import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import prompts, suites

PHOTO = {"dataset": "zoo_photo", "domain": "natural"}
SKETCH = {"dataset": "sketch", "domain": "rendition"}


@pytest.fixture
def root(tmp_path, write_dataset):
    """A data root with a dataset `zoo_photo`, and `sketch` beside the suite's own file."""
    write_dataset(tmp_path / "zoo_photo")
    write_dataset(tmp_path / "zoo" / "sketch", n=4)
    return tmp_path


def write_suite(root, **spec):
    (root / "zoo").mkdir(exist_ok=True)
    (root / "zoo" / "suite.json").write_text(json.dumps(spec))


def load(root, **options):
    return suites.load(["zoo"], str(root), **options)


def test_load_opens_every_test_set(root):
    write_suite(
        root,
        templates=["a drawing of a {}."],
        test_sets={"photo": PHOTO | {"templates": ["{}", "one {}"]}, "sketch": SKETCH},
    )
    (suite,) = load(root)
    assert suite.name == "zoo"
    assert not suite.skipped
    photo, sketch = suite.test_sets
    assert (photo.name, photo.domain, len(photo.source)) == ("photo", "natural", 5)
    assert (sketch.name, sketch.domain, len(sketch.source)) == ("sketch", "rendition", 4)
    assert photo.templates == ("{}", "one {}")
    assert sketch.templates == ("a drawing of a {}.",)
    assert sketch.classes == ("cat", "dog", "owl")


def test_a_suite_without_templates_has_the_simple_ones(root):
    write_suite(root, test_sets={"photo": PHOTO})
    assert load(root)[0].test_sets[0].templates == prompts.SIMPLE


def test_a_missing_test_set_is_an_error_or_skipped_and_named(root):
    write_suite(root, test_sets={"photo": PHOTO, "gone": SKETCH | {"dataset": "nowhere"}})
    with pytest.raises(UserError, match=r"suite.json: test_sets.gone: .*nowhere"):
        load(root)
    (suite,) = load(root, missing="skip")
    assert [test_set.name for test_set in suite.test_sets] == ["photo"]
    assert list(suite.skipped) == ["gone"]
    assert "nowhere" in suite.skipped["gone"]

    write_suite(root, test_sets={"gone": SKETCH | {"dataset": "nowhere"}})
    with pytest.raises(UserError, match="none of its test sets could be opened"):
        load(root, missing="skip")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "'test_sets' must be an object"),
        ({"test_sets": {}}, "at least one test set"),
        ({"test_sets": {"photo": "zoo_photo"}}, "test_sets.photo: must be an object"),
        ({"test_sets": {"photo": {"dataset": "zoo_photo"}}}, "photo.domain: None is none of"),
        ({"test_sets": {"photo": PHOTO | {"domain": "art"}}}, "photo.domain: 'art' is none of"),
        ({"test_sets": {"photo": PHOTO | {"doman": 1}}}, "unknown field 'doman'"),
        ({"test_sets": {"photo": PHOTO}, "sets": 1}, "unknown field 'sets'"),
        ({"test_sets": {"photo": PHOTO}, "templates": "a {}"}, "templates: must be a list"),
        ({"test_sets": {"photo": PHOTO}, "templates": []}, "templates: must be a list"),
        ({"test_sets": {"photo": PHOTO}, "templates": ["a dog"]}, "'a dog' is not a template"),
        ({"test_sets": {"photo": PHOTO | {"templates": [3]}}}, "photo.templates: 3 is not"),
    ],
)
def test_a_wrong_suite_file_names_its_field(root, spec, message):
    write_suite(root, **spec)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "suite.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_test_set_needs_classes(root, write_dataset):
    write_dataset(root / "unlabelled", classes=())
    write_suite(root, test_sets={"photo": PHOTO | {"dataset": "unlabelled"}})
    with pytest.raises(UserError, match="lists no classes"):
        load(root)


def test_unknown_suites_and_repeated_ones_are_refused(root):
    with pytest.raises(UserError, match=r"suite 'zoo': .* does not exist"):
        load(root)
    (root / "zoo" / "suite.json").write_text("{")
    with pytest.raises(UserError, match=r"suite.json: cannot be read"):
        load(root)
    write_suite(root, test_sets={"photo": PHOTO})
    with pytest.raises(UserError, match="'zoo' occurs twice"):
        suites.load(["zoo", "zoo"], str(root))
    with pytest.raises(UserError, match=r"eval\.missing"):
        load(root, missing="ignore")


def test_prompts_are_class_major():
    filled = prompts.fill(["a {}.", "{}!"], ["cat", "dog"])
    assert filled == ["a cat.", "cat!", "a dog.", "dog!"]
