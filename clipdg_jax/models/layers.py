"""The parts of a transformer, as in open_clip: Flax NNX modules that hold parameters only.

A module declares its parameters, by shape and initialiser; it is not given values when built.
`model.Model` draws them, one key for each name, and puts them in. Attributes carry open_clip's
names, so that the path of a parameter is its name in open_clip's state_dict.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint
from jax.experimental import xla_metadata
from jaxtyping import Array, Bool, Float

from clipdg_jax.models.kernels import attention as attention_kernel
from clipdg_jax.models.kernels import common, norm

Activation = Callable[[Array], Array]
# Takes some tokens out of rows of them: [b, n, d] -> [c, m, d].
Read = Callable[[Array], Array]
EPS = 1e-5  # of torch's LayerNorm
_KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A distribution of initial values; equal ones are drawn together.

    kind: "constant" `scale`, "normal" N(0, scale^2), or "uniform" on [-scale, scale].
    """

    kind: str
    scale: float

    def __call__(self, key: Array, shape: tuple[int, ...]) -> Array:
        if self.kind == "constant":
            return jnp.full(shape, self.scale, jnp.float32)
        if self.kind == "normal":
            return self.scale * jax.random.normal(key, shape, jnp.float32)
        return jax.random.uniform(key, shape, jnp.float32, -self.scale, self.scale)


constant = functools.partial(Initializer, "constant")
normal = functools.partial(Initializer, "normal")
uniform = functools.partial(Initializer, "uniform")


def param(shape: tuple[int, ...], init: Initializer) -> nnx.Param:
    """A float32 parameter to be: its shape, and the `init` that will draw it."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), init=init)


def keep(x: Array) -> Array:
    """x, one of the values that the backward pass finds again where `remat` is "dots"."""
    return ad_checkpoint.checkpoint_name(x, _KEPT)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact: x P(N(0,1) < x), in float32; its gradient needs nothing but x.

    Through erf as in torch (JAX goes through erfc, slower on a CPU).
    """
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y)).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_gradient(x: Array, dy: Array) -> tuple[Array]:
    y = x.astype(jnp.float32)
    slope = _normal_cdf(y) + y * jnp.exp(-0.5 * y * y) * (2 * math.pi) ** -0.5
    return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)


def quick_gelu(x: Array) -> Array:
    """OpenAI's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Activation] = {"gelu": gelu, "quick_gelu": quick_gelu}


class LayerNorm(nnx.Module):
    """Normalises the last axis, in float32 whatever the input's type, which the output keeps."""

    def __init__(self, width: int):
        self.weight = param((width,), constant(1.0))
        self.bias = param((width,), constant(0.0))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return layer_norm(x, self.weight[...], self.bias[...])


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "*b d"], weight: Float[Array, " d"], bias: Float[Array, " d"]
) -> Float[Array, "*b d"]:
    """(x - mean) / sqrt(variance + EPS) * weight + bias; its gradient needs x and weight only."""
    normalised, _ = _normalised(x, (-1,))
    return (normalised * _last(weight, x) + _last(bias, x)).astype(x.dtype)


def _normalised(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x with mean 0 and variance 1 over these axes, float32, and what it was multiplied by."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axes, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + EPS)
    return y * scale, scale


def _last(vector: Array, x: Array) -> Array:
    """A vector along the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _layer_norm_gradients(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    x, weight = kept
    normalised, scale = _normalised(x, (-1,))
    dy = dy.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    d = dy * _last(weight, x)
    slope = (d * normalised).mean(-1, keepdims=True)
    dx = (d - d.mean(-1, keepdims=True) - normalised * slope) * scale
    return dx.astype(x.dtype), (dy * normalised).sum(rows), dy.sum(rows)


layer_norm.defvjp(
    lambda x, weight, bias: (layer_norm(x, weight, bias), (x, weight)), _layer_norm_gradients
)


class ImageNorm(nnx.Module):
    """Normalises each image over its pixels and channels; group norm with one group.

    Unlike a LayerNorm at each pixel it leaves flat areas flat, instead of raising their noise.
    """

    def __init__(self, width: int):
        self.weight = param((width,), constant(1.0))
        self.bias = param((width,), constant(0.0))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y, _ = _normalised(x, (1, 2, 3))
        y = y * _last(self.weight[...], x) + _last(self.bias[...], x)
        return y.astype(x.dtype)


def multiply(x: Float[Array, "*b i"], weight: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ weight. On a CPU with a backward pass of its own: x's layout decides its speed."""
    return _multiply(x, weight) if jax.default_backend() == "cpu" else x @ weight


@jax.custom_vjp
def _multiply(x: Array, weight: Array) -> Array:
    return x @ weight


def _multiply_gradients(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if weight.shape[0] > weight.shape[1]:
        return dy @ weight.T, jnp.einsum("ri,ro->io", rows, d)
    # A narrow x, laid out anew, lets XLA take its faster product. Left to itself it lays out dy.
    return dy @ weight.T, jax.lax.optimization_barrier(rows.T) @ d


_multiply.defvjp(lambda x, weight: (x @ weight, (x, weight)), _multiply_gradients)


class Linear(nnx.Module):
    """x @ weight + bias, in x's type."""

    def __init__(self, inputs: int, outputs: int, weight: Initializer, bias: Initializer):
        self.weight = param((inputs, outputs), weight)
        self.bias = param((outputs,), bias)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        bias = _last(self.bias[...].astype(x.dtype), x)
        return multiply(x, self.weight[...].astype(x.dtype)) + bias


class Attention(nnx.Module):
    """Multi-head self-attention; torch's nn.MultiheadAttention. Softmax in float32.

    The columns of `in_proj_weight` are the queries', the keys' and the values', in that order.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernels: str,
        in_weight: Initializer,
        out_weight: Initializer,
    ):
        self.heads = heads
        self.kernels = kernels
        self.in_proj_weight = param((width, 3 * width), in_weight)
        self.in_proj_bias = param((3 * width,), constant(0.0))
        self.out_proj = Linear(width, width, out_weight, constant(0.0))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        seen: Bool[Array, "#b n n"] | None = None,
        read: Read | None = None,
    ) -> Float[Array, "c m d"]:
        b, n, d = x.shape
        qkv = multiply(x, self.in_proj_weight[...].astype(x.dtype))
        qkv = keep(qkv + _last(self.in_proj_bias[...].astype(x.dtype), x))
        qkv = qkv.reshape(b, n, 3, self.heads, d // self.heads)
        out = keep(attend(qkv, seen, self.kernels)).reshape(b, n, d)
        return self.out_proj(out if read is None else read(out))


def attend(
    qkv: Float[Array, "b n 3 h c"],
    seen: Bool[Array, "#b n n"] | None = None,
    kernels: str = "auto",
) -> Float[Array, "b n h c"]:
    """softmax(q k^T / sqrt(c)) v per head.

    seen: whether a query (second axis) sees a key (third axis); None: each sees all.
    kernels: config.ClipConfig's `kernels`.
    """
    if kernels == "auto" and attention_kernel.suits(qkv):
        return attention_kernel.attention(qkv, seen)
    if kernels == "auto" and _suits_cudnn(qkv, seen):
        return attend_cudnn(qkv, seen)
    # Heads first, as the products take them: XLA's own transposes go through memory more often.
    q, k, v = (jnp.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))
    logits = jnp.einsum(
        "bhqc,bhkc->bhqk", q * q.shape[3] ** -0.5, k, preferred_element_type=jnp.float32
    )
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.swapaxes(weights @ v, 1, 2)


def attend_cudnn(
    qkv: Float[Array, "b n 3 h c"], seen: Bool[Array, "#b n n"] | None = None
) -> Float[Array, "b n h c"]:
    """`attend` by cuDNN's kernel, where it has one."""
    q, k, v = jnp.unstack(qkv, axis=2)
    mask = None if seen is None else seen[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def _suits_cudnn(qkv: Float[Array, "b n 3 h c"], seen: Bool[Array, "#b n n"] | None) -> bool:
    """Whether cuDNN has a kernel for this, forward and backward."""
    # Its backward pass is not known to add up in one order.
    if "xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", ""):
        return False
    if not common.nvidia() or qkv.dtype != jnp.bfloat16:
        return False
    _, n, _, _, c = qkv.shape
    return c % 8 == 0 and c <= 128 and (seen is None or n % 2 == 0)


class Mlp(nnx.Module):
    """Two layers with the activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        in_weight: Initializer,
        out_weight: Initializer,
    ):
        # torch's nn.Linear draws biases within 1/sqrt(inputs), and open_clip leaves them so.
        self.c_fc = Linear(width, hidden, in_weight, uniform(width**-0.5))
        self.c_proj = Linear(hidden, width, out_weight, uniform(hidden**-0.5))
        self.activation = activation

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.c_proj(ACTIVATIONS[self.activation](keep(self.c_fc(x))))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    kernels: config.ClipConfig's `kernels`. `read`, of a call, takes from all tokens those that
    are wanted of the output: attention is between all, what follows is each token's own affair.
    """

    def __init__(self, attn: Attention, mlp: Mlp, width: int, kernels: str):
        self.ln_1 = LayerNorm(width)
        self.attn = attn
        self.ln_2 = LayerNorm(width)
        self.mlp = mlp
        self.kernels = kernels

    def __call__(
        self,
        x: Float[Array, "b n d"],
        seen: Bool[Array, "#b n n"] | None = None,
        read: Read | None = None,
    ) -> Float[Array, "c m d"]:
        x, y = self._branch(self.ln_1, x)
        mixed = self.attn(y, seen, read)
        x = keep((x if read is None else read(x)) + mixed)
        x, y = self._branch(self.ln_2, x)
        return x + self.mlp(y)

    def _branch(
        self, ln: LayerNorm, x: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        """x as it goes on beside a branch, and the branch's input."""
        if self.kernels == "auto" and norm.suits(x):
            return norm.branch(x, ln.weight[...], ln.bias[...], EPS)
        return x, ln(x)


def vision_inits(
    width: int, hidden: int
) -> tuple[Initializer, Initializer, Initializer, Initializer]:
    """Initialisers of a vision block's weights, attention in and out, MLP in and out.

    open_clip leaves these as torch makes them: Xavier-uniform over the whole [d, 3d] matrix for
    the attention's input, uniform within 1/sqrt(inputs) for the others.
    """
    xavier = math.sqrt(6 / (width + 3 * width))
    return uniform(xavier), uniform(width**-0.5), uniform(width**-0.5), uniform(hidden**-0.5)


def text_inits(
    width: int, layers: int
) -> tuple[Initializer, Initializer, Initializer, Initializer]:
    """The same for a text block: normal; OpenAI's scheme, which shrinks the residual outputs."""
    out = normal(width**-0.5 * (2 * layers) ** -0.5)
    return normal(width**-0.5), out, normal((2 * width) ** -0.5), out


def _apart(function: Callable[..., Array]) -> Callable[..., Array]:
    """On a CPU, `function` compiled as a computation of its own, so that its results are stored.

    XLA fuses sums into whatever reads them. Of the residual stream, a block's input or its
    gradient would be added up from all branches before it, in every place that needs it.
    """
    if jax.default_backend() != "cpu":
        return function

    @jax.jit
    def computation(*args: Any) -> Array:
        # What the function itself calls is fused as ever.
        with xla_metadata.set_xla_metadata(inlineable="true"):
            return function(*args)

    def call(*args: Any) -> Array:
        with xla_metadata.set_xla_metadata(inlineable="false"):
            return computation(*args)

    return call


class Transformer(nnx.Module):
    """A stack of blocks.

    remat and scan are config.ClipConfig's `remat` and `scan_layers`. A scan goes over all blocks
    but the last. It stacks their parameters in the call; `training.stacking` saves it that.
    """

    def __init__(self, blocks: list[Block], remat: str, scan: bool):
        self.resblocks = nnx.List(blocks)
        self.remat = remat
        self.scan = scan

    def __call__(
        self,
        x: Float[Array, "b n d"],
        seen: Bool[Array, "#b n n"] | None = None,
        read: Read | None = None,
    ) -> Float[Array, "c m d"]:
        """All tokens' outputs, or those that `read` takes: the last block computes no others.

        seen: as for `attend`, the same in every block.
        """
        # All blocks are built alike, so that the first one's structure serves for each.
        graph, _ = nnx.split(self.resblocks[0])
        states = [nnx.to_pure_dict(nnx.state(block)) for block in self.resblocks]

        def block(x: Array, state: dict, seen: Array | None, *, read: Read | None = None) -> Array:
            return nnx.merge(graph, state)(x, seen, read)

        apply = self._remat(_apart(block))
        if self.scan and len(states) > 1:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states[:-1])
            x = jax.lax.scan(lambda x, state: (apply(x, state, seen), None), x, stacked)[0]
        else:
            for state in states[:-1]:
                x = apply(x, state, seen)
        last = self._remat(_apart(functools.partial(block, read=read)))
        return last(x, states[-1], seen)

    def _remat(self, block: Callable[..., Array]) -> Callable[..., Array]:
        # Within a scan nothing can be merged with what is computed again.
        checkpoint = functools.partial(jax.checkpoint, prevent_cse=not self.scan)
        if self.remat == "full":
            return checkpoint(block)
        if self.remat == "dots":
            policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
            return checkpoint(block, policy=policy)
        return block
