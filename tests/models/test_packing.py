"""Packed captions have the features and the gradients that they have alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.data import packing
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib
from clipdg_jax.models import text as text_lib
from clipdg_jax.training import sharding

CONFIG = {
    "name": "tiny-plain",
    "text": {"layers": 2, "width": 64, "heads": 2, "vocab_size": 99, "context_length": 24},
}


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    found = np.zeros((32, 24), np.int32)
    for row, length in zip(found, rng.integers(3, 12, 32), strict=True):
        row[:length] = [97, *rng.integers(1, 97, length - 2), 98]
    found[5] = [97, *rng.integers(1, 97, 22), 98]  # As long as there may be.
    found[7] = 0  # A record that could not be read.
    return found


def _packed(tokens, groups):
    layout = packing.layout(len(tokens), groups, 24, (0.4, 0.6))
    found = packing.pack(tokens, layout)
    assert len(found["tokens"]) < len(tokens)
    return found["tokens"], text_lib.Packing(found["positions"], found["ends"])


@pytest.mark.parametrize("change", [{}, {"scan_layers": True, "remat": "dots"}])
def test_features_and_all_gradients_are_those_of_a_row_each(tokens, change):
    model = model_lib.Model(config_lib.from_config(CONFIG | change))
    rng = np.random.default_rng(0)
    # Biases and gains that are not 0 and 1, so that no gradient is 0 by symmetry.
    params = {
        name: (rng.normal(0, 0.1, leaf.shape) + ("ln_" in name)).astype(np.float32)
        for name, leaf in model.shapes().items()
    }
    weights = rng.normal(size=(32, 128)).astype(np.float32)
    counts = np.arange(32) != 7

    @jax.jit
    def value(params, tokens, packing):
        def objective(params):
            features = model.encode_text(params, tokens, packing)
            return jnp.sum(jnp.where(counts[:, None], features * weights, 0)), features

        grads, features = jax.grad(objective, has_aux=True)(params)
        return features, {k: v for k, v in grads.items() if not k.startswith("visual.")}

    features, grads = value(params, tokens, None)
    for groups in (1, 4):
        packed_features, packed_grads = value(params, *_packed(tokens, groups))
        np.testing.assert_allclose(packed_features, features, rtol=1e-5, atol=2e-6)
        for name, grad in grads.items():
            assert name == "logit_scale" or np.abs(grad).max() > 0
            error = np.linalg.norm(packed_grads[name] - grad)
            assert error <= 1e-5 * np.linalg.norm(grad), name


def test_devices_read_their_own_rows_only(tokens):
    """Forward and backward, nothing is gathered or moved; gradients alone are summed."""
    model = model_lib.Model(
        config_lib.from_config(CONFIG | {"text": CONFIG["text"] | {"layers": 1}})
    )
    mesh = sharding.make_mesh()
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    packed, where = _packed(tokens, 8)

    def objective(params, tokens, packing):
        return model.encode_text(params, tokens, packing, normalise=False).sum()

    step = jax.jit(jax.grad(objective), in_shardings=(whole, rows, rows), out_shardings=whole)
    compiled = step.lower(model.shapes(), packed, where).compile().as_text()
    assert "all-reduce(" in compiled
    for moved in ("all-gather(", "all-to-all(", "collective-permute(", "reduce-scatter("):
        assert moved not in compiled, moved


def test_another_caption_in_the_row_cannot_matter(tokens):
    model = model_lib.Model(config_lib.from_config(CONFIG))
    params = jax.jit(model.init)(jax.random.key(0))
    encode = jax.jit(model.encode_text)
    rows, where = _packed(tokens, 1)
    before = encode(params, rows, where)
    # Other words everywhere but in the caption that ends at the first of the ends.
    end = int(where.ends[0, 0])
    length = int(where.positions.reshape(-1)[end]) + 1
    other = np.where(rows > 0, 1 + rows % 96, 0).reshape(-1)
    other[end + 1 - length : end + 1] = rows.reshape(-1)[end + 1 - length : end + 1]
    after = encode(params, other.reshape(rows.shape), where)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).max() > 1e-2


def test_flops_at_web_like_lengths():
    """A pair of ViT-B/32 at a mean of 16 tokens: at most three quarters of the unpacked one."""
    config = config_lib.PRESETS["ViT-B-32"]
    words = np.random.default_rng(0).lognormal(np.log(11.0), 0.7, 4096)
    lengths = np.clip(2 + np.rint(words), 3, 77).astype(int)
    assert lengths.mean() == pytest.approx(16, abs=0.3)
    layout = packing.layout(4096, 1, 77, (0.22, 0.28, 0.45))
    *_, needed = packing.assign(lengths, layout.columns)
    size = next(size for size in layout.sizes if size >= needed)
    packed = flops.train_flops_per_pair(config, layout.columns, size / 4096)
    assert packed <= 0.75 * flops.train_flops_per_pair(config)
