"""Presets, overrides, and the one-line errors for what no model can be."""

import json

import ml_collections
import pytest

from clipdg_jax import errors
from clipdg_jax.models import config as config_lib


@pytest.mark.parametrize("name", config_lib.PRESETS)
def test_survives_json(name):
    config = config_lib.PRESETS[name]
    assert config_lib.from_config(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides_reach_both_towers_and_none_keeps_the_preset():
    given = ml_collections.ConfigDict(
        {
            "name": "tiny",
            "dtype": "bfloat16",
            "embed_dim": None,
            "vision": {"width": 64, "stem": (8, 16), "mlp_ratio": 2},
            "text": {"layers": 1, "heads": None},
        }
    )
    preset, config = config_lib.PRESETS["tiny"], config_lib.from_config(given)
    assert (config.dtype, config.embed_dim) == ("bfloat16", preset.embed_dim)
    assert (config.vision.width, config.vision.stem, config.vision.layers) == (64, (8, 16), 1)
    assert (config.vision.mlp_ratio, type(config.vision.mlp_ratio)) == (2.0, float)
    assert (config.text.layers, config.text.heads) == (1, preset.text.heads)


def test_architecture_is_what_the_function_depends_on():
    base = config_lib.from_config({"name": "ViT-B-32"}).architecture
    same = {"dtype": "bfloat16", "remat": "full", "scan_layers": True}
    assert config_lib.from_config({"name": "ViT-B-32"} | same).architecture == base
    for other in ({"activation": "quick_gelu"}, {"std": [1, 1, 1]}, {"vision": {"pool": "avg"}}):
        assert config_lib.from_config({"name": "ViT-B-32"} | other).architecture != base


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "ViT-Q-1"}, "config.model.name"),
        ({"embeddim": 3}, "config.model.embeddim"),
        ({"vision": {"widht": 3}}, "config.model.vision.widht"),
        ({"vision": 3}, "config.model.vision"),
        ({"text": {"layers": "12"}}, "config.model.text.layers"),
        ({"text": {"layers": True}}, "config.model.text.layers"),
        ({"text": {"layers": 0}}, "config.model.text.layers"),
        ({"scan_layers": 1}, "config.model.scan_layers"),
        ({"vision": {"image_size": 225}}, "config.model.vision.image_size"),
        ({"vision": {"width": 770}}, "config.model.vision.width"),
        ({"text": {"heads": 7}}, "config.model.text.width"),
        ({"vision": {"stem": [8] * 6}}, "config.model.vision.patch_size"),
        ({"vision": {"stem": [8, -1]}}, "config.model.vision.stem"),
        ({"vision": {"stem_blocks": 1}}, "config.model.vision.stem_blocks"),
        ({"vision": {"stem_blocks": -1}}, "config.model.vision.stem_blocks"),
        ({"vision": {"stem": "8,16"}}, "config.model.vision.stem"),
        ({"vision": {"pool": "max"}}, "config.model.vision.pool"),
        ({"activation": "relu"}, "config.model.activation"),
        ({"dtype": "float16"}, "config.model.dtype"),
        ({"remat": True}, "config.model.remat"),
        ({"std": [1.0, 0.0, 1.0]}, "config.model.std"),
        ({"mean": [1.0]}, "config.model.mean"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(given, field):
    with pytest.raises(errors.UserError) as caught:
        config_lib.from_config(given)
    message = str(caught.value)
    assert message.startswith(field)
    assert "\n" not in message
