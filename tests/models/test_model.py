"""What the model does with its inputs, beyond agreeing with open_clip."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipdg_jax.models import clip, layers, vision
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib

# Published: open_clip's counts of the three architectures.
COUNTS = {"ViT-B-32": 151_277_313, "ViT-B-16": 149_620_737, "ViT-L-14": 427_616_513}
SMALL = {
    "name": "tiny",
    "vision": {"layers": 1, "width": 32, "heads": 2, "stem": (8, 16), "stem_blocks": 1},
    "text": {"layers": 1, "width": 32, "heads": 2, "vocab_size": 99, "context_length": 24},
}

TOKENS = np.zeros((3, 24), np.int32)
TOKENS[0, :4], TOKENS[1, :6], TOKENS[2, :3] = [97, 5, 6, 98], [97, 5, 6, 7, 8, 98], [97, 9, 98]


@pytest.fixture(scope="module")
def model():
    return model_lib.Model(config_lib.from_config(SMALL))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def features(model, params, image):
    return jax.jit(model)(params, image, TOKENS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = model_lib.Model(config_lib.PRESETS[name])
    assert model.num_params() == COUNTS[name]


def test_vit_b_32_halves():
    shapes = model_lib.Model(config_lib.PRESETS["ViT-B-32"]).shapes()
    visual = sum(leaf.size for name, leaf in shapes.items() if name.startswith("visual."))
    assert visual == 87_849_216


def test_bytes_are_normalised_as_told(model, params, image, features):
    floats = (image / 255 - np.array(config_lib.MEAN)) / np.array(config_lib.STD)
    ours = jax.jit(model.encode_image)(params, floats.astype(np.float32))
    np.testing.assert_allclose(ours, features[0], atol=1e-6)


def test_padding_behind_the_end_changes_nothing(model, params, features):
    encode = jax.jit(model.encode_text)
    noise = np.where(TOKENS == 0, 3, TOKENS)
    np.testing.assert_allclose(encode(params, noise), features[1], atol=1e-6)
    np.testing.assert_allclose(encode(params, TOKENS[:, :6]), features[1], atol=1e-6)
    assert np.abs(features[1][0] - features[1][1]).max() > 1e-2


def test_features_have_length_one_and_scale_is_exponentiated(model, params, image, features):
    for rows in features[:2]:
        np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(features[2], 1 / 0.07, rtol=1e-6)
    raw = jax.jit(model.encode_image, static_argnames="normalise")(params, image, normalise=False)
    np.testing.assert_allclose(clip.normalise(raw), features[0], atol=1e-6)


def test_zero_features_stay_finite():
    value, grad = jax.value_and_grad(lambda x: clip.normalise(x).sum())(jnp.zeros((1, 4)))
    assert value == 0
    assert jnp.isfinite(grad).all()


def test_bfloat16_stays_close_and_multiplies_nothing_in_float32(model, params, image, features):
    half = jax.jit(model_lib.Model(config_lib.from_config(SMALL | {"dtype": "bfloat16"})))
    for ours, theirs in zip(features[:2], half(params, image, TOKENS)[:2]):
        assert theirs.dtype == jnp.float32
        assert ((ours * theirs).sum(1) > 0.999).all()
    text = half.lower(params, image, TOKENS).as_text()
    operands = re.findall(r"(?:dot_general|convolution)\b.* : \(tensor<[\dx]*x(\w+)>", text)
    assert len(operands) > 15
    assert set(operands) == {"bf16"}


def test_stem_convolution_against_a_direct_sum():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(3, 3, 3, 5))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = np.zeros((2, 4, 4, 5))
    for i in range(4):
        for j in range(4):
            patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            want[:, i, j] = np.einsum("bhwi,hwio->bo", patch, weight)
    conv = vision.StemConv(3, 5, stride=2)
    conv.weight = nnx.Param(jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(conv(jnp.asarray(x, jnp.float32)), want, atol=1e-5)


def test_image_norm_against_numpy():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 4, 4, 5))
    norm = layers.ImageNorm(5)
    norm.weight, norm.bias = nnx.Param(jnp.arange(5.0)), nnx.Param(jnp.ones(5))
    flat = x.reshape(2, -1)
    z = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    want = z.reshape(x.shape) * np.arange(5) + 1
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), want, atol=1e-5)


def test_parameters_of_others_are_left_aside(model, params, image):
    more = params | {"logit_bias": jnp.float32(-10), "head.weight": jnp.ones((32, 3))}
    grads = jax.jit(jax.grad(lambda p: model.encode_image(p, image)[:, 0].sum()))(more)
    assert float(grads["logit_bias"]) == 0
    assert float(jnp.abs(grads["visual.proj"]).max()) > 0


def test_wrong_shapes_and_names_are_refused(model, params, image):
    with pytest.raises(ValueError, match="the model takes"):
        model.encode_image(params, image[:, :16])
    with pytest.raises(ValueError, match="the model takes 24"):
        model.encode_text(params, np.ones((1, 25), np.int32))
    with pytest.raises(ValueError, match=r"missing: visual\.proj"):
        model.encode_image({k: v for k, v in params.items() if k != "visual.proj"}, image)


def test_layout_of_every_kind_of_leaf(model):
    kinds = {name: model_lib.layout(name) for name in model.shapes()}
    matrices = (
        "attn.in_proj_weight",
        "attn.out_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    )
    blocks = ("transformer.resblocks.0.", "visual.transformer.resblocks.0.")
    linear = {block + matrix for block in blocks for matrix in matrices}
    stem = {f"visual.stem.{i}.{kind}.weight" for i in "01" for kind in ("conv", "blocks.0.conv")}
    conv = {"visual.conv1.weight"} | stem
    assert {name for name, kind in kinds.items() if kind == "linear"} == linear
    assert {name for name, kind in kinds.items() if kind == "conv"} == conv


def test_images_are_encoded_with_the_image_tower_alone(model, params, image):
    tower = {k: v for k, v in params.items() if k.startswith(model_lib.IMAGE_TOWER)}
    assert 0 < len(tower) < len(params)
    ours = jax.jit(model.encode_image)(tower, image)
    np.testing.assert_array_equal(ours, jax.jit(model.encode_image)(params, image))
    with pytest.raises(ValueError, match=r"missing: ln_final\.bias"):
        model.encode_text(tower, TOKENS)


@pytest.mark.parametrize("change", [{}, {"scan_layers": True, "remat": "full"}])
def test_image_tokens_are_what_the_tower_computes_on_its_way(image, change):
    tower = SMALL["vision"] | {"layers": 3, "stem": (4, 8), "stem_blocks": 0, "pool": "avg"}
    model = model_lib.Model(config_lib.from_config(SMALL | {"vision": tower} | change))
    params = jax.jit(model.init)(jax.random.key(1))
    params = {k: v for k, v in params.items() if k.startswith(model_lib.IMAGE_TOWER)}
    stem, blocks = ("stem.0", "stem.1"), ("resblocks.0", "resblocks.1", "resblocks.2")
    assert model.image_layers() == stem + blocks
    names = ("resblocks.2", "stem.0", "resblocks.1", "stem.1")

    @jax.jit
    def compute(params, image):
        tokens = dict(zip(names, model.image_tokens(params, image, names)))
        visual = model.module(params, model_lib.IMAGE_TOWER).visual
        stage = visual.stem[1](tokens["stem.0"].reshape(3, 16, 16, 4))
        feature = visual.ln_post(tokens["resblocks.2"]).mean(axis=1) @ visual.proj[...]
        return tokens, stage, feature, model.encode_image(params, image, normalise=False)

    tokens, stage, feature, want = compute(params, image)
    np.testing.assert_allclose(stage.reshape(3, 64, 8), tokens["stem.1"], atol=1e-5)
    np.testing.assert_allclose(feature, want, atol=1e-5)
    # A tower of two blocks ends where the second of three does.
    short = SMALL | {"vision": tower | {"layers": 2}}
    short_model = model_lib.Model(config_lib.from_config(short))
    (last,) = jax.jit(lambda p, x: short_model.image_tokens(p, x, ["resblocks.1"]))(params, image)
    assert last.shape == (3, 16, 32)
    np.testing.assert_allclose(last, tokens["resblocks.1"], atol=1e-5)
    with pytest.raises(ValueError, match=r"no layer resblocks\.3; there are stem\.0"):
        model.image_tokens(params, image, ["resblocks.3"])
