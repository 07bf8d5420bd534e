"""Gram features against float64, and the method on an easy case."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import safetensors.numpy

from clipdg_jax import errors
from clipdg_jax.domains import backbones, encoder, gram_features
from clipdg_jax.domains.methods import gram
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding
from tests.domains import easy, renders
from tests.domains.test_backbones import weights

CONFIG = {"weights": "", "image_size": 32, "layers": "stem.0, stem.1", "channels": 12, "l2": 0.01}
MESH = sharding.make_mesh(devices=jax.devices()[:1])

ARCHITECTURE = {
    "name": "tiny",
    "embed_dim": 32,
    "vision": {"width": 32, "heads": 2, "stem": (16, 16, 32), "stem_blocks": 0},
}
# Two layers of eight channels.
NETWORK = backbones.Vgg(((8, 1), (8, 1)))


@functools.cache
def start():
    """An image tower of random numbers; drawing them in JAX takes ten seconds to compile."""
    model = model_lib.Model(model_config.from_config(ARCHITECTURE))
    rng, shapes = np.random.default_rng(0), encoder.tower(model.shapes())
    params = {k: rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in shapes.items()}
    return encoder.Encoder(model, encoder.place(params, MESH), MESH)


def make_context(directory, **change):
    """The section as CONFIG with changes, and an encoder with a stem."""
    return dataclasses.replace(renders.context(CONFIG | change, directory), encoder=start())


@pytest.fixture(scope="module")
def train():
    return easy.labelled(60, seed=0)


@pytest.fixture(scope="module")
def test_set():
    return easy.labelled(60, seed=1)


@pytest.fixture(scope="module")
def fitted(train, test_set, tmp_path_factory):
    return gram.Gram.fit(train, test_set, make_context(tmp_path_factory.mktemp("gram")))


def reference(tokens):
    """Rooted upper triangles of F^T F / n, in float64, element by element."""
    tokens = np.asarray(tokens, np.float64)
    found = []
    for f in tokens:
        matrix = f.T @ f / len(f)
        entries = [matrix[i, j] for i in range(len(matrix)) for j in range(i, len(matrix))]
        found.append(np.sign(entries) * np.sqrt(np.abs(entries)))
    return np.array(found)


def test_gram_against_float64():
    tokens = np.random.default_rng(0).normal(0.3, 2, (3, 50, 7))
    got = jax.jit(gram_features.gram)(tokens.astype(np.float32))
    assert got.shape == (3, 28)
    np.testing.assert_allclose(got, reference(tokens), atol=2e-4)
    assert (np.asarray(got) < -0.1).any()


def test_places_do_not_matter_and_doubling_doubles():
    tokens = np.random.default_rng(0).normal(size=(1, 50, 7)).astype(np.float32)
    moved = np.random.default_rng(1).permutation(tokens, axis=1)
    got = gram_features.gram(tokens)
    np.testing.assert_allclose(gram_features.gram(moved), got, atol=1e-4)
    np.testing.assert_allclose(gram_features.gram(2 * tokens), 2 * got, atol=1e-4)


def test_features_are_those_of_the_encoders_layers(fitted, test_set):
    state = fitted.state()
    (inputs,) = test_set.batches(len(test_set))
    images = inputs.images(32)
    names = ("stem.0", "stem.1")
    assert state.meta["layers"] == list(names)
    tokens = jax.jit(lambda p, x: start().model.image_tokens(p, x, names))(start().params, images)
    want = []
    for name, part in zip(names, tokens):
        projection = np.asarray(state.arrays[f"features.projection.{name}"], np.float64)
        assert projection.shape == (16, 12)
        np.testing.assert_allclose(projection.T @ projection, np.eye(12), atol=1e-6)
        want.append(reference(np.asarray(part, np.float64) @ projection))
    features = gram.Gram.from_meta(state.meta)
    params = {k: v for k, v in state.arrays.items() if k.startswith("features.")}
    params = {k.removeprefix("features."): v for k, v in params.items()}
    got = jax.jit(features)(params, images)
    np.testing.assert_allclose(got, np.concatenate(want, axis=1), atol=1e-3)
    # Where the readout stands on these features, so does the score.
    logits = np.concatenate(want, axis=1) @ state.arrays["readout.weight"]
    logits += state.arrays["readout.bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        fitted.score(inputs), odds / odds.sum(axis=1, keepdims=True), atol=0.02
    )


def test_projections_depend_on_seed_and_layer_only():
    backbone = gram_features.ImageTower(start().model.config, ("stem.0", "stem.2", "resblocks.0"))
    first = gram_features.projections(backbone, start().params, 20, seed=3)
    # stem.0 has 16 channels; the others 32 each.
    assert {k: v.shape for k, v in first.items()} == {
        "projection.stem.2": (32, 20),
        "projection.resblocks.0": (32, 20),
    }
    assert np.abs(first["projection.stem.2"] - first["projection.resblocks.0"]).max() > 0.1
    alone = dataclasses.replace(backbone, layers=("resblocks.0",))
    again = gram_features.projections(alone, start().params, 20, seed=3)
    np.testing.assert_array_equal(again["projection.resblocks.0"], first["projection.resblocks.0"])
    other = gram_features.projections(alone, start().params, 20, seed=4)
    assert np.abs(other["projection.resblocks.0"] - again["projection.resblocks.0"]).max() > 0.1


def test_tells_drawings_from_textures_and_is_kept(fitted, test_set):
    assert easy.accuracy(fitted, test_set) > 0.9
    state = fitted.state()
    (inputs,) = test_set.batches(len(test_set))
    two = sharding.make_mesh(devices=jax.devices()[:2])
    scores = fitted.score(inputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    same = gram.Gram.load(state, MESH)
    np.testing.assert_array_equal(same.score(inputs), scores)
    np.testing.assert_allclose(gram.Gram.load(state, two).score(inputs), scores, atol=1e-3)
    assert fitted.describe() == "Gram matrices of the encoder, layers stem.0, stem.1"
    assert same.describe() == fitted.describe()


def test_of_a_network_whose_weights_are_given(train, test_set, tmp_path, monkeypatch):
    monkeypatch.setitem(backbones.NETWORKS, "VGG-19", (NETWORK, "features.0.weight"))
    path = str(tmp_path / "vgg.safetensors")
    safetensors.numpy.save_file(weights(NETWORK), path)
    context = make_context(tmp_path, weights=path, image_size=40, layers="")
    fitted = gram.Gram.fit(train, test_set, context)
    assert easy.accuracy(fitted, test_set) > 0.9
    assert fitted.describe() == "Gram matrices of VGG-19, layers features_0, features_3"
    # 8 channels each: 36 pairs; and no encoder.
    state = fitted.state()
    assert state.arrays["readout.weight"].shape == (72, 2)
    assert not any("visual" in name for name in state.arrays)
    (tmp_path / "vgg.safetensors").unlink()  # What is saved holds the weights.
    (inputs,) = test_set.batches(len(test_set))
    again = gram.Gram.load(state, MESH)
    np.testing.assert_array_equal(again.score(inputs), fitted.score(inputs))


def test_the_stem_takes_larger_images(train, test_set, tmp_path):
    fitted = gram.Gram.fit(train, test_set, make_context(tmp_path, image_size=64))
    assert gram.Gram.from_meta(fitted.state().meta).image_size == 64
    # As many features: they do not depend on the size.
    assert fitted.state().arrays["readout.weight"].shape == (2 * 78, 2)
    assert easy.accuracy(fitted, test_set) > 0.9


@pytest.mark.parametrize(
    ("vision", "layers"),
    [
        ({}, ["stem.0", "stem.1", "stem.2"]),
        ({"stem": (), "stem_blocks": 0, "layers": 12}, ["resblocks.3", "resblocks.7"]),
        ({"stem": (), "stem_blocks": 0, "layers": 1}, ["resblocks.0"]),
    ],
)
def test_layers_unless_told_are_the_stem_or_two_blocks(vision, layers):
    model = model_lib.Model(model_config.from_config({"name": "tiny", "vision": vision}))
    assert list(gram.chosen_layers(model, "")) == layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, r"gram\.channels: 0"),
        ({"layers": "stem.0,stem.7"}, r"gram\.layers: the encoder has no layer 'stem\.7'"),
        ({"layers": "stem.0,stem.0"}, "names a layer twice"),
        ({"weights": "x.safetensors", "layers": "stem.0"}, "leave one of the two empty"),
        ({"weights": "x.safetensors", "layers": ""}, r"x\.safetensors: there is no such file"),
        ({"weights": "x.safetensors", "image_size": 8}, r"gram\.image_size: 8; use 32"),
        ({"image_size": 44}, r"gram\.image_size: 44 is not 0, nor a multiple .* of 8 pixels"),
        (
            {"image_size": 64, "layers": "stem.0,resblocks.0"},
            r"gram\.image_size: 64, but layer resblocks\.0 .* takes images of 32 pixels only",
        ),
        ({"l2": 0.0}, r"l2: 0\.0"),
    ],
)
def test_wrong_fields_are_named(train, tmp_path, change, message):
    with pytest.raises(errors.UserError, match=message):
        gram.Gram.fit(train, train, make_context(tmp_path, **change))
