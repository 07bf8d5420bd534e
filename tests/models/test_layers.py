"""How a transformer's blocks are compiled, and their products' gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers
from clipdg_jax.models import model as model_lib


@pytest.mark.parametrize(("pool", "read"), [("tok", 1), ("avg", 5)])
def test_the_last_block_computes_what_is_read(pool, read):
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 2}
    config = config_lib.from_config({"vision": {**vision, "pool": pool}})
    model = model_lib.Model(config)
    image = jax.ShapeDtypeStruct((3, 16, 16, 3), jnp.float32)
    text = jax.jit(model.encode_image).lower(model.shapes(), image).as_text()
    # The hidden layers of the two MLPs.
    hidden = [line for line in text.splitlines() if "dot_general" in line and "x128xf32>" in line]
    assert sum("tensor<3x5x128xf32>" in line.split("->")[-1] for line in hidden) == 1 + (read == 5)
    assert sum("tensor<3x1x128xf32>" in line.split("->")[-1] for line in hidden) == (read == 1)


def test_blocks_are_computations_of_their_own_on_a_cpu():
    """Forward and backward, of either tower's three blocks: else residual sums are recomputed."""
    tower = {"width": 32, "layers": 3, "heads": 2}
    config = config_lib.from_config(
        {
            "vision": {"image_size": 16, "patch_size": 8, **tower},
            "text": {"context_length": 8, "vocab_size": 50, **tower},
        }
    )
    model = model_lib.Model(config)

    def objective(params, image, tokens):
        image, text, scale = model(params, image, tokens)
        return scale * jnp.sum(image * text)

    image = jax.ShapeDtypeStruct((3, 16, 16, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((3, 8), jnp.int32)
    compiled = jax.jit(jax.grad(objective)).lower(model.shapes(), image, tokens).compile()
    assert len(re.findall(r" call\(", compiled.as_text())) == 2 * 2 * 3


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 10), (10, 6)])
def test_the_product_on_a_cpu_has_the_plain_gradients(inputs, outputs):
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight = (
        jax.random.normal(keys[0], (2, 5, inputs)),
        jax.random.normal(keys[1], (inputs, outputs)),
    )
    dy = jax.random.normal(keys[2], (2, 5, outputs))
    found, expected = (
        jax.vjp(product, x, weight)[1](dy) for product in (layers.multiply, jnp.matmul)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
