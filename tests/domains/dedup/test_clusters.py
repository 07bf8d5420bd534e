"""Who is dropped in favour of whom, against a slow reference."""

import numpy as np
import pytest

from clipdg_jax.domains.dedup import clusters
from clipdg_jax.domains.dedup.signatures import REFERENCE


def graph(seed, records=60, pairs=150):
    """Random pairs of records with few distinct sizes; the first five are references."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 4, records)
    pixels[:5] = REFERENCE
    pair = rng.integers(0, records, (pairs, 2))
    pair = pair[pair[:, 0] != pair[:, 1]]
    return pixels, pair


def edges_of(pixels, pair, **figures):
    a, b = pair.T
    return clusters.edges((pixels[a], pixels[b]), (a, b), clusters.CASCADE, **figures)


def reference(pixels, pair):
    """dropped -> kept, by going through the records one by one."""
    neighbours = {i: set() for i in range(len(pixels))}
    for a, b in pair.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    order = sorted(range(len(pixels)), key=lambda i: (-int(pixels[i]), i))
    dropped = {}
    for place, keeper in enumerate(order):
        if keeper not in dropped:
            for other in order[place + 1 :]:
                is_reference = pixels[other] == REFERENCE
                if other in neighbours[keeper] and other not in dropped and not is_reference:
                    dropped[other] = keeper
    return dropped


@pytest.mark.parametrize("seed", range(5))
def test_stars_are_those_of_going_through_the_records(seed):
    pixels, pair = graph(seed)
    twice = np.concatenate([pair, pair[:40, ::-1]])
    acted = clusters.stars(edges_of(pixels, twice), len(pixels))
    found = dict(zip(acted["dropped"].tolist(), acted["kept"].tolist(), strict=True))
    assert found == reference(pixels, pair)
    assert len(found) == len(acted) > 15
    shuffled = np.random.default_rng(seed).permutation(twice)
    again = clusters.stars(edges_of(pixels, shuffled), len(pixels))
    assert again.tobytes() == acted.tobytes()


def test_a_chain_is_not_one_cluster():
    pixels = np.array([4, 3, 2, 1])
    chain = np.array([[0, 1], [1, 2], [2, 3]])
    acted = clusters.stars(edges_of(pixels, chain), 4)
    assert list(zip(acted["dropped"], acted["kept"], strict=True)) == [(1, 0), (3, 2)]


def test_the_better_one_is_kept():
    pixels = np.array([5, 9, 9, REFERENCE, 1])
    pair = np.array([[0, 1], [1, 2], [2, 3], [4, 3]])
    found = edges_of(pixels, pair, cosine=np.full(4, 0.5), distance=np.arange(4))
    assert found["kept"].tolist() == [1, 1, 3, 3]
    assert found["dropped"].tolist() == [0, 2, 2, 4]
    assert found["distance"].tolist() == [0, 1, 2, 3]
    assert len(edges_of(np.full(2, REFERENCE), np.array([[0, 1]]))) == 0


def test_equals_go_to_the_best_of_them_and_on_to_what_that_is_dropped_for():
    digests = np.array([[7, 1], [7, 2], [7, 1], [3, 3], [7, 1]], np.uint64)
    rows, pixels = np.arange(10, 15), np.array([4, 4, 4, 4, 4])
    same, best = clusters.equals(digests, rows, pixels, clusters.EXACT)
    assert sorted(best.tolist()) == [10, 11, 13]
    assert sorted(zip(same["dropped"], same["kept"], strict=True)) == [(12, 10), (14, 10)]
    acted = clusters.edges(
        (np.array([4]), np.array([9])),
        (np.array([10]), np.array([20])),
        clusters.CASCADE,
        np.array([0.9]),
        np.array([3]),
    )
    whole = clusters.follow(same, acted)
    assert sorted(whole["dropped"].tolist()) == [10, 12, 14]
    assert set(whole["kept"].tolist()) == {20}
    assert set(whole["how"].tolist()) == {clusters.CASCADE}
    assert set(whole["distance"].tolist()) == {3}
    assert clusters.follow(same, clusters.NONE).tobytes() == same.tobytes()
