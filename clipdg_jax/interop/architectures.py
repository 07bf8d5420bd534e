"""What the files beside weights say about the model: open_clip's and Hugging Face's configurations.

A field that we have no counterpart of is accepted where it holds the value that means "not used",
and refused otherwise: a model that is nearly the right one gives numbers that are nearly right.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from clipdg_jax.errors import UserError
from clipdg_jax.models import config as config_lib

OPEN_CLIP_FILE, HUGGING_FACE_FILE = "open_clip_config.json", "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"  # beside Hugging Face's: mean and std

# Fields of open_clip's that change no function here: of training, of tokenisers, of loading.
_ASIDE = {
    *("patch_dropout", "output_tokens", "eos_id", "pad_id", "init_logit_scale", "init_logit_bias"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "attn_pooler_queries"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path", "timm_pool", "timm_proj"),
    *("timm_proj_bias", "attn_pooler_heads"),
}
# What stands for "not used", besides None and False.
_UNUSED = {"pos_embed_type": "learnable", "proj_type": "linear", "pool_type": "argmax"}


def from_open_clip(document: Mapping[str, Any], where: str) -> config_lib.ClipConfig:
    """The configuration of `open_clip_config.json`, or of one of open_clip's model configs.

    Raises:
      UserError: it is incomplete, or of a model that we do not have; the field is named.
    """
    cfg = document.get("model_cfg", document)
    preprocess = document.get("preprocess_cfg", {})
    vision, text = (_section(cfg, name, where) for name in ("vision_cfg", "text_cfg"))
    width = vision.get("width", 768)
    fields: dict[str, Any] = {
        "embed_dim": _needed(cfg, "embed_dim", where),
        "activation": "quick_gelu" if cfg.get("quick_gelu", False) else "gelu",
        "vision": {
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 16),
            "width": width,
            "layers": vision.get("layers", 12),
            "heads": width // vision.get("head_width", 64),
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
            "pool": vision.get("pool_type", "tok"),
        },
        "text": {
            "context_length": text.get("context_length", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "width": text.get("width", 512),
            "layers": text.get("layers", 12),
            "heads": text.get("heads", 8),
            "mlp_ratio": text.get("mlp_ratio", 4.0),
        },
        "mean": list(preprocess.get("mean", config_lib.MEAN)),
        "std": list(preprocess.get("std", config_lib.STD)),
    }
    ours = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
    _refuse_others(cfg, ours, "model_cfg", where)
    _refuse_others(vision, {*fields["vision"], "head_width", "pool_type"}, "vision_cfg", where)
    _refuse_others(text, set(fields["text"]), "text_cfg", where)
    for name, value in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if preprocess.get(name, value) != value:
            raise UserError(
                f"{where}: preprocess_cfg.{name} is {preprocess[name]!r}; images are prepared "
                f"with {value!r} only"
            )
    return _build(fields, where)


def to_open_clip(config: config_lib.ClipConfig, bias: bool = False) -> dict[str, Any]:
    """`open_clip_config.json` of a model, which `open_clip.create_model("local-dir:..")` reads.

    Args:
      config: the model's.
      bias: whether it has the sigmoid loss's `logit_bias`.

    Raises:
      UserError: open_clip has no such model; the field is named.
    """
    vision, text = config.vision, config.text
    _exportable(config, "open_clip")
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            **({"init_logit_bias": 0.0} if bias else {}),
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.layers,
                "head_width": vision.width // vision.heads,
                "mlp_ratio": vision.mlp_ratio,
                "pool_type": vision.pool,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "mlp_ratio": text.mlp_ratio,
            },
        },
        "preprocess_cfg": {
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def from_hugging_face(
    document: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> config_lib.ClipConfig:
    """The configuration of a CLIPModel's `config.json` (and its `preprocessor_config.json`).

    Fields that are absent have the values of Hugging Face's CLIPConfig, whose activation is
    QuickGELU. Raises UserError as `from_open_clip`.
    """
    if document.get("model_type") != "clip":
        raise UserError(
            f"{where}: is of a {document.get('model_type')!r} model; only 'clip' is known"
        )
    towers: dict[str, dict[str, Any]] = {}
    activations = set()
    for name, key, width, heads in (("vision", "vision_config", 768, 12),
                                    ("text", "text_config", 512, 8)):  # fmt: skip
        # Old files repeat the section, completed, as `.._config_dict`.
        given = {**(document.get(key) or {}), **(document.get(f"{key}_dict") or {})}
        hidden = given.get("hidden_size", width)
        towers[name] = {
            "width": hidden,
            "layers": given.get("num_hidden_layers", 12),
            "heads": given.get("num_attention_heads", heads),
            "mlp_ratio": given.get("intermediate_size", 4 * width) / hidden,
        }
        activations.add(given.get("hidden_act", "quick_gelu"))
        if given.get("layer_norm_eps", 1e-5) != 1e-5:
            raise UserError(f"{where}: {key}.layer_norm_eps is not 1e-5; no such model is known")
        if name == "vision":
            towers[name] |= {
                "image_size": given.get("image_size", 224),
                "patch_size": given.get("patch_size", 32),
            }
        else:
            towers[name] |= {
                "context_length": given.get("max_position_embeddings", 77),
                "vocab_size": given.get("vocab_size", 49408),
            }
    if len(activations) > 1 or not activations <= set(config_lib.ACTIVATIONS):
        raise UserError(
            f"{where}: hidden_act is {' and '.join(sorted(activations))}; both towers must have "
            f"the same of {', '.join(config_lib.ACTIVATIONS)}"
        )
    fields = {
        "embed_dim": document.get("projection_dim", 512),
        "activation": activations.pop(),
        "mean": list(preprocessor.get("image_mean", config_lib.MEAN)),
        "std": list(preprocessor.get("image_std", config_lib.STD)),
        **towers,
    }
    return _build(fields, where)


def to_hugging_face(config: config_lib.ClipConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json` and `preprocessor_config.json` of a model.

    Raises:
      UserError: Hugging Face's CLIPModel cannot be this model; the field is named.
    """
    _exportable(config, "hugging_face")
    vision, text = config.vision, config.text
    if vision.pool != "tok":
        raise UserError(f"model.vision.pool: {vision.pool!r}, but CLIPModel reads the class token")
    shared = {"hidden_act": config.activation, "layer_norm_eps": 1e-5}

    def tower(part: config_lib.VisionConfig | config_lib.TextConfig) -> dict[str, Any]:
        return shared | {
            "hidden_size": part.width,
            "intermediate_size": int(part.width * part.mlp_ratio),
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "projection_dim": config.embed_dim,
        }

    document = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.init_logit_scale,
        "vision_config": tower(vision)
        | {"image_size": vision.image_size, "patch_size": vision.patch_size},
        # With eos_token_id 2 the library reads the feature at the largest id, as CLIP does.
        "text_config": tower(text)
        | {
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "eos_token_id": 2,
        },
    }
    size = vision.image_size
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    return document, preprocessor


def beside(weights: pathlib.Path, form: str) -> tuple[config_lib.ClipConfig, str] | None:
    """The configuration in the directory of the weights, and its file; None if there is none."""
    name = OPEN_CLIP_FILE if form == "open_clip" else HUGGING_FACE_FILE
    path = weights.parent / name
    if not path.is_file():
        return None
    document = read_json(path)
    if form == "open_clip":
        return from_open_clip(document, str(path)), str(path)
    other = weights.parent / PREPROCESSOR_FILE
    preprocessor = read_json(other) if other.is_file() else {}
    return from_hugging_face(document, preprocessor, str(path)), str(path)


def _exportable(config: config_lib.ClipConfig, form: str) -> None:
    if config.vision.stem:
        raise UserError(
            f"model.vision.stem: {list(config.vision.stem)}; a model with a convolutional stem is "
            f"ours alone, and {form} has none: train one without, such as tiny-plain or ViT-B-32"
        )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where it is damaged or not there."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); mend or remove it") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: is not a JSON object; mend or remove it")
    return document


def _needed(section: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in section:
        raise UserError(f"{where}: has no {name}; give the model's whole configuration")
    return section[name]


def _section(cfg: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    section = _needed(cfg, name, where)
    if not isinstance(section, dict):
        raise UserError(f"{where}: {name} is not an object; give the model's whole configuration")
    return section


def _refuse_others(section: Mapping[str, Any], known: set[str], name: str, where: str) -> None:
    for field, value in section.items():
        unused = value in (None, False, _UNUSED.get(field))
        if field not in known and field not in _ASIDE and not unused:
            raise UserError(
                f"{where}: {name}.{field} is {value!r}; no such model is known here, only CLIP's "
                "ViT with its own text tower"
            )


def _build(fields: Mapping[str, Any], where: str) -> config_lib.ClipConfig:
    try:
        return config_lib.from_config(fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
