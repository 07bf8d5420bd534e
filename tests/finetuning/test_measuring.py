"""Interpolation, drift and choosing, against independent computations."""

import jax
import numpy as np
import pytest

from clipdg_jax.finetuning import choosing, drift, measuring, picture


def bits(value):
    return np.asarray(value, np.float32).view(np.uint32)


def test_interpolation_returns_its_ends_to_the_bit():
    rng = np.random.default_rng(0)
    before = {"w": rng.normal(size=(5, 7)).astype(np.float32), "b": np.float32([0.0, -0.0, np.inf])}
    after = {"w": rng.normal(size=(5, 7)).astype(np.float32), "b": np.float32([-0.0, np.inf, -0.0])}
    between = jax.jit(measuring.interpolate)
    for alpha, end in ((0.0, before), (1.0, after)):
        found = between(before, after, alpha)
        for name, value in end.items():
            np.testing.assert_array_equal(bits(found[name]), bits(value), err_msg=name)
    found = between(before, after, 0.3)
    expected = 0.7 * before["w"].astype(np.float64) + 0.3 * after["w"].astype(np.float64)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5, atol=1e-6)


def test_linear_cka_is_that_of_the_gram_matrices():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6)) + 3
    y = np.tanh(x @ rng.normal(size=(6, 9))) + 0.3 * rng.normal(size=(40, 9))
    # HSIC of the centred Gram matrices (Kornblith et al. 2019, equations 2 to 4).
    h = np.eye(40) - 1 / 40

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert 0.1 < expected < 0.9
    np.testing.assert_allclose(drift.linear_cka(x, y), expected, rtol=1e-10)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    np.testing.assert_allclose(drift.linear_cka(x, 2 * x @ rotation + 5), 1.0, rtol=1e-10)
    assert drift.linear_cka(x, np.ones((40, 3))) == 0


def test_cosine_is_the_mean_over_images():
    before = np.array([[1.0, 0.0], [0.0, 2.0]])
    after = np.array([[0.0, 1.0], [0.0, 3.0]])
    assert drift.cosine(before, after) == pytest.approx(0.5)


def test_distances_are_by_layer():
    before = {
        "visual.stem.0.conv.weight": np.full((2, 2), 2.0),
        "visual.stem.0.ln.bias": np.zeros(2),
        "visual.transformer.resblocks.3.attn.out_proj.weight": np.full(4, 1.0),
        "transformer.resblocks.3.ln_1.weight": np.full(4, 1.0),
        "visual.proj": np.ones((1, 1)),
        "head.bias": np.zeros(2),
    }
    after = {name: value.copy() for name, value in before.items()}
    after["visual.stem.0.ln.bias"] += 2.0
    after["visual.transformer.resblocks.3.attn.out_proj.weight"] *= 1.5
    after["head.bias"] += [3.0, 4.0]
    found = drift.distances(before, after)
    assert found == {
        "visual.stem.0": pytest.approx(np.sqrt(8 / 16)),
        "visual.transformer.resblocks.3": pytest.approx(0.5),
        "transformer.resblocks.3": 0.0,
        "visual.proj": 0.0,
        "head": pytest.approx(5.0),  # It was all 0.
        "all": pytest.approx(np.sqrt((8 + 1 + 25) / (16 + 4 + 4 + 1))),
    }


def test_the_strongest_protection_within_one_standard_error_is_chosen():
    # sqrt(.9 * .1 / 900) = .01, so that what is chosen among has .89 or more.
    accuracies, protections = [0.9, 0.895, 0.8901, 0.889], [0.0, 1.0, 2.0, 3.0]
    assert choosing.choose(accuracies, 900, protections) == 2
    assert choosing.choose(accuracies, 90_000, protections) == 0, "more images tell more apart"
    assert choosing.choose([0.5, 0.5, 0.5], 100, [0.0, 2.0, 2.0]) == 1
    assert choosing.choose([1.0, 1.0, 0.99], 100, [0.0, 1.0, 2.0]) == 1


def test_the_means_error_is_that_of_independent_sets():
    measured = {"test_sets": {"a": {"top1": 0.8, "n": 400}, "b": {"top1": 0.5, "n": 100}}}
    assert measuring.mean_top1(measured, ["a", "b"]) == pytest.approx(0.65)
    expected = np.sqrt(0.8 * 0.2 / 400 + 0.5 * 0.5 / 100) / 2
    assert measuring.standard_error(measured, ["a", "b"]) == pytest.approx(expected)


def test_the_pareto_front_is_what_nothing_beats():
    points = [(1, 5), (2, 4), (2, 3), (3, 4), (0, 5), (4, 1), (4, 1), (3, 0)]
    assert picture.pareto(points) == [0, 3, 5]
    rng = np.random.default_rng(0)
    cloud = [tuple(p) for p in rng.random((200, 2))]
    beaten = [any(b[0] > a[0] and b[1] > a[1] for b in cloud) for a in cloud]
    assert sorted(picture.pareto(cloud)) == [i for i, lost in enumerate(beaten) if not lost]
