"""Clean test sets: the right decider, classes derived, suites that an evaluation can load."""

import dataclasses
import json

import numpy as np
import pytest

from clipdg_jax.data import dataset, schema, shards
from clipdg_jax.domains import inputs
from clipdg_jax.domains.curation import clean, scoring
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites
from tests.domains import small_datasets
from tests.domains.curation import small_curation

TEMPLATES = ["a photo of a {}", "a drawing of a {}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two test sets, of which image i is of domain i % 3 and class i % 5, in a suite."""
    root = tmp_path_factory.mktemp("world")
    small_curation.pool(root / "test" / "photos", 30, damaged=(6,), split="test")
    small_curation.pool(root / "test" / "drawings", 7, split="test")
    fields = {
        "photos": {"dataset": "../test/photos", "domain": "natural"},
        "drawings": {"dataset": "../test/drawings", "domain": "rendition"},
    }
    (root / "zoo").mkdir()
    told = {"templates": TEMPLATES, "test_sets": fields}
    (root / "zoo" / "suite.json").write_text(json.dumps(told))
    small_datasets.saved(root / "classifier")
    return root


@pytest.fixture(scope="module")
def cleaned(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    saved = scoring.Saved.at(world / "classifier")
    found = clean.resolve_sets("zoo", str(world))
    told = {
        one.name: clean.clean(
            one,
            saved,
            out / "scores" / one.name,
            out,
            batch=4,
            threads=1,
            processes=0,
            target_shard_bytes=1 << 20,
        )
        for one in found
    }
    return out, saved, found, told


def test_a_set_keeps_what_the_decider_of_its_domain_takes(cleaned, world):
    out, saved, _, told = cleaned
    for name, domain in (("photos", 0), ("drawings", 1)):
        source = dataset.open_dataset(world / "test" / name)
        made = dataset.open_dataset(out / "clean" / name)
        records = [source.record(i) for i in range(len(source))]
        loaded = saved.load()
        scores = loaded.method.score(inputs.Inputs(records))[:, domain].astype(float)
        taken = scores >= loaded.calibration.deciders[domain].threshold
        taken[6:7] &= name != "photos"
        assert 0 < taken.sum() < len(records)
        kept = [record.key for record, ok in zip(records, taken) if ok]
        assert [made.record(i).key for i in range(len(made))] == kept
        assert made.classes == source.classes
        labels = np.unique([record.label for record, ok in zip(records, taken) if ok])
        assert told[name]["classes_left"] == [source.classes[label] for label in labels]
        assert told[name]["records"] == len(kept)
        assert told[name]["seen"] == len(kept) + sum(told[name]["dropped"].values())
        assert sum(told[name]["decided"].values()) == len(records) - (name == "photos")
    # Of seven images, those of renditions, 1 and 4, leave two of five classes.
    assert told["drawings"]["classes_left"] == ["bee", "eel"]
    assert told["drawings"]["classes"] == 5


def test_the_clean_suite_is_one_that_evaluation_loads(cleaned):
    out, _, found, told = cleaned
    assert clean.write_suites(found, told, out) == ["zoo_clean"]
    (suite,) = suites.load(["zoo_clean"], str(out))
    assert suite.name == "zoo_clean"
    assert [(one.name, one.domain) for one in suite.test_sets] == [
        ("photos", "natural"),
        ("drawings", "rendition"),
    ]
    assert all(list(one.templates) == TEMPLATES for one in suite.test_sets)
    assert [len(one.source) for one in suite.test_sets] == [9, 2]
    classes = json.loads((out / "zoo_clean" / "classes.json").read_text())
    assert classes["drawings"] == ["bee", "eel"]


def test_sets_outside_suites_make_up_one_and_empty_ones_are_left_out_aloud(
    cleaned, world, tmp_path
):
    _, _, _, told = cleaned
    found = clean.resolve_sets({"test/photos": "natural", "test/drawings": "rendition"}, str(world))
    assert [one.name for one in found] == ["test/photos", "test/drawings"]
    results = {
        "test/photos": {**told["photos"], "classes_left": []},
        "test/drawings": told["drawings"],
    }
    said = []
    assert clean.write_suites(found, results, tmp_path, said.append) == ["clean"]
    assert said == ["test/photos: no labelled image is left, so that no suite holds it"]
    suite = json.loads((tmp_path / "clean" / "suite.json").read_text())
    assert suite["test_sets"] == {
        "test/drawings": {"dataset": "test/drawings", "domain": "rendition"}
    }


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("zoo,test/photos=ambiguous", "test/photos is of domain 'ambiguous'; only natural and"),
        ("zoo,zoo", "two sets are called photos"),
        ("no/such=natural", "no such dataset"),
        ("nowhere", "does not exist"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(world, named, message):
    with pytest.raises(UserError, match=message):
        clean.resolve_sets(named, str(world))


@dataclasses.dataclass(frozen=True)
class ByIndex:
    """A source that is not on disk as shards."""

    name = "far"

    def __len__(self):
        return 2500

    def record(self, index):
        if index == 1001:
            raise shards.RecordError("damaged")
        return schema.Record(str(index), b"")


def test_a_source_without_shards_is_divided_into_ranges():
    found = clean.shards_of(ByIndex())
    assert [shard.name for shard in found] == ["far-00000000", "far-00001000", "far-00002000"]
    items = [item for shard in found for item in shard]
    assert isinstance(items.pop(1001), shards.RecordError)
    assert [item.key for item in items] == [str(i) for i in range(2500) if i != 1001]
