import jax
import jax.numpy as jnp
import optax
import pytest

from clipdg_jax.training import memory, sharding, step

B, K, N, M, L = 32, 16, 64, 8, 5


def _mesh():
    return sharding.make_mesh()


def _struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def _state(frozen=(), **params):
    return {
        "params": {k: v for k, v in params.items() if k not in frozen},
        "frozen": {k: v for k, v in params.items() if k in frozen},
    }


def _activations(objective, state):
    batch = {"x": _struct(B, K)}
    return memory.activation_bytes_per_device(
        lambda p, b, s: (objective(p, b["x"], s), {}), state, batch, {}, _mesh()
    )


def _two_layers(p, x, scalars):
    return jnp.sum(jnp.sin(jnp.sin(x @ p["w"]) @ p["v"]))


def test_activations_of_two_layers():
    """d sin = cos: kept are both cosines, and the hidden layer for the second weight."""
    state = _state(w=_struct(K, N), v=_struct(N, M))
    assert _activations(_two_layers, state) == 4 * (2 * B * N + B * M) // 8


def test_frozen_parameters_keep_nothing():
    state = _state(("w",), w=_struct(K, N), v=_struct(N, M))
    assert _activations(_two_layers, state) == 4 * (B * N + B * M) // 8


def test_recomputed_activations_do_not_count():
    def objective(p, x, scalars):
        hidden = jax.checkpoint(lambda w: jnp.sin(jnp.sin(x @ w)))(p["w"])
        return jnp.sum(hidden @ p["v"])

    state = _state(w=_struct(K, N), v=_struct(N, M))
    assert _activations(objective, state) == 4 * B * N // 8


def test_copies_of_parameters_lie_whole_on_each_device():
    def objective(p, x, scalars):
        half = {k: v.astype(jnp.bfloat16) for k, v in p.items()}
        return _two_layers(half, x.astype(jnp.bfloat16), scalars)

    state = _state(w=_struct(K, N), v=_struct(N, M))
    of_batch = 2 * (B * K + 2 * B * N + B * M)
    assert _activations(objective, state) == of_batch // 8 + 2 * N * M


@pytest.mark.parametrize("jit", [False, True])
def test_scanned_layers(jit):
    def objective(p, x, scalars):
        def layer(c, w):
            return jnp.sin(c @ w.astype(jnp.bfloat16).astype(jnp.float32)), None

        layer = jax.jit(layer) if jit else layer
        return jnp.sum(jax.lax.scan(layer, x, p["w"])[0])

    # Per layer: its input, its cosine, and the rounded weight.
    of_batch = 4 * L * 2 * B * K
    assert _activations(objective, _state(w=_struct(L, K, K))) in (
        of_batch // 8 + 2 * L * K * K,
        of_batch // 8 + 4 * L * K * K,  # the copy kept may be the one cast back
    )


def test_state_bytes_are_those_on_the_devices():
    def init(key):
        return {
            "w": jax.random.normal(key, (512, 256)),
            "odd": jnp.zeros((1023, 255)),
            "b": jnp.zeros((8,), jnp.bfloat16),
        }

    tx, key = optax.adam(1e-3), jax.random.key(0)
    for fsdp in (1, 4):
        mesh = sharding.make_mesh(fsdp=fsdp)
        expected = 3 * (4 * 512 * 256 // fsdp + 4 * 1023 * 255 + 2 * 8) + 4 + 4
        assert memory.state_bytes_per_device(step.abstract_state(init, key, tx, mesh)) == expected
        state = step.init_state(init, key, tx, mesh)
        here = [x.addressable_shards[3].data.nbytes for x in jax.tree.leaves(state)]
        assert sum(here) == expected
