"""What a CLIP is made of: the configuration, the named presets, and their checks.

The names and figures of the `ViT-*` presets are open_clip's. The `tiny*` presets are ours: they
are meant for images of 32 or 64 pixels and for training on a laptop's processor.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from clipdg_jax import errors

# OpenAI's image statistics, used by every CLIP since.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

ACTIVATIONS = ("gelu", "quick_gelu")
DTYPES = ("float32", "bfloat16")
POOLS = ("tok", "avg")
REMATS = ("none", "full", "dots")
KERNELS = ("auto", "xla")

# Fields that change how the model is computed, not which function it is.
OPERATIONAL = ("dtype", "remat", "scan_layers", "kernels")


@dataclasses.dataclass(frozen=True, slots=True)
class VisionConfig:
    """The image tower, a ViT.

    image_size: side of the square input, pixels.
    patch_size: side of the square that becomes one token, pixels.
    mlp_ratio: hidden width of the MLP over `width`.
    pool: "tok" reads the class token, "avg" the mean of the other tokens.
    stem: output channels of 3x3 convolutions with stride 2 before the patches are cut; none in
        open_clip. n of them shrink the image 2**n times, so `patch_size` is a multiple of 2**n.
    stem_blocks: residual 3x3 convolutions after each of those.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "tok"
    stem: tuple[int, ...] = ()
    stem_blocks: int = 0

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Length of the sequence: the grid's cells and the class token."""
        return self.grid**2 + 1


@dataclasses.dataclass(frozen=True, slots=True)
class TextConfig:
    """The text tower, a causal transformer.

    context_length: longest caption, tokens. vocab_size: rows of the embedding.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0


@dataclasses.dataclass(frozen=True, slots=True)
class ClipConfig:
    """Both towers and what they share.

    embed_dim: size of the common feature space.
    activation: "gelu" (exact) or "quick_gelu" (x * sigmoid(1.702 x), OpenAI's weights).
    mean, std: per channel, of pixels in [0, 1]; uint8 images are normalised with them.
    init_logit_scale: log of the initial inverse temperature.
    dtype: of the towers' arithmetic; parameters, LayerNorm, softmax and features are float32.
    remat: what the backward pass recomputes: "none", "full" (each block from its input) or
        "dots" (normalisations and activations: what takes memory and little time).
    scan_layers: compile one block and scan over the layers (same result). A pre-training's step
        then compiles sooner, above all for TPUs, and runs no faster.
    kernels: "auto" takes our own for attention and LayerNorm (`models.kernels`), or cuDNN's for the
        attention of longer sequences, where they can be had: in bfloat16 on NVIDIA GPUs since
        Ampere. "xla" never does.
    """

    embed_dim: int = 512
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    activation: str = "gelu"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    init_logit_scale: float = math.log(1 / 0.07)
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    kernels: str = "auto"

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, nested, of JSON types; `from_config` reads it back."""
        return _jsonable(dataclasses.asdict(self))

    @property
    def architecture(self) -> dict[str, Any]:
        """What makes two sets of parameters interchangeable: to_dict() without OPERATIONAL."""
        return {k: v for k, v in self.to_dict().items() if k not in OPERATIONAL}


def _check(config: ClipConfig) -> None:
    """Raises UserError for a configuration that no model can have."""

    def require(holds: bool, field: str, message: str) -> None:
        if not holds:
            raise errors.UserError(f"config.model.{field}: {message}")

    def one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
        require(value in choices, field, f"{value!r} is none of {', '.join(choices)}")

    vision, text = config.vision, config.text
    positive = {
        "embed_dim": config.embed_dim,
        "vision.image_size": vision.image_size,
        "vision.patch_size": vision.patch_size,
        "text.context_length": text.context_length,
        "text.vocab_size": text.vocab_size,
    }
    for tower, part in (("vision", vision), ("text", text)):
        positive |= {
            f"{tower}.{name}": getattr(part, name)
            for name in ("width", "layers", "heads", "mlp_ratio")
        }
    positive |= {f"vision.stem[{i}]": channels for i, channels in enumerate(vision.stem)}
    for field, value in positive.items():
        require(value > 0, field, f"{value} is not positive")
    for tower, part in (("vision", vision), ("text", text)):
        require(
            part.width % part.heads == 0,
            f"{tower}.width",
            f"{part.width} is not divisible by {part.heads} heads",
        )
    require(
        vision.image_size % vision.patch_size == 0,
        "vision.image_size",
        f"{vision.image_size} is not divisible by patch_size {vision.patch_size}",
    )
    shrink = 2 ** len(vision.stem)
    require(
        vision.patch_size % shrink == 0,
        "vision.patch_size",
        f"{vision.patch_size} is not divisible by {shrink}, by which the stem of"
        f" {len(vision.stem)} convolutions shrinks the image",
    )
    require(
        vision.stem_blocks == 0 or (vision.stem_blocks > 0 and bool(vision.stem)),
        "vision.stem_blocks",
        f"{vision.stem_blocks} is not 0, nor a positive number beside a stem",
    )
    one_of("vision.pool", vision.pool, POOLS)
    one_of("activation", config.activation, ACTIVATIONS)
    one_of("dtype", config.dtype, DTYPES)
    one_of("remat", config.remat, REMATS)
    one_of("kernels", config.kernels, KERNELS)
    require(len(config.mean) == 3, "mean", f"{config.mean} is not one value for each of 3 channels")
    require(
        len(config.std) == 3 and min(config.std) > 0,
        "std",
        f"{config.std} is not one positive value for each of 3 channels",
    )


def _jsonable(value: Any) -> Any:
    """Tuples as lists, all the way down, so that a round trip through JSON changes nothing."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return value


_B32 = ClipConfig()
_B16 = ClipConfig(vision=VisionConfig(patch_size=16))
_L14 = ClipConfig(
    embed_dim=768,
    vision=VisionConfig(patch_size=14, width=1024, layers=24, heads=16),
    text=TextConfig(width=768, heads=12),
)
_TINY_TEXT = TextConfig(context_length=16, vocab_size=2048, width=128, layers=1, heads=4)
_TINY = ClipConfig(
    embed_dim=128,
    vision=VisionConfig(
        image_size=32,
        patch_size=8,
        width=128,
        layers=1,
        heads=4,
        pool="avg",
        stem=(32, 64, 128),
        stem_blocks=2,
    ),
    text=_TINY_TEXT,
)

PRESETS: dict[str, ClipConfig] = {
    "ViT-B-32": _B32,
    "ViT-B-16": _B16,
    "ViT-L-14": _L14,
    **{
        f"{name}-quickgelu": dataclasses.replace(config, activation="quick_gelu")
        for name, config in (("ViT-B-32", _B32), ("ViT-B-16", _B16), ("ViT-L-14", _L14))
    },
    # With a convolutional stem, which learns much faster from little data.
    "tiny": _TINY,
    "tiny-64": dataclasses.replace(
        _TINY,
        vision=dataclasses.replace(
            _TINY.vision, image_size=64, patch_size=16, stem=(16, 32, 64, 128)
        ),
    ),
    # Without: small, yet open_clip can load it.
    "tiny-plain": dataclasses.replace(
        _TINY,
        vision=dataclasses.replace(
            _TINY.vision, patch_size=4, layers=2, pool="tok", stem=(), stem_blocks=0
        ),
    ),
}


def from_config(mapping: Mapping[str, Any]) -> ClipConfig:
    """The configuration of `config.model`: a preset's name and what differs from it.

    mapping: {"name": a key of PRESETS (default ViT-B-32), any field of ClipConfig, "vision" and
        "text" as nested mappings}. None means: as in the preset.
    Raises UserError, naming the field, for an unknown name or field, a value of the wrong type, or
    a combination that no model can have.
    """
    given = dict(mapping.items())
    name = given.pop("name", None) or "ViT-B-32"
    if name not in PRESETS:
        raise errors.UserError(
            f"config.model.name: no model {name!r}; there are {', '.join(PRESETS)}"
        )
    return _override(PRESETS[name], given, "config.model.")


def _override(base: Any, given: Mapping[str, Any], prefix: str) -> Any:
    """`base`, a dataclass instance, with the values of `given` that are not None."""
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in given.items():
        field = f"{prefix}{key}"
        if key not in hints:
            raise errors.UserError(f"{field}: no such field; there are {', '.join(hints)}")
        if value is None:
            continue
        if dataclasses.is_dataclass(hints[key]):
            if not hasattr(value, "items"):
                raise errors.UserError(f"{field}: {value!r} is not a mapping of fields")
            changes[key] = _override(getattr(base, key), dict(value.items()), f"{field}.")
        else:
            changes[key] = _convert(value, hints[key], field)
    return dataclasses.replace(base, **changes)


def _convert(value: Any, hint: Any, field: str) -> Any:
    """`value` as the type `hint`: int, float, bool, str or tuple[item, ...]."""
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(item, typing.get_args(hint)[0], field) for item in value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    wanted = "list" if typing.get_origin(hint) is tuple else hint.__name__
    raise errors.UserError(f"{field}: {value!r} is not of type {wanted}")
