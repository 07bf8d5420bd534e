"""FLOPs in closed form against the papers' figures and against XLA's own count."""

import jax
import numpy as np
import pytest

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import flops
from clipdg_jax.models import model as model_lib


def counted(function, *shapes):
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def test_vit_b_32_costs_what_is_published():
    """Less the last block's output projection and MLP, of tokens that nobody reads."""
    config = config_lib.PRESETS["ViT-B-32"]
    unread_image, unread_text = 49 * 18 * 768**2, 76 * 18 * 512**2
    image, text = flops.forward_flops_image(config), flops.forward_flops_text(config)
    assert round((image + unread_image) / 1e9, 2) == 8.82
    assert round((text + unread_text) / 1e9, 2) == 5.96
    assert round(3 * (image + unread_image + text + unread_text) / 1e9, 1) == 44.3
    assert round(flops.train_flops_per_pair(config) / 1e9, 1) == 41.7


# Wide enough that what the closed form leaves out, all of it elementwise, is a few per cent.
@pytest.mark.parametrize(("stem", "stem_blocks"), [((), 0), ((64, 128), 0), ((64, 128), 2)])
def test_forward_agrees_with_xla(stem, stem_blocks):
    config = config_lib.from_config(
        {
            "vision": {"image_size": 64, "patch_size": 8, "width": 512, "layers": 2, "heads": 4}
            | {"stem": stem, "stem_blocks": stem_blocks},
            "text": {"context_length": 40, "vocab_size": 100, "width": 512, "layers": 2},
        }
    )
    model = model_lib.Model(config)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    tokens = jax.ShapeDtypeStruct((2, 25), np.int32)
    xla_image = counted(model.encode_image, model.shapes(), image) / 2
    xla_text = counted(model.encode_text, model.shapes(), tokens) / 2
    assert flops.forward_flops_image(config) == pytest.approx(xla_image, rel=0.03)
    assert flops.forward_flops_text(config, 25) == pytest.approx(xla_text, rel=0.03)


def test_training_is_three_times_forward():
    config = config_lib.from_config(
        {"embed_dim": 512, "text": {"context_length": 32, "vocab_size": 100, "layers": 2}}
    )
    model = model_lib.Model(config)

    def objective(params, tokens):
        return model.encode_text(params, tokens, normalise=False).sum()

    tokens = jax.ShapeDtypeStruct((2, 32), np.int32)
    xla = counted(jax.value_and_grad(objective), model.shapes(), tokens) / 2
    image = flops.forward_flops_image(config)
    assert flops.train_flops_per_pair(config) - 3 * image == pytest.approx(xla, rel=0.05)
