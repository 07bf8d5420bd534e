"""The amplitude spectrum against float64, and the method on an easy case."""

import itertools

import jax
import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.domains.methods import amplitude
from clipdg_jax.training import sharding
from tests.domains import easy, renders

CONFIG = {"image_size": 32, "window": "none", "colour": "rgb", "bins": 0, "l2": 1.0}
MESH = sharding.make_mesh(devices=jax.devices()[:1])


def reference(images, window, colour):
    """log(1 + |DFT|) as a sum over pixels, in float64: [n, channels, s, s]."""
    size = images.shape[1]
    x = images.astype(np.float64)
    if colour == "luminance":
        x = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    line = np.ones(size)
    if window == "hann":
        line = np.sin(np.pi * np.arange(size) / size) ** 2
    line = line / line.sum()
    wave = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size) * line
    return np.log(1 + np.abs(np.einsum("uy,vx,nyxc->ncuv", wave, wave, x)))


@pytest.mark.parametrize("window", amplitude.WINDOWS)
@pytest.mark.parametrize("colour", amplitude.COLOURS)
@pytest.mark.parametrize("size", [16, 15])
def test_spectrum_against_float64(window, colour, size):
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    got = jax.jit(amplitude.Spectrum(size, window, colour, 0))({}, images)
    want = reference(images, window, colour)
    half = want[..., : size // 2 + 1]
    np.testing.assert_allclose(got, half.reshape(3, -1), atol=2e-5)
    assert got.shape == (3, want.shape[1] * size * (size // 2 + 1))

    # A ring's mean is that over the whole plane, of which the features hold one half.
    bins = 5
    rings = {"rings": amplitude.rings(size, bins)}
    got = jax.jit(amplitude.Spectrum(size, window, colour, bins))(rings, images)
    place = np.minimum(np.arange(size), size - np.arange(size))
    radius = 2 * bins**2 * (place[:, None] ** 2 + place[None] ** 2)
    edges = [i**2 * size**2 for i in range(bins)] + [np.inf]
    inside = [(low <= radius) & (radius < high) for low, high in itertools.pairwise(edges)]
    assert sum(ring.sum() for ring in inside) == size**2
    means = np.stack([want[..., ring].mean(axis=-1) for ring in inside], axis=-1)
    np.testing.assert_allclose(got, means.reshape(3, -1), atol=2e-5)


def test_a_wave_is_at_its_frequency_wherever_it_starts():
    y, x = np.mgrid[:16, :16]
    waves = [128 + 100 * np.cos(2 * np.pi * (3 * y + 5 * x) / 16 + phase) for phase in (0, 1)]
    images = np.repeat(np.array(waves).round().astype(np.uint8)[..., None], 3, axis=-1)
    got = np.asarray(amplitude.Spectrum(16, "none", "luminance", 0)({}, images))
    planes = np.expm1(got).reshape(2, 16, 9)
    np.testing.assert_allclose(planes[0], planes[1], atol=0.3)  # Rounding to grey levels.
    np.testing.assert_allclose(planes[:, 3, 5], 50, atol=0.1)
    np.testing.assert_allclose(planes[:, 0, 0], 128, atol=0.1)
    planes[:, [3, 0], [5, 0]] = 0
    assert planes.max() < 0.3


@pytest.mark.parametrize("change", [{}, {"window": "hann", "colour": "luminance", "bins": 8}])
def test_tells_drawings_from_textures_and_is_kept(tmp_path, change):
    train, test = easy.labelled(60, seed=0), easy.labelled(60, seed=1)
    fitted = amplitude.Amplitude.fit(train, test, renders.context(CONFIG | change, tmp_path))
    assert easy.accuracy(fitted, test) > 0.9
    (inputs,) = test.batches(len(test))
    scores = fitted.score(inputs)
    assert scores.shape == (120, 2)
    again = amplitude.Amplitude.load(fitted.state(), MESH)
    np.testing.assert_array_equal(again.score(inputs), scores)
    assert again.describe() == fitted.describe()
    many = sharding.make_mesh()
    spread = amplitude.Amplitude.load(fitted.state(), many)
    np.testing.assert_allclose(spread.score(inputs), scores, atol=1e-3)


def test_what_cannot_be_decoded_teaches_nothing(tmp_path):
    context = renders.context(CONFIG, tmp_path)
    whole, holed = easy.labelled(20, seed=0), easy.labelled(20, seed=0, damaged=30)
    (inputs,) = easy.labelled(20, seed=1).batches()
    scores = [amplitude.Amplitude.fit(t, t, context).score(inputs) for t in (whole, holed)]
    np.testing.assert_array_equal(*scores)


def test_says_what_it_looks_at(tmp_path):
    train = easy.labelled(10, seed=0)
    for change, said in (
        ({}, "of each colour channel at 32 x 32 pixels, every frequency"),
        (
            {"bins": 4, "colour": "luminance", "window": "hann"},
            "of the luminance at 32 x 32 pixels under a Hann window, 4 rings of it",
        ),
    ):
        context = renders.context(CONFIG | change, tmp_path)
        fitted = amplitude.Amplitude.fit(train, train, context)
        assert fitted.describe() == f"Fourier amplitude spectrum {said}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 2}, r"amplitude\.image_size: 2"),
        ({"colour": "lab"}, r"amplitude\.colour: 'lab' is unknown; use rgb or luminance"),
        ({"window": "hamming"}, r"amplitude\.window: 'hamming' is unknown; use none or hann"),
        ({"bins": -1}, r"amplitude\.bins: -1"),
        ({"bins": 60}, r"amplitude\.bins: 60 rings are too narrow.*use at most 16"),
        ({"l2": -1.0}, r"l2: -1\.0"),
    ],
)
def test_wrong_fields_are_named(tmp_path, change, message):
    train = easy.labelled(3, seed=0)
    with pytest.raises(errors.UserError, match=message):
        amplitude.Amplitude.fit(train, train, renders.context(CONFIG | change, tmp_path))
