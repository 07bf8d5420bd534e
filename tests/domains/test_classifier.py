"""A classifier as it is saved and loaded, and what is said of a damaged one."""

import json

import numpy as np
import pytest

from clipdg_jax.domains import classifier
from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError
from tests.domains import records, small_datasets

META, STATE = classifier.META, classifier.STATE


@pytest.fixture
def saved(tmp_path):
    made = small_datasets.saved(tmp_path / "c", labels={"records": 60})
    return made, tmp_path / "c"


def test_a_loaded_classifier_is_the_saved_one(saved):
    made, path = saved
    loaded = classifier.load(path, None)
    seen = records.of([*small_datasets.CAPTIONS, "anything", ""])
    np.testing.assert_array_equal(loaded.method.score(seen), made.method.score(seen))
    np.testing.assert_array_equal(loaded.decide(seen), made.decide(seen))
    assert loaded.decide(seen).tolist()[:3] == [0, 1, 2]
    assert loaded.calibration.to_json() == made.calibration.to_json()
    assert loaded.provenance == {"labels": {"records": 60}}
    assert loaded.name == "keywords"
    assert json.loads((path / META).read_text())["describe"] == made.method.describe()


def test_it_is_saved_when_its_description_is(saved):
    _, path = saved
    assert classifier.is_saved(path)
    (path / META).unlink()
    assert not classifier.is_saved(path)


def _flip(path):
    content = bytearray((path / STATE).read_bytes())
    content[-1] ^= 1
    (path / STATE).write_bytes(content)


def _edit(path, **fields):
    value = json.loads((path / META).read_text()) | fields
    (path / META).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: (path / META).unlink(), "not a saved classifier"),
        (lambda path: (path / META).write_text("{"), "classifier.json: is damaged"),
        (lambda path: (path / META).write_text("[]"), "classifier.json: is damaged"),
        (lambda path: (path / META).write_bytes(b"\xff"), "classifier.json: is damaged"),
        (lambda path: _edit(path, calibration=None), "classifier.json: is damaged"),
        (lambda path: _edit(path, calibration={"deciders": []}), "classifier.json: is damaged"),
        (lambda path: _edit(path, provenance=None), "classifier.json: is damaged"),
        (lambda path: _edit(path, format=99), "has format 99"),
        (lambda path: _edit(path, method="vibes"), "'vibes' is unknown"),
        (lambda path: (path / STATE).unlink(), "state.safetensors: is not what was saved"),
        (_flip, "state.safetensors: is not what was saved"),
    ],
)
def test_a_damaged_one_is_told_in_one_line(saved, damage, named):
    _, path = saved
    damage(path)
    with pytest.raises(UserError) as refused:
        classifier.load(path, None)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_is_no_classifier(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a saved classifier"):
        classifier.load(tmp_path / "file", None)


def test_a_state_comes_back_as_it_was(tmp_path):
    arrays = {
        "scalar": np.float64(3.5),
        "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.float32)[::3],
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
    }
    meta = {"nested": {"words": ["ä", 'a "quote"']}, "none": None}
    classifier.write_state(tmp_path, method.State(arrays, meta))
    found = classifier.read_state(tmp_path)
    assert found.meta == meta
    assert found.arrays.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype, name
        assert found.arrays[name].shape == value.shape, name
        np.testing.assert_array_equal(found.arrays[name], value)
