"""A state whose blocks are stacked trains, and is saved, as one that has them apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, losses, optimizer, sharding, stacking, step

SIZE, WIDTH, BLOCKS = 8, 256, 4
OPTIM = {
    "lr": 1e-4,
    "warmup": 0,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
    "clip": 1.0,
}
TX = optimizer.make_optimizer(OPTIM, 100)
KEY = jax.random.key(0)


def _init(key):
    """A tower of residual blocks, large enough for fsdp to split them."""
    drawn = jax.random.normal(key, (BLOCKS, WIDTH, WIDTH)) / WIDTH
    return {
        **{f"visual.resblocks.{i}.weight": drawn[i] for i in range(BLOCKS)},
        **{f"visual.resblocks.{i}.bias": jnp.zeros(WIDTH) for i in range(BLOCKS)},
        "logit_scale": jnp.asarray(2.6),
    }


def _apply(params, image, tokens):
    blocks = [
        (params[f"visual.resblocks.{i}.weight"], params[f"visual.resblocks.{i}.bias"])
        for i in range(BLOCKS)
    ]

    def block(x, own):
        return x + jnp.tanh(x @ own[0] + own[1][None, :]), None

    x, _ = jax.lax.scan(block, image, jax.tree.map(lambda *a: jnp.stack(a), *blocks[:-1]))
    unit = [
        x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (block(x, blocks[-1])[0], tokens)
    ]
    return (*unit, jnp.exp(params["logit_scale"]))


def _batch():
    rng = np.random.default_rng(0)
    image, tokens = rng.normal(size=(2, SIZE, WIDTH)).astype(np.float32)
    return {"image": image, "tokens": tokens, "valid": np.ones(SIZE, bool)}


@functools.cache
class _Run:
    """A state, with its blocks stacked or apart, and its step."""

    def __init__(self, stacked, mesh, accumulate=1):
        self.mesh = mesh
        self.init = (lambda key: stacking.stack(_init(key))) if stacked else _init
        objective = losses.contrastive_objective(
            _apply, "clip", accumulate=accumulate, shards=mesh.size
        )
        self.abstract = step.abstract_state(self.init, KEY, TX, mesh)
        self.step = step.make_train_step(objective, TX, self.abstract, mesh)

    def state(self):
        return step.init_state(self.init, KEY, TX, self.mesh)


def _mesh(count=1, fsdp=1):
    return sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:count])


def _has_stacks(state):
    return any(map(stacking.is_stack, state["params"]))


def test_names_and_values():
    given = {
        **{f"visual.transformer.resblocks.{i}.ln_1.bias": jnp.full(2, i) for i in range(12)},
        **{f"transformer.resblocks.{i}.mlp.c_fc.weight": jnp.full((2, 3), i) for i in range(2)},
        "text.transformer.resblocks.0.ln_1.bias": jnp.zeros(2),  # One block: it is the last.
        "late.resblocks.3.ln_1.bias": jnp.zeros(2),
        "late.resblocks.4.ln_1.bias": jnp.zeros(2),  # Those before are somewhere else.
        "logit_scale": jnp.ones(()),
    }
    stacked = stacking.stack(given)
    assert {name: value.shape for name, value in stacked.items() if stacking.is_stack(name)} == {
        "visual.transformer.resblocks.*.ln_1.bias": (11, 2),
        "transformer.resblocks.*.mlp.c_fc.weight": (1, 2, 3),
    }
    np.testing.assert_array_equal(
        stacked["visual.transformer.resblocks.*.ln_1.bias"][:, 0], np.arange(11)
    )
    back = jax.jit(stacking.unstack)({"opt": [stacked], "step": jnp.ones(())})
    assert back["opt"][0].keys() == given.keys()
    for name, value in given.items():
        np.testing.assert_array_equal(back["opt"][0][name], value)
    assert stacking.unstack({"params": given}) == {"params": given}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same(accumulate):
    """Losses of ten steps, and the parameters after them."""
    ends = []
    for stacked in (False, True):
        run = _Run(stacked, _mesh(2), accumulate)
        state, batch, found = run.state(), sharding.put_batch(_batch(), run.mesh), []
        assert _has_stacks(state) == stacked
        for _ in range(10):
            state, metrics = run.step(state, batch, {})
            found.append([metrics[name].item() for name in ("loss", "grad_norm")])
        ends.append((found, jax.device_get(step.merged_params(state))))
    (apart, params), (stacked, same) = ends
    assert apart[-1][0] < 0.9 * apart[0][0]
    np.testing.assert_allclose(stacked, apart, rtol=1e-5)
    assert same.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_allclose(same[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("saved", "read"), [(True, False), (False, True)])
def test_checkpoints_hold_blocks_apart(tmp_path, saved, read):
    """One written by either kind of run is read by either, on other devices too, to the bit."""
    first, second = _Run(saved, _mesh(2), 1), _Run(read, _mesh(4, fsdp=2))
    state, _ = first.step(first.state(), sharding.put_batch(_batch(), first.mesh), {})
    store = checkpoints.Checkpoints(tmp_path, identity={}, architecture={})
    store.save(1, state, {"examples": SIZE})
    store.wait()
    restored, extra = store.restore(second.abstract)
    store.close()
    assert extra == {"examples": SIZE}
    assert step.state_shardings(restored) == step.state_shardings(second.abstract)
    canonical, again = stacking.unstack(state), stacking.unstack(restored)
    assert jax.tree.structure(canonical) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(canonical), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = checkpoints.load_params(tmp_path)
    assert not any(map(stacking.is_stack, loaded.params))


def test_a_stack_lies_on_the_devices_as_its_blocks():
    mesh = _mesh(8, fsdp=4)
    apart, stacked = (_Run(stacked, mesh).abstract for stacked in (False, True))
    assert apart["params"]["visual.resblocks.0.weight"].sharding.spec == P("fsdp")
    assert stacked["params"]["visual.resblocks.*.weight"].sharding.spec == P(None, "fsdp")
    assert stacking.unstack(stacked) == apart
    # As many numbers as would be split, but in several blocks.
    leaf = jax.ShapeDtypeStruct((2, 256, 128), jnp.float32)
    (found,) = sharding.param_shardings({"resblocks.*.x": leaf}, mesh).values()
    assert found.is_fully_replicated


def test_decay_is_decided_for_a_block():
    shapes = {
        "resblocks.*.attn.in_proj_weight": jax.ShapeDtypeStruct((3, 4, 12), jnp.float32),
        "resblocks.*.gain": jax.ShapeDtypeStruct((3, 4), jnp.float32),
    }
    assert list(optimizer.decay_mask(shapes).values()) == [True, False]


def test_the_compiled_gradient_is_as_long_for_any_number_of_blocks():
    """Neither a block's split from its stack is left in it, nor its gradient's."""
    lengths = []
    for blocks in (4, 9):
        tower = {"layers": blocks, "width": 16, "heads": 2, "image_size": 8, "patch_size": 4}
        config = {"name": "tiny-plain", "vision": tower, "scan_layers": True}
        model = model_lib.Model(config_lib.from_config(config))

        def loss(params, images, model=model):
            return jnp.sum(model.encode_image(stacking.unstack(params), images))

        params = jax.eval_shape(lambda key, model=model: stacking.stack(model.init(key)), KEY)
        images = jax.ShapeDtypeStruct((SIZE, 8, 8, 3), jnp.uint8)
        compiled = jax.jit(jax.grad(loss)).lower(params, images).compile()
        lengths.append(len(compiled.as_text().splitlines()))
    assert lengths[0] == lengths[1]
