import json

import ml_collections
import numpy as np
import pytest

from clipdg_jax.domains import methods
from clipdg_jax.domains.methods import ensemble, keywords, method
from clipdg_jax.errors import UserError
from tests.domains import records, renders


class Fixed(method.Method):
    """Says the same of every image; remembers how it was fitted."""

    def __init__(self, scores, context=None):
        self.scores, self.context = np.asarray(scores, np.float32), context

    @classmethod
    def fit(cls, train, validation, context):
        assert context.workdir.is_dir()
        (context.workdir / "fitted").write_text(f"{len(train)} {len(validation)}")
        return cls([[context.config.natural, context.config.rendition]], context)

    def score(self, inputs):
        return np.repeat(self.scores, len(inputs), axis=0)

    def state(self):
        return method.State({"scores": self.scores}, {"is": "fixed"})

    @classmethod
    def load(cls, state, mesh):
        assert state.meta == {"is": "fixed"}
        assert set(state.arrays) == {"scores"}
        return cls(state.arrays["scores"])

    def describe(self):
        return "fixed"


@pytest.fixture
def fixed(monkeypatch):
    """All members are `Fixed`."""
    monkeypatch.setattr(ensemble.methods, "get", lambda name: Fixed)


def test_geometric_and_arithmetic_means_by_hand():
    scores = [np.array([[0.8, 0.1], [0.5, 0.5]]), np.array([[0.2, 0.4], [0.5, 0.5]])]
    scores = [s.astype(np.float32) for s in scores]
    products = np.sqrt([0.8 * 0.2, 0.1 * 0.4, 0.1 * 0.4])  # .4 .2 .2
    np.testing.assert_allclose(products / products.sum(), [0.5, 0.25, 0.25], rtol=1e-12)
    found = ensemble.combine(scores, "log")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.25], [0.5, 0.5]], atol=2e-6)
    np.testing.assert_allclose(ensemble.combine(scores, "mean"), [[0.5, 0.25], [0.5, 0.5]])
    third = np.array([[0.05, 0.9], [1.0, 0.0]], np.float32)
    cubes = np.cbrt([0.8 * 0.2 * 0.05, 0.1 * 0.4 * 0.9, 0.1 * 0.4 * 0.05])
    found = ensemble.combine([*scores, third], "log")
    np.testing.assert_allclose(found[0], (cubes / cubes.sum())[:2], rtol=1e-5)
    np.testing.assert_allclose(ensemble.combine([*scores, third], "mean")[0], [0.35, 1.4 / 3])


def test_members_that_rule_each_other_out_cancel():
    sure = [np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)]
    np.testing.assert_allclose(ensemble.combine(sure, "log"), [[0.5, 0.5]], atol=1e-3)
    # A third, with any doubt at all, decides.
    found = ensemble.combine([*sure, np.array([[0.1, 0.8]], np.float32)], "log")
    np.testing.assert_allclose(found[0, 1] / found[0, 0], 2, rtol=1e-5)  # cbrt(8)
    # The zero of one does not overrule three that are nearly sure of the contrary.
    others = [np.array([[0.001, 0.99]], np.float32)] * 3
    found = ensemble.combine([sure[0], *others], "log")
    ratio = (ensemble.FLOOR * 0.99**3 / 0.001**3) ** 0.25
    np.testing.assert_allclose(found[0, 1] / found[0, 0], ratio, rtol=1e-5)


def test_members_of_one_opinion_are_that_opinion():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet((1, 1, 1), size=100)[:, :2].astype(np.float32)
    for how in ensemble.COMBINE:
        np.testing.assert_allclose(ensemble.combine([scores] * 3, how), scores, atol=1e-6)


@pytest.mark.usefixtures("fixed")
def test_each_member_is_fitted_with_its_own_section_and_directory(tmp_path):
    sections = {
        "style": ml_collections.ConfigDict({"natural": 0.9, "rendition": 0.1}),
        "gram": ml_collections.ConfigDict({"natural": 0.3, "rendition": 0.5}),
    }
    config = {"members": "gram, style", "combine": "mean"}
    context = records.context(config, workdir=tmp_path, sections=sections)
    train = records.labelled([0, 1, 1])
    fitted = ensemble.Ensemble.fit(train, train.subset(np.array([0])), context)
    np.testing.assert_allclose(fitted.score(records.of(["a", "b"])), [[0.6, 0.3]] * 2)
    for name in sections:
        assert (tmp_path / name / "fitted").read_text() == "3 1"
        own = fitted.parts[name].context
        assert own.config == sections[name]
        assert own.sections is sections
    assert fitted.describe() == "arithmetic mean of gram, style"


@pytest.mark.usefixtures("fixed")
def test_saved_and_loaded_members_keep_apart_what_is_theirs():
    parts = {"style": Fixed([[0.9, 0.05]]), "gram": Fixed([[0.2, 0.5]])}
    whole = ensemble.Ensemble.of(parts, "log")
    state = whole.state()
    assert set(state.arrays) == {"style/scores", "gram/scores"}
    meta = json.loads(json.dumps(state.meta, sort_keys=True))
    again = ensemble.Ensemble.load(method.State(state.arrays, meta), mesh=None)
    inputs = records.of(["a"])
    np.testing.assert_array_equal(again.score(inputs), whole.score(inputs))
    assert again.describe() == whole.describe() == "geometric mean of style, gram"


def test_real_members_from_fit_to_saved_and_loaded(tmp_path):
    sections = {
        "centroid": ml_collections.ConfigDict({"scale": 30.0}),
        "keywords": ml_collections.ConfigDict({**keywords.WORDS, "learn_words": 3, "l2": 1e-2}),
    }
    config = {"members": "keywords,centroid", "combine": "log"}
    made = renders.context(config, tmp_path)
    context = method.Context(
        made.config, sections, made.encoder, made.mesh, made.seed, made.workdir
    )
    train = renders.labelled((8, 8, 4))
    fitted = ensemble.Ensemble.fit(train, train, context)
    (inputs,) = renders.labelled((3, 3, 3), first=100).batches()
    state = fitted.state()
    again = methods.get("ensemble").load(state, made.mesh)
    np.testing.assert_array_equal(again.score(inputs), fitted.score(inputs))
    alone = [fitted.parts[name].score(inputs) for name in sections]
    np.testing.assert_allclose(fitted.score(inputs), ensemble.combine(alone, "log"), rtol=1e-6)


@pytest.mark.parametrize(
    ("members", "combine", "message"),
    [
        ("gram,grma", "log", r"ensemble\.members: 'grma' is unknown; use any of finetune, "),
        ("gram,ensemble", "log", "an ensemble cannot be part of one"),
        ("gram", "log", "'gram' is less than two methods"),
        ("", "log", "'' is less than two methods"),
        ("gram,style,gram", "log", "names a method twice"),
        ("gram,style", "median", r"ensemble\.combine: 'median' is unknown; use log or mean"),
    ],
)
def test_what_is_refused(members, combine, message, tmp_path):
    config = ml_collections.ConfigDict({"members": members, "combine": combine})
    with pytest.raises(UserError, match=message):
        ensemble.members(config)
    with pytest.raises(UserError, match=message):
        ensemble.Ensemble.fit(None, None, records.context(config, workdir=tmp_path))
    if members.count("gram") == 1:
        parts = {name: Fixed([[0.5, 0.5]]) for name in members.split(",")}
        with pytest.raises(UserError, match=message):
            ensemble.Ensemble.of(parts, combine)
    assert list(tmp_path.iterdir()) == []
