import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from clipdg_jax.domains import agreement, label_table, labels
from tests.domains.small_pool import SmallPool

# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: four observers,
# twelve units, answers 1 to 5, 0 where there is none. Nominal alpha 0.743.
FOUR_OBSERVERS = (
    np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ]
    )
    - 1
)


def pair(table: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Two annotators' answers with these counts of each pair of answers."""
    cells = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    a, b = np.array(cells).T
    return a, b


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Cohen (1960), table 1, as counts of 200: p_o = .70, p_e = .41, kappa = .29 / .59.
        ([[88, 14, 18], [10, 40, 10], [2, 6, 12]], 0.492),
        # p_o = 35/50, p_e = (25 * 30 + 25 * 20) / 50^2 = 0.5.
        ([[20, 5], [10, 15]], 0.4),
        # p_o = 0, p_e = 0.5: as far from agreement as can be.
        ([[0, 10], [10, 0]], -1.0),
        ([[7, 0, 0], [0, 2, 0], [0, 0, 1]], 1.0),
    ],
)
def test_kappa_of_known_tables(table, kappa):
    a, b = pair(table)
    assert agreement.cohen_kappa(a, b).value == pytest.approx(kappa, abs=5e-4)
    assert agreement.cohen_kappa(b, a).value == pytest.approx(kappa, abs=5e-4)


def test_alpha_of_krippendorffs_four_observers():
    found = agreement.krippendorff_alpha(FOUR_OBSERVERS)
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11  # the last unit has one answer
    assert found.low < found.value < found.high <= 1


def test_alpha_of_krippendorffs_two_observers():
    # The same text, section A: binary data of two observers, alpha 0.095.
    ratings = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]])
    assert agreement.krippendorff_alpha(ratings).value == pytest.approx(0.095, abs=5e-4)


def plain_kappa(a, b) -> Fraction:
    """Cohen's definition, item by item, in exact fractions."""
    both = [(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True) if x >= 0 and y >= 0]
    n = len(both)
    observed = Fraction(sum(x == y for x, y in both), n)
    expected = sum(
        Fraction(sum(x == c for x, _ in both) * sum(y == c for _, y in both), n * n)
        for c in range(3)
    )
    return (observed - expected) / (1 - expected)


def plain_alpha(ratings) -> Fraction:
    """Krippendorff's definition by coincidences: all ordered pairs of answers within each unit."""
    coincidences: dict[tuple[int, int], Fraction] = {}
    for unit in ratings.T.tolist():
        answers = [x for x in unit if x >= 0]
        for x, y in itertools.permutations(answers, 2):
            share = Fraction(1, len(answers) - 1)
            coincidences[x, y] = coincidences.get((x, y), Fraction(0)) + share
    n = sum(coincidences.values())
    per = {c: sum(v for (x, _), v in coincidences.items() if x == c) for c in range(5)}
    observed = sum(v for (x, y), v in coincidences.items() if x != y)
    expected = sum(per[x] * per[y] for x in per for y in per if x != y) / (n - 1)
    return 1 - observed / expected


def noisy(rng, annotators: int, n: int, error: float, missing: float) -> np.ndarray:
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    wrong = rng.random((annotators, n)) < error
    said = np.where(wrong, rng.integers(0, 3, (annotators, n)), truth[None, :])
    return np.where(rng.random((annotators, n)) < missing, -1, said)


@pytest.mark.parametrize("seed", range(5))
def test_both_agree_with_their_definitions_in_exact_arithmetic(seed):
    rng = np.random.default_rng(seed)
    ratings = noisy(rng, 2 + seed, 40 + seed, 0.3, 0.25)
    kappa = agreement.cohen_kappa(ratings[0], ratings[1])
    assert kappa.value == pytest.approx(float(plain_kappa(ratings[0], ratings[1])), abs=1e-12)
    assert kappa.items == ((ratings[0] >= 0) & (ratings[1] >= 0)).sum()
    alpha = agreement.krippendorff_alpha(ratings)
    assert alpha.value == pytest.approx(float(plain_alpha(ratings)), abs=1e-12)
    assert alpha.items == ((ratings >= 0).sum(axis=0) >= 2).sum()


def test_intervals_are_those_of_items_drawn_again_one_by_one():
    rng = np.random.default_rng(0)
    ratings = noisy(rng, 3, 60, 0.3, 0.2)
    ratings = ratings[:, (ratings >= 0).sum(axis=0) >= 2]
    both = ratings[:2, (ratings[:2] >= 0).all(axis=0)]
    alphas, kappas = [], []
    for _ in range(1500):
        alphas.append(
            float(plain_alpha(ratings[:, rng.integers(0, ratings.shape[1], ratings.shape[1])]))
        )
        again = both[:, rng.integers(0, both.shape[1], both.shape[1])]
        kappas.append(float(plain_kappa(again[0], again[1])))
    for values, found in (
        (alphas, agreement.krippendorff_alpha(ratings, resamples=20000, confidence=0.9)),
        (kappas, agreement.cohen_kappa(both[0], both[1], resamples=20000, confidence=0.9)),
    ):
        expected = np.quantile(values, [0.05, 0.95])
        np.testing.assert_allclose((found.low, found.high), expected, atol=0.02)


def test_intervals_are_seeded_and_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    a, b = noisy(rng, 2, 100, 0.3, 0)
    assert agreement.cohen_kappa(a, b, seed=1) == agreement.cohen_kappa(a, b, seed=1)
    assert agreement.cohen_kappa(a, b, seed=1).low != agreement.cohen_kappa(a, b, seed=2).low
    big = noisy(rng, 2, 400000, 0.3, 0)
    truth = agreement.krippendorff_alpha(big, resamples=1).value
    covered = 0
    for seed in range(300):
        found = agreement.krippendorff_alpha(
            noisy(rng, 2, 200, 0.3, 0), seed=seed, resamples=400, confidence=0.9
        )
        covered += found.low <= truth <= found.high
    assert 0.84 < covered / 300 < 0.95


def test_what_is_undefined_is_nan():
    same = np.zeros(5, int)
    for found in (
        agreement.cohen_kappa(same, same),
        agreement.krippendorff_alpha(np.stack([same, same])),
    ):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert found.items == 5
    none = np.array([[0, -1], [-1, 1]])
    assert agreement.cohen_kappa(*none).items == 0
    assert agreement.krippendorff_alpha(none).items == 0
    assert agreement.krippendorff_alpha(np.zeros((0, 0), int)).items == 0
    with pytest.raises(ValueError, match="confidence"):
        agreement.cohen_kappa(same, same, confidence=1)


@pytest.fixture
def store(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as opened:
        yield opened


def fill(store, draw, ratings: np.ndarray, names: tuple[str, ...]) -> None:
    for name, row in zip(names, ratings.tolist(), strict=True):
        store.set_all(
            name, draw, {f"pool/{i}": labels.schema.DOMAINS[x] for i, x in enumerate(row) if x >= 0}
        )


def test_report_of_a_store(store):
    pool = SmallPool(80)
    items = [labels.Item(i, f"pool/{i}", 1.0) for i in range(80)]
    draw = store.add_draw(pool, "random", 0, items)
    ratings = noisy(np.random.default_rng(3), 3, 80, 0.2, 0.3)
    names = ("ann", "bob", "cat")
    fill(store, draw, ratings, names)
    store.adjudicate("dan", draw, "pool/1", "ambiguous")
    # Labels of images that were picked for being hard do not count.
    picked = store.add_draw(pool, "uncertain", 0, [labels.Item(i, f"pool/{i}") for i in range(30)])
    fill(store, picked, (ratings[:, :30] + 1) % 3, names)
    fill(store, picked, np.zeros((1, 30), int), ("eve",))
    found = agreement.report(label_table.from_store(store))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["basis"] == "random"
    given = (ratings >= 0).sum(axis=0)
    assert found["annotators"] == dict(zip(names, (ratings >= 0).sum(axis=1).tolist()))
    assert found["items"] == (given >= 1).sum()
    assert found["shared"] == (given >= 2).sum()
    unanimous = [
        len({x for x in unit if x >= 0}) == 1
        for unit in ratings.T.tolist()
        if sum(np.array(unit) >= 0) > 1
    ]
    assert found["agreed"] == sum(unanimous)
    assert found["share"] == pytest.approx(np.mean(unanimous))
    assert found["share_low"] < found["share"] < found["share_high"]
    assert found["alpha"]["value"] == pytest.approx(float(plain_alpha(ratings)))
    assert [p["annotators"] for p in found["pairs"]] == [
        ["ann", "bob"],
        ["ann", "cat"],
        ["bob", "cat"],
    ]
    for entry, (i, j) in zip(found["pairs"], ((0, 1), (0, 2), (1, 2)), strict=True):
        both = (ratings[i] >= 0) & (ratings[j] >= 0)
        assert entry["value"] == pytest.approx(float(plain_kappa(ratings[i], ratings[j])))
        assert entry["agreed"] == pytest.approx(np.mean(ratings[i, both] == ratings[j, both]))
        assert entry["items"] == both.sum()
    for figure in (found["alpha"]["value"], found["pairs"][2]["value"], 100 * found["share"]):
        assert f"{figure:.3f}"[:4] in found["text"]
    assert "bob and cat" in found["text"]


def test_report_of_tables_that_say_little():
    def table(**columns) -> label_table.LabelTable:
        n = len(columns["key"])
        plain = {
            "dataset": [""] * n,
            "fingerprint": [""] * n,
            "time": [0.0] * n,
            "order": [""] * n,
            "adjudicated": [False] * n,
        }
        return label_table.LabelTable(pa.table({**plain, **columns}))

    alone = agreement.report(table(key=["a", "b"], annotator=["x", "x"], domain=["natural"] * 2))
    assert (alone["basis"], alone["items"], alone["shared"]) == ("all", 2, 0)
    assert alone["share"] is None
    assert alone["alpha"]["value"] is None
    assert "let a second annotator" in alone["text"]
    same = agreement.report(table(key=["a", "a"], annotator=["x", "y"], domain=["natural"] * 2))
    assert same["share"] == 1
    assert same["pairs"][0]["value"] is None
    assert "undefined (only one domain occurs)" in same["text"]
