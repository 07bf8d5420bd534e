"""Fresh parameters: open_clip's distributions, one stream of random numbers for each name."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib

VW, TW, TL, PATCH = 96, 64, 2, 8
CONFIG = {
    "embed_dim": 48,
    "vision": {"image_size": 80, "patch_size": PATCH, "width": VW, "layers": 1, "heads": 3},
    "text": {"context_length": 77, "vocab_size": 300, "width": TW, "layers": TL, "heads": 2},
}
VB, TB = r"visual\.transformer\.resblocks\.\d\.", r"transformer\.resblocks\.\d\."
OUT = TW**-0.5 * (2 * TL) ** -0.5

# Name -> distribution and its scale (standard deviation, or bound), as in open_clip 2.24.
TABLE = {
    r"logit_scale": ("constant", np.log(1 / 0.07)),
    r".*ln_\w+\.weight": ("constant", 1.0),
    r".*ln_\w+\.bias": ("constant", 0.0),
    r".*attn\.(in_proj_|out_proj\.)bias": ("constant", 0.0),
    r"token_embedding\.weight": ("normal", 0.02),
    r"positional_embedding": ("normal", 0.01),
    r"text_projection": ("normal", TW**-0.5),
    TB + r"attn\.in_proj_weight": ("normal", TW**-0.5),
    TB + r"attn\.out_proj\.weight": ("normal", OUT),
    TB + r"mlp\.c_fc\.weight": ("normal", (2 * TW) ** -0.5),
    TB + r"mlp\.c_proj\.weight": ("normal", OUT),
    TB + r"mlp\.c_fc\.bias": ("uniform", TW**-0.5),
    TB + r"mlp\.c_proj\.bias": ("uniform", (4 * TW) ** -0.5),
    r"visual\.conv1\.weight": ("uniform", (3 * PATCH**2) ** -0.5),
    r"visual\.(class_embedding|positional_embedding|proj)": ("normal", VW**-0.5),
    VB + r"attn\.in_proj_weight": ("uniform", (6 / (4 * VW)) ** 0.5),
    VB + r"attn\.out_proj\.weight": ("uniform", VW**-0.5),
    VB + r"mlp\.c_fc\.(weight|bias)": ("uniform", VW**-0.5),
    VB + r"mlp\.c_proj\.(weight|bias)": ("uniform", (4 * VW) ** -0.5),
}


def build(**overrides):
    return model_lib.Model(config_lib.from_config(CONFIG | overrides))


@pytest.fixture(scope="module")
def params():
    return jax.jit(build().init)(jax.random.key(0))


def test_every_leaf_has_its_distribution(params):
    for name, leaf in params.items():
        kinds = [kind for pattern, kind in TABLE.items() if re.fullmatch(pattern, name)]
        assert len(kinds) == 1, name
        [(kind, scale)] = kinds
        values = np.asarray(leaf, np.float64).ravel()
        if kind == "constant":
            np.testing.assert_allclose(values, scale, rtol=1e-6, err_msg=name)
            continue
        std = scale if kind == "normal" else scale / 3**0.5
        # Relative standard error of a standard deviation: sqrt((kurtosis - 1) / 4n).
        error = np.sqrt((3 if kind == "normal" else 1.8) - 1) / np.sqrt(4 * values.size)
        assert abs(values.std() / std - 1) < 4.5 * error, name
        assert abs(values.mean()) < 4.5 * std / np.sqrt(values.size), name
        if kind == "uniform":
            assert np.abs(values).max() <= scale, name
        elif values.size > 1000:
            assert np.abs(values).max() > 2.5 * std, name


def test_no_two_leaves_are_drawn_alike(params):
    leaves = [np.asarray(leaf) for leaf in params.values()]
    firsts = [float(leaf.ravel()[0] / leaf.std()) for leaf in leaves if leaf.std() > 0]
    assert len(firsts) == len(set(firsts)) > 20


def test_a_leaf_does_not_depend_on_the_others(params):
    deeper = build(vision=CONFIG["vision"] | {"layers": 2}, activation="quick_gelu")
    assert params.keys() < deeper.shapes().keys()
    some = [name for name in params if name.startswith(("visual.transformer", "token"))]
    drawn = jax.jit(lambda key: [deeper.init(key)[name] for name in some])(jax.random.key(0))
    for name, leaf in zip(some, drawn):
        np.testing.assert_array_equal(leaf, params[name], err_msg=name)


def test_nor_on_the_devices(params):
    model = build()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(leaf):
        split = leaf.ndim == 2 and leaf.shape[0] % 8 == 0
        spec = jax.sharding.PartitionSpec(*(["data"] if split else []))
        return jax.sharding.NamedSharding(mesh, spec)

    shardings = {name: place(leaf) for name, leaf in model.shapes().items()}
    assert any(not sharding.is_fully_replicated for sharding in shardings.values())
    sharded = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, sharded[name], err_msg=name)


def test_shapes_are_those_of_init(params):
    shapes = build().shapes()
    assert list(shapes) == sorted(params)
    for name, leaf in params.items():
        assert (shapes[name].shape, shapes[name].dtype) == (leaf.shape, jnp.float32)


def test_names_hash_apart():
    names = model_lib.Model(config_lib.PRESETS["ViT-L-14"]).shapes()
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)
