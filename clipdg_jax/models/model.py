"""CLIP as pure functions of a flat dictionary of parameters.

Parameters are a `dict[str, Array]`, float32, keyed by open_clip's state_dict names
(`visual.conv1.weight`, `transformer.resblocks.0.attn.in_proj_weight`, `logit_scale`, ...), one
for each layer. Training, checkpoints and weight conversion know nothing else of the model.
"""

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from clipdg_jax.models import clip
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import text as text_lib

Params = dict[str, Array]

# What the names of the image tower's parameters start with.
IMAGE_TOWER = "visual."

# How a leaf relates to torch's: ours = torch's transposed by these axes.
#   kind        torch                    ours               leaves
#   "linear"    [out, in]                [in, out]          *.in_proj_weight, *.out_proj.weight,
#                                                           *.c_fc.weight, *.c_proj.weight
#   "conv"      [out, in, kh, kw]        [kh, kw, in, out]  visual.conv1.weight,
#                                                           visual.stem.*.conv.weight
#   "same"      as ours                                     everything else: vectors, scalars,
#               (embeddings [rows, width]; visual.proj and text_projection [width, embed_dim])
LAYOUTS: dict[str, tuple[int, ...] | None] = {
    "linear": (1, 0),
    "conv": (2, 3, 1, 0),
    "same": None,
}
_LINEAR = ("in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
_CONV = ("conv.weight", "conv1.weight")


def layout(name: str) -> str:
    """The kind of the leaf `name`, a key of LAYOUTS."""
    if name.endswith(_LINEAR):
        return "linear"
    return "conv" if name.endswith(_CONV) else "same"


def name_of(path: tuple) -> str:
    """open_clip's name of the parameter at an NNX path."""
    return ".".join(str(part) for part in path).removeprefix("text.")


class Model:
    """A CLIP of the given configuration. Holds no values: every method takes the parameters.

    Arguments that are arrays may be traced; all methods work inside `jax.jit`.
    """

    def __init__(self, config: config_lib.ClipConfig):
        self.config = config
        # The module is abstract: its parameters are shapes, with the initialiser as metadata.
        self._graph, params, rest = nnx.split(clip.CLIP(config), nnx.Param, ...)
        if jax.tree.leaves(rest):
            raise ValueError(f"modules hold parameters only, not {rest}")
        flat = {name_of(path): (path, variable) for path, variable in nnx.to_flat_state(params)}
        # In a fixed order: checksums and listings follow it.
        self._paths = {name: flat[name][0] for name in sorted(flat)}
        self._variables = {name: flat[name][1] for name in sorted(flat)}

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every parameter, in the order of the names."""
        return {
            name: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
            for name, variable in self._variables.items()
        }

    def num_params(self) -> int:
        """How many numbers there are in all parameters together."""
        return sum(leaf.size for leaf in self.shapes().values())

    def init(self, key: Array) -> Params:
        """Fresh parameters, distributed as open_clip's.

        A leaf's value depends on `key`, its own name and its shape only: not on the other leaves,
        nor on the devices that it is laid out on by `jit(model.init, out_shardings=...)`.
        """
        # Leaves of one shape and distribution are drawn in one go: many times faster to compile.
        groups: dict[tuple, list[str]] = {}
        for name, variable in self._variables.items():
            group = (variable.shape, variable.get_metadata()["init"])
            groups.setdefault(group, []).append(name)
        params: Params = {}
        for (shape, initializer), names in groups.items():
            hashes = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
            draws = jax.vmap(functools.partial(initializer, shape=shape))(keys)
            params |= {name: draws[i] for i, name in enumerate(names)}
        return {name: params[name] for name in self._variables}

    def module(self, params: Params, prefix: str = "") -> clip.CLIP:
        """The NNX module with these parameters in it.

        Entries that are not the model's, such as a loss's bias or a classifier, are left aside.
        Only the parameters whose names start with `prefix` need be there; where others are
        missing, what uses them cannot be called.
        """
        missing = {name for name in self._paths if name.startswith(prefix)} - params.keys()
        if missing:
            raise ValueError(f"parameters missing: {', '.join(sorted(missing)[:5])}")
        shapes = self.shapes()
        tree: dict = {}
        for name, path in self._paths.items():
            inner = functools.reduce(lambda node, part: node.setdefault(part, {}), path[:-1], tree)
            inner[path[-1]] = params.get(name, shapes[name])
        return nnx.merge(self._graph, tree)

    def encode_image(
        self,
        params: Params,
        image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        normalise: bool = True,
    ) -> Float[Array, "b e"]:
        """float32 features of images, of length 1 unless `normalise` is False.

        params: of the image tower (`IMAGE_TOWER`) at least.
        image: uint8 RGB, normalised here with the configured mean and std; or float, already so.
        """
        features = self.module(params, IMAGE_TOWER).visual(self._inputs(image))
        return clip.normalise(features) if normalise else features.astype(jnp.float32)

    def _inputs(
        self, image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]
    ) -> Float[Array, "b h w 3"]:
        """Images as the tower takes them: checked, normalised if they are bytes, and cast."""
        size = self.config.vision.image_size
        if image.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {image.shape[1:]}, the model takes {(size, size, 3)}")
        if image.dtype == jnp.uint8:
            mean = jnp.asarray(self.config.mean, jnp.float32).reshape(1, 1, 1, 3)
            std = jnp.asarray(self.config.std, jnp.float32).reshape(1, 1, 1, 3)
            image = (image.astype(jnp.float32) / 255 - mean) / std
        return image.astype(self.config.dtype)

    def image_layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs `image_tokens` gives, in their order.

        `stem.N`, the stages of the convolutional stem where there is one, and `resblocks.N`.
        """
        c = self.config.vision
        stem = tuple(f"stem.{i}" for i in range(len(c.stem)))
        return stem + tuple(f"resblocks.{i}" for i in range(c.layers))

    def image_tokens(
        self,
        params: Params,
        image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        names: Sequence[str],
    ) -> list[Float[Array, "b n d"]]:
        """float32 outputs of the named layers (of `image_layers`), in the order asked for.

        image: as for `encode_image`. A row of the result is a patch, or a pixel of a stem stage's
        output; there is no class token. What lies behind the last named layer is not computed.
        """
        unknown = [name for name in names if name not in self.image_layers()]
        if unknown:
            raise ValueError(f"no layer {unknown[0]}; there are {', '.join(self.image_layers())}")
        found = self.module(params, IMAGE_TOWER).visual.activations(self._inputs(image), names)
        return [found[name].astype(jnp.float32) for name in names]

    def encode_text(
        self,
        params: Params,
        tokens: Int[Array, "r n"],
        packing: text_lib.Packing | None = None,
        normalise: bool = True,
    ) -> Float[Array, "b e"]:
        """float32 features of captions, of length 1 unless `normalise` is False.

        tokens: without `packing` a caption in each row, SOT .. EOT and zeros, at most
            `context_length` columns; every row holds an EOT.
        packing: where the captions lie in the rows, which are then of any length.
        """
        limit = self.config.text.context_length
        if packing is None:
            if tokens.shape[1] > limit:
                raise ValueError(f"captions have {tokens.shape[1]} tokens, the model takes {limit}")
            packing = text_lib.one_per_row(tokens)
        features = self.module(params).text(tokens, packing)
        return clip.normalise(features) if normalise else features.astype(jnp.float32)

    def __call__(
        self,
        params: Params,
        image: Array,
        tokens: Int[Array, "r n"],
        packing: text_lib.Packing | None = None,
    ) -> tuple[Float[Array, "b e"], Float[Array, "b e"], Float[Array, ""]]:
        """Both features and the scale exp(logit_scale) by which the losses multiply the cosines."""
        scale = jnp.exp(params["logit_scale"])
        text = self.encode_text(params, tokens, packing)
        return self.encode_image(params, image), text, scale
