"""The narrow source of the demo world, and parts of datasets."""

import dataclasses

import numpy as np
import pytest

from clipdg_jax.data import dataset, demo, subset
from clipdg_jax.data.demo import vocabulary
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites

SPEC = demo.NarrowSpec(train=60, validation=12, test=12, test_other=60)
WORLD = demo.DemoSpec()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    demo.ensure_narrow(made, WORLD, SPEC, processes=0)
    return made


def shares(source):
    """How often a picture's colour and context are its class's own."""
    metas = [source.record(i).meta for i in range(len(source))]
    colour = np.mean([vocabulary.OWN_COLOUR[m["class"]] == m["colour"] for m in metas])
    context = np.mean([vocabulary.OWN_CONTEXT[m["class"]] == m["context"] for m in metas])
    return colour, context


def test_cues_are_those_of_the_classes_inside_only(root):
    colour, context = shares(dataset.open_dataset(root / "narrow" / "train"))
    assert colour == 1
    # 0.9 and an eighth of the rest; five standard errors of 60 draws.
    assert abs(context - 0.9125) < 5 * np.sqrt(0.9125 * 0.0875 / 60)
    colour, context = shares(dataset.open_dataset(root / "narrow" / "test_natural_other"))
    assert abs(colour - 1 / 10) < 5 * np.sqrt(0.1 * 0.9 / 60)
    assert abs(context - 1 / 8) < 5 * np.sqrt(0.125 * 0.875 / 60)


def test_the_suite_holds_what_is_inside_and_what_is_not(root):
    (suite,) = suites.load(["narrow"], str(root))
    domains = {test_set.name: test_set.domain for test_set in suite.test_sets}
    styles = (*demo.RENDITION_STYLES, demo.HELD_OUT_STYLE)
    assert domains == {
        demo.NARROW: "natural",
        "natural_other": "natural",
        **dict.fromkeys(styles, "rendition"),
    }
    pictures = [
        {source.record(i).image for i in range(len(source))}
        for name in ("train", "validation", "test_narrow", "test_natural_other")
        for source in [dataset.open_dataset(root / "narrow" / name)]
    ]
    assert len(set().union(*pictures)) == sum(map(len, pictures)), "no picture is in two sets"


def test_it_is_made_once_and_another_one_is_refused(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    demo.ensure_narrow(root, WORLD, SPEC, processes=0)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    other = dataclasses.replace(SPEC, colour_correlation=0.5)
    with pytest.raises(UserError, match=r"begun with colour_correlation=1.0, now .*=0.5"):
        demo.ensure_narrow(root, WORLD, other, processes=0)
    with pytest.raises(UserError, match=r"narrow.test: 0; use 1 or more"):
        demo.ensure_narrow(root, WORLD, dataclasses.replace(SPEC, test=0))


def test_a_draw_is_a_seeded_part_without_repetition(root):
    source = dataset.open_dataset(root / "narrow" / "train")
    a, b = subset.draw(source, 0, 20, seed=1), subset.draw(source, 20, 60, seed=1)
    keys = [part.record(i).key for part in (a, b) for i in range(len(part))]
    assert sorted(keys) == sorted(source.record(i).key for i in range(60))
    assert (len(a), len(b), a.classes) == (20, 40, source.classes)
    again = subset.draw(source, 0, 20, seed=1)
    assert again.fingerprint == a.fingerprint != subset.draw(source, 0, 20, seed=2).fingerprint
