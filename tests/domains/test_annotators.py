import numpy as np
import pytest

from clipdg_jax.data import schema
from clipdg_jax.domains import annotators, label_table, labels, splits
from clipdg_jax.errors import UserError
from tests.domains.small_pool import SmallPool

POOL = SmallPool(5000)
TRUTH = np.random.default_rng(0).choice(3, 5000, p=[0.6, 0.3, 0.1])
SETTINGS = {
    "train": 1500,
    "validation_and_test": 2000,
    "train_noise": 0.2,
    "annotators": 3,
    "error": 0.1,
    "seed": 4,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with labels.Store(tmp_path_factory.mktemp("labels") / "labels.sqlite") as opened:
        annotators.simulate(opened, POOL, TRUTH, **SETTINGS)
        yield opened


def near(share: float, p: float, n: int) -> bool:
    return abs(share - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_who_labels_what_and_errs_how_often(store):
    (draw,) = store.draws()
    assert (draw.order, draw.seed, draw.size, draw.population) == ("random", 4, 3500, 5000)
    items = store.items(draw.id)
    assert {item.probability for item in items} == {0.7}
    parts = {annotators.TRAINER: items[:1500]}
    parts |= {annotators.name_of(n): items[1500:] for n in (1, 2, 3)}
    assert set(store.annotators()) == set(parts)
    wrongs = {}
    for name, chosen in parts.items():
        said = {label.key: label.domain for label in store.labels(draw.id, name)}
        assert set(said) == {item.key for item in chosen}
        given = np.array([schema.DOMAINS.index(said[item.key]) for item in chosen])
        right = TRUTH[[item.index for item in chosen]]
        wrongs[name] = given != right
        rate = 0.2 if name == annotators.TRAINER else 0.1
        assert near(wrongs[name].mean(), rate, len(chosen))
        # Both wrong domains are as likely.
        shift = (given - right)[wrongs[name]] % 3
        assert near(np.mean(shift == 1), 0.5, len(shift))
    # The annotators err independently of each other.
    both = wrongs["simulated-1"] & wrongs["simulated-2"]
    assert near(both.mean(), 0.01, 2000)


def test_disagreements_and_only_they_are_decided(store):
    (draw,) = store.draws()
    said: dict[str, set[str]] = {}
    for label in store.labels(draw.id):
        said.setdefault(label.key, set()).add(label.domain)
    decisions = store.adjudications(draw.id)
    assert {a.key for a in decisions} == {key for key, domains in said.items() if len(domains) > 1}
    assert {a.annotator for a in decisions} == {annotators.ADJUDICATOR}
    wrong = np.mean([a.domain != schema.DOMAINS[TRUTH[a.index]] for a in decisions])
    assert near(wrong, 0.1, len(decisions))


def test_what_comes_of_it_after_consensus_and_split(store):
    found = label_table.consensus(label_table.from_store(store))
    assert (len(found), found.ties) == (3500, 0)
    train, validation, test = splits.split(found, 1000, 1000, min_annotators=3, seed=0)
    wrong = found.domain != TRUTH[found.index]
    assert near(wrong[train].mean(), 0.2, 1500)
    # Decided wrongly, or all three wrong alike: (1 - .9^3 - 2 (.05)^3) * .1 + 2 (.05)^3.
    same = 2 * 0.05**3
    expected = (1 - 0.9**3 - same) * 0.1 + same
    assert near(wrong[[*validation, *test]].mean(), expected, 2000)


def test_saying_it_again_changes_nothing_and_another_seed_says_something_else(store, tmp_path):
    before = store.labels(), store.adjudications()
    annotators.simulate(store, POOL, TRUTH, **SETTINGS)
    assert (store.labels(), store.adjudications()) == before
    assert len(store.draws()) == 1
    with labels.Store(tmp_path / "other.sqlite") as other:
        annotators.simulate(other, POOL, TRUTH, **{**SETTINGS, "seed": 5})
        assert {x.key for x in other.labels()} != {x.key for x in before[0]}


def test_excluded_records_are_not_labelled(tmp_path):
    out = {f"pool/{i}" for i in range(0, 5000, 4)}
    with labels.Store(tmp_path / "labels.sqlite") as store:
        annotators.simulate(store, POOL, TRUTH, **SETTINGS, exclude=out)
        (draw,) = store.draws()
        assert (draw.size, draw.population) == (3500, 3750)
        assert {item.probability for item in store.items(draw.id)} == {3500 / 3750}
        assert out.isdisjoint(label.key for label in store.labels())
        with pytest.raises(UserError, match="cannot draw 3751 of its 3750 records"):
            annotators.simulate(store, POOL, TRUTH, **{**SETTINGS, "train": 1751}, exclude=out)


def test_settings_that_cannot_be(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        for wrong, error, match in (
            ({"train": 4000}, UserError, "pool: cannot draw 6000 of its 5000"),
            ({"error": 1.5}, ValueError, "rates lie between 0 and 1"),
        ):
            with pytest.raises(error, match=match):
                annotators.simulate(store, POOL, TRUTH, **{**SETTINGS, **wrong})
        for truth in (TRUTH[:10], np.full(5000, 3)):
            with pytest.raises(ValueError, match="truth needs one domain"):
                annotators.simulate(store, POOL, truth, **SETTINGS)
        assert store.draws() == []
