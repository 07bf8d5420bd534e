import numpy as np
import pytest

from clipdg_jax.domains import label_table, splits
from clipdg_jax.errors import UserError


def consensus(n: int = 400, seed: int = 0, datasets: int = 1) -> label_table.Consensus:
    rng = np.random.default_rng(seed)
    asked = rng.integers(1, 4, n).astype(np.int32)
    random = rng.random(n) < 0.7
    return label_table.Consensus(
        key=tuple(f"part/{i:04}" for i in range(n)),
        dataset=tuple(f"pool{i % datasets}" for i in range(n)),
        fingerprint=("f00d",) * n,
        index=np.arange(n),
        domain=rng.integers(0, 3, n).astype(np.int32),
        annotators=asked,
        random_annotators=np.where(random, rng.integers(1, asked + 1), 0).astype(np.int32),
        random=random,
        adjudicated=rng.random(n) < 0.1,
        probability=np.full(n, 0.1),
        ties=0,
        few=0,
    )


def take(labelled: label_table.Consensus, rows) -> label_table.Consensus:
    values = {}
    for name, value in vars(labelled).items():
        if isinstance(value, tuple):
            value = tuple(value[i] for i in rows)
        elif isinstance(value, np.ndarray):
            value = value[rows]
        values[name] = value
    return label_table.Consensus(**values)


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_only_random_draws_with_enough_annotators_validate_and_test(needed):
    labelled = consensus()
    train, validation, test = splits.split(labelled, 20, 30, needed, seed=0)
    assert (len(validation), len(test)) == (20, 30)
    assert sorted([*train, *validation, *test]) == list(range(400))
    held_out = np.concatenate([validation, test])
    assert labelled.random[held_out].all()
    enough = (labelled.random_annotators >= needed) | labelled.adjudicated
    assert enough[held_out].all()
    # Votes that a rule asked for do not make a record eligible.
    assert (labelled.annotators[train] > labelled.random_annotators[train]).any()


def test_all_eligible_are_held_out_when_asked_for():
    labelled = consensus()
    eligible = labelled.random & ((labelled.random_annotators >= 2) | labelled.adjudicated)
    n = int(eligible.sum())
    train, validation, test = splits.split(labelled, n - 10, 10, 2, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(~eligible), train)
    np.testing.assert_array_equal(np.flatnonzero(eligible), np.sort([*validation, *test]))
    expected = f"need {n + 1} labels but only {n} of the 400 labelled records .* 2 or more"
    with pytest.raises(UserError, match=expected):
        splits.split(labelled, n - 10, 11, 2, seed=0)


def test_the_split_is_a_function_of_keys_and_seed():
    labelled = consensus()
    first = splits.split(labelled, 20, 30, 2, seed=5)
    rows = np.random.default_rng(1).permutation(400)
    shuffled = take(labelled, rows)
    for before, after in zip(first, splits.split(shuffled, 20, 30, 2, seed=5), strict=True):
        assert {labelled.key[i] for i in before} == {shuffled.key[i] for i in after}
        assert (np.diff(after) > 0).all()
    assert not np.array_equal(first[1], splits.split(labelled, 20, 30, 2, seed=6)[1])
    # Every eligible record is as likely as another to validate.
    eligible = np.flatnonzero(
        labelled.random & ((labelled.random_annotators >= 2) | labelled.adjudicated)
    )
    times = np.zeros(400)
    for seed in range(400):
        times[splits.split(labelled, 20, 30, 2, seed)[1]] += 1
    p = 20 / len(eligible)
    assert np.abs(times[eligible] - 400 * p).max() < 5 * np.sqrt(400 * p * (1 - p))


def test_another_version_of_a_held_out_record_does_not_train():
    one = consensus()
    n = len(one)
    both = take(one, [*range(n), *range(n)])
    both = label_table.Consensus(**{**vars(both), "fingerprint": ("f00d",) * n + ("beef",) * n})
    train, validation, test = splits.split(both, 20, 30, 2, seed=0)
    held_out = {both.key[i] for i in [*validation, *test]}
    assert len(held_out) == 50
    assert held_out.isdisjoint(both.key[i] for i in train)
    assert len(train) == 2 * (n - 50)
    # The same key in another dataset is another record.
    other = label_table.Consensus(**{**vars(both), "dataset": ("pool",) * n + ("other",) * n})
    assert len(splits.split(other, 20, 30, 2, seed=0)[0]) == 2 * n - 50


def test_splits_that_cannot_be():
    labelled = consensus(40)
    with pytest.raises(UserError, match="validation: is -1"):
        splits.split(labelled, -1, 2, 1, seed=0)
    whole = take(labelled, np.flatnonzero(labelled.random))
    with pytest.raises(UserError, match="leave none to train"):
        splits.split(whole, len(whole), 0, 1, seed=0)
    train, validation, test = splits.split(labelled, 0, 0, 1, seed=0)
    assert (len(train), len(validation), len(test)) == (40, 0, 0)


def test_folds_are_even_and_follow_the_keys():
    keys = [f"part/{i}" for i in range(103)]
    folds = splits.folds(keys, 5, seed=0)
    assert sorted(np.bincount(folds).tolist()) == [20, 20, 21, 21, 21]
    order = np.random.default_rng(0).permutation(103)
    np.testing.assert_array_equal(splits.folds([keys[i] for i in order], 5, 0), folds[order])
    assert not np.array_equal(splits.folds(keys, 5, seed=1), folds)
    # Twice the same key: the same fold.
    np.testing.assert_array_equal(splits.folds(keys + keys, 5, 0), np.tile(folds, 2))
    # Neighbours are not told apart by their place: about 4/5 of pairs lie in different folds.
    assert 0.6 < np.mean(np.diff(folds) != 0) < 0.95
    for k in (1, 104):
        with pytest.raises(UserError, match=f"folds: cannot make {k} of 103"):
            splits.folds(keys, k, 0)
