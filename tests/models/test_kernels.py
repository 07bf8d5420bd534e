"""The GPU kernels: interpreted here, compiled on a GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import layers, text
from clipdg_jax.models import model as model_lib
from clipdg_jax.models.kernels import attention, common, norm
from clipdg_jax.training import sharding

# Captions of these lengths in a row of 80 slots, and as long a one with padding behind.
PACKED = ((30, 1, 17, 32), (77,))


def positions(rows, columns=80):
    found = np.zeros((len(rows), columns), np.int32)
    for row, lengths in zip(found, rows, strict=True):
        row[: sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    return jnp.asarray(found)


SEEN = {
    "all": lambda n: None,
    "causal": lambda n: text.seen(jnp.arange(n)[None]),
    "packed": lambda n: text.seen(positions(PACKED, n)),
}


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def with_gradients(function, *args):
    """The function's results, and the gradients of a random sum of them.

    The sum's weights are bfloat16's, so that they are the same whatever the results' type.
    """

    def value(*args):
        results = jax.tree.leaves(function(*args))
        keys = jax.random.split(jax.random.key(9), len(results))
        weights = [
            jax.random.normal(key, r.shape, jnp.bfloat16).astype(r.dtype)
            for key, r in zip(keys, results, strict=True)
        ]
        sums = [(r * w).astype(jnp.float32).sum() for r, w in zip(results, weights, strict=True)]
        return sum(sums), results

    grads, results = jax.jit(jax.grad(value, tuple(range(len(args))), has_aux=True))(*args)
    return results, grads


def distance(found, wanted):
    """||found - wanted|| / ||wanted||, the largest of all arrays."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(f, np.float64), np.asarray(w, np.float64)) for f, w in pairs]
    return max(np.linalg.norm(f - w) / np.linalg.norm(w) for f, w in pairs)


def plain_branch(x, weight, bias):
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + layers.EPS)
    return x, (y * weight[None, None] + bias[None, None]).astype(x.dtype)


def kernel_branch(x, weight, bias):
    return norm.branch(x, weight, bias, layers.EPS)


ATTENTIONS = [("all", 50), ("causal", 77), ("packed", 80)]


@pytest.mark.parametrize(("seen", "n"), ATTENTIONS)
def test_attention(seen, n):
    qkv, mask = normal(0, 2, n, 3, 2, 16), SEEN[seen](n)
    found = with_gradients(lambda x: attention.attention(x, mask), qkv)
    wanted = with_gradients(lambda x: layers.attend(x, mask, "xla"), qkv)
    assert distance(found, wanted) < 1e-6


@pytest.mark.parametrize("width", [64, 96])
def test_norm(width):
    args = normal(0, 3, 10, width), normal(1, width), normal(2, width)
    found = with_gradients(kernel_branch, *args)
    assert distance(found, with_gradients(plain_branch, *args)) < 1e-6


def test_on_eight_devices():
    """Each device has its rows; only the sums over all rows are exchanged."""
    mesh = sharding.make_mesh(data=4, fsdp=2)
    rows = sharding.batch_sharding(mesh)
    masks = text.seen(jnp.arange(12)[None] * jnp.ones((8, 1), jnp.int32))
    own = jax.device_put(masks, rows)

    def block(x, weight):
        x, y = norm.branch(x, weight, weight, layers.EPS)
        qkv = jnp.stack([y, 2 * y, 3 * y], axis=2).reshape(8, 12, 3, 2, 32)
        return x, attention.attention(qkv, masks[:1]), attention.attention(qkv, own)

    x, weight = normal(0, 8, 12, 64), normal(1, 64)
    wanted = with_gradients(block, x, weight)
    whole = NamedSharding(mesh, PartitionSpec())
    args = jax.device_put(x, rows), jax.device_put(weight, whole)
    assert distance(with_gradients(block, *args), wanted) < 1e-6
    compiled = jax.jit(block).lower(*args).compile()
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" not in compiled.as_text()
    for result in compiled(*args)[1:]:
        assert result.sharding.is_equivalent_to(rows, 4)


@pytest.mark.parametrize("kernel", ["attention", "norm"])
def test_lowers_for_gpus(kernel, monkeypatch):
    monkeypatch.setattr(common, "interpreted", lambda: False)
    if kernel == "attention":
        mask = SEEN["packed"](80)
        args = (normal(0, 2, 80, 3, 8, 64, dtype=jnp.bfloat16),)
        function = functools.partial(attention.attention, seen=mask)
    else:
        args = normal(0, 2, 50, 768, dtype=jnp.bfloat16), normal(1, 768), normal(2, 768)
        function = kernel_branch

    def gradient(*args):
        results, back = jax.vjp(function, *args)
        return back(results)

    lowered = jax.jit(gradient).trace(*args).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 2


def test_model(monkeypatch):
    """A model computes the same with the kernels as without."""
    config = config_lib.ClipConfig(
        embed_dim=16,
        vision=config_lib.VisionConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2),
        text=config_lib.TextConfig(context_length=12, vocab_size=50, width=32, layers=1, heads=2),
        remat="dots",
    )
    used = []
    monkeypatch.setattr(attention, "suits", lambda x: used.append("attention") or True)
    monkeypatch.setattr(norm, "suits", lambda x: used.append("norm") or True)
    image = normal(1, 2, 16, 16, 3)
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 48, (2, 12))).at[:, 9].set(49)

    def run(kernels):
        model = model_lib.Model(dataclasses.replace(config, kernels=kernels))
        # Biases and gains that are not 0 and 1, so that no gradient is 0 by symmetry.
        rng = np.random.default_rng(0)
        params = {
            name: (rng.normal(0, 0.1, leaf.shape) + ("ln_" in name)).astype(np.float32)
            for name, leaf in model.shapes().items()
        }
        return with_gradients(lambda p: model(p, image, tokens)[:2], params)

    found = run("auto")
    assert set(used) == {"attention", "norm"}
    used.clear()
    wanted = run("xla")
    assert not used
    assert distance(found[0], wanted[0]) < 1e-5
    (found_grads,), (wanted_grads,) = found[1], wanted[1]
    for name in set(wanted_grads) - {"logit_scale"}:
        assert distance(found_grads[name], wanted_grads[name]) < 1e-5, name


def test_suits_no_cpu():
    assert not attention.suits(normal(0, 1, 50, 3, 2, 64, dtype=jnp.bfloat16))
    assert not norm.suits(normal(0, 1, 50, 64, dtype=jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "dtype", "suits"),
    [
        ((1, 50, 3, 12, 64), jnp.bfloat16, True),
        ((1, 80, 3, 8, 64), jnp.bfloat16, True),
        ((1, 197, 3, 12, 64), jnp.bfloat16, False),  # Too many keys.
        ((1, 50, 3, 12, 48), jnp.bfloat16, False),  # Not a power of 2.
        ((1, 50, 3, 12, 64), jnp.float32, False),
    ],
)
def test_suits_attention(shape, dtype, suits, monkeypatch):
    monkeypatch.setattr(common, "nvidia", lambda: True)
    assert attention.suits(jax.ShapeDtypeStruct(shape, dtype)) == suits


@pytest.mark.parametrize(
    ("shape", "suits"),
    [((1, 50, 768), True), ((1, 80, 512), True), ((1, 512), False), ((1, 50, 100), False)],
)
def test_suits_norm(shape, suits, monkeypatch):
    monkeypatch.setattr(common, "nvidia", lambda: True)
    assert norm.suits(jax.ShapeDtypeStruct(shape, jnp.bfloat16)) == suits


def test_layer_norm():
    args = normal(0, 3, 10, 24), normal(1, 24), normal(2, 24)
    found = with_gradients(layers.layer_norm, *args)
    assert distance(found, with_gradients(lambda *args: plain_branch(*args)[1], *args)) < 1e-6


def test_gelu():
    x = jnp.linspace(-6, 6, 201)
    found = with_gradients(layers.gelu, x)
    assert distance(found, with_gradients(lambda x: jax.nn.gelu(x, approximate=False), x)) < 1e-6
    half = layers.gelu(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    # In float32 inside: no further off than rounding the result.
    wanted = layers.gelu(x.astype(jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(half, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize(("seen", "n", "heads"), [("all", 50, 12), ("packed", 80, 8)])
def test_attention_on_a_gpu(seen, n, heads):
    """No further from float32 than XLA's own arithmetic in bfloat16."""
    qkv, mask = normal(0, 2, n, 3, heads, 64, dtype=jnp.bfloat16), SEEN[seen](n)
    with jax.default_matmul_precision("highest"):
        exact = with_gradients(lambda x: layers.attend(x, mask, "xla"), qkv.astype(jnp.float32))
    found = with_gradients(lambda x: attention.attention(x, mask), qkv)
    plain = with_gradients(lambda x: layers.attend(x, mask, "xla"), qkv)
    assert distance(found, exact) < 1.1 * distance(plain, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [512, 768, 1024])
def test_norm_on_a_gpu(width):
    args = normal(0, 3, 50, width, dtype=jnp.bfloat16), normal(1, width), normal(2, width)
    exact = with_gradients(plain_branch, *(x.astype(jnp.float32) for x in args))
    assert distance(with_gradients(kernel_branch, *args), exact) < 3e-3
