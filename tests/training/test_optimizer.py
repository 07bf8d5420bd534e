import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from clipdg_jax import errors
from clipdg_jax.training import optimizer

DECAYED = {
    "visual.conv1.weight": (3, 2, 2, 4),
    "visual.positional_embedding": (5, 4),
    "visual.proj": (4, 3),
    "visual.transformer.resblocks.0.attn.in_proj_weight": (4, 12),
    "positional_embedding": (7, 4),
    "token_embedding.weight": (9, 4),
    "text_projection": (4, 3),
}
SPARED = {
    "visual.class_embedding": (4,),
    "visual.ln_pre.weight": (4,),
    "visual.transformer.resblocks.0.ln_1.weight": (4,),
    "visual.transformer.resblocks.0.attn.in_proj_bias": (12,),
    "visual.transformer.resblocks.0.mlp.c_fc.bias": (16,),
    "logit_scale": (),
    "logit_bias": (),
    "head.gain": (4,),
}


def _config(**changes):
    fields = {
        "lr": 1e-2,
        "warmup": 3,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "weight_decay": 0.2,
        "clip": None,
    }
    return ml_collections.ConfigDict(fields | changes)


def _rate(s, lr, w, total):
    if s < w:
        return lr * (s + 1) / w
    return 0.5 * (1 + math.cos(math.pi * (s - w) / (total - w))) * lr


@pytest.mark.parametrize(("warmup", "total"), [(3, 10), (0, 5), (2000, 80_000)])
def test_schedule_is_open_clips(warmup, total):
    rate = optimizer.schedule(5e-4, warmup, total)
    steps = sorted(
        {0, 1, warmup // 2, max(warmup - 1, 0), warmup, (warmup + total) // 2, total - 1}
    )
    got = jax.vmap(rate)(jnp.asarray(steps, jnp.int32))
    want = [_rate(s, 5e-4, warmup, total) for s in steps]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-11)
    assert rate(total) == 0


def test_schedule_of_warmup_only():
    assert optimizer.schedule(1.0, 4, 4)(3) == 1.0
    assert optimizer.schedule(1.0, 8, 4)(3) == 0.5  # ends while warming up
    with pytest.raises(errors.UserError, match=r"optim.warmup: -1"):
        optimizer.schedule(1.0, -1, 10)


def test_what_is_decayed():
    shapes = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in (DECAYED | SPARED).items()}
    assert {k for k, decayed in optimizer.decay_mask(shapes).items() if decayed} == set(DECAYED)
    # A stacked LayerNorm, bias or class embedding has a higher rank and the same name.
    stacked = {k: jax.ShapeDtypeStruct((12, 4, 4), jnp.float32) for k in SPARED if "." in k}
    del stacked["head.gain"]
    assert not any(optimizer.decay_mask(stacked).values())


@pytest.mark.parametrize("clip", [None, 0.0, 0.5])
def test_ten_steps_of_adamw_equal_float64(clip):
    config, total = _config(clip=clip), 10
    rng = np.random.default_rng(0)
    shapes = DECAYED | SPARED
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    grads = [{k: rng.normal(size=s) * 0.1 for k, s in shapes.items()} for _ in range(total)]

    tx = optimizer.make_optimizer(config, total)
    narrow = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    state = tx.init(narrow)
    update = jax.jit(tx.update)
    for g in grads:
        updates, state = update(
            {k: jnp.asarray(v, jnp.float32) for k, v in g.items()}, state, narrow
        )
        narrow = optax.apply_updates(narrow, updates)

    m = {k: np.zeros(s) for k, s in shapes.items()}
    v = {k: np.zeros(s) for k, s in shapes.items()}
    for s, g in enumerate(grads):
        norm = math.sqrt(sum(np.sum(x**2) for x in g.values()))
        factor = min(1.0, clip / norm) if clip else 1.0
        rate = _rate(s, config.lr, config.warmup, total)
        for k, x in g.items():
            x = x * factor
            m[k] = config.beta1 * m[k] + (1 - config.beta1) * x
            v[k] = config.beta2 * v[k] + (1 - config.beta2) * x**2
            first = m[k] / (1 - config.beta1 ** (s + 1))
            second = v[k] / (1 - config.beta2 ** (s + 1))
            if k in DECAYED:
                params[k] = params[k] * (1 - rate * config.weight_decay)
            params[k] = params[k] - rate * first / (np.sqrt(second) + config.eps)
    for k, want in params.items():
        np.testing.assert_allclose(narrow[k], want, rtol=1e-5, atol=1e-6, err_msg=k)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", -1.0), ("lr", math.nan), ("beta2", 1.0), ("weight_decay", -0.1), ("clip", -1.0)],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(errors.UserError, match=f"optim.{field}: .* is out of range"):
        optimizer.make_optimizer(_config(**{field: value}), 10)


SGD = {
    "name": "sgd",
    "schedule": "step",
    "lr": 0.1,
    "warmup": 0,
    "drop_every": 2,
    "drop_factor": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-2,
    "clip": 0.0,
}


def test_fifty_epochs_of_the_paper_drop_twice():
    rate = optimizer.make_schedule(SGD | {"drop_every": 20}, steps=2500, epoch_steps=50)
    got = [float(rate(s)) for s in (0, 999, 1000, 1999, 2000, 2499)]
    np.testing.assert_allclose(got, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3], rtol=1e-6)


def test_warmup_comes_before_the_drops():
    rate = optimizer.drop_schedule(1.0, warmup=4, every=6, factor=0.5)
    want = [0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5]
    np.testing.assert_allclose([float(rate(s)) for s in range(8)], want, rtol=1e-6)


def test_ten_steps_of_sgd_equal_torchs_rule_in_float64():
    rng = np.random.default_rng(1)
    shapes = {"readout.weight": (4, 3), "readout.bias": (3,), "visual.ln_pre.weight": (4,)}
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    narrow = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    velocity = {k: np.zeros(s) for k, s in shapes.items()}
    tx = optimizer.make_optimizer(SGD, 10, epoch_steps=2)
    state = tx.init(narrow)
    for s in range(10):
        grads = {k: rng.normal(size=shape) for k, shape in shapes.items()}
        updates, state = tx.update(
            {k: jnp.asarray(v, jnp.float32) for k, v in grads.items()}, state, narrow
        )
        narrow = optax.apply_updates(narrow, updates)
        for k, g in grads.items():
            velocity[k] = 0.9 * velocity[k] + g + 5e-2 * params[k]
            params[k] = params[k] - 0.1 * 0.1 ** (s // 4) * velocity[k]
    for k, want in params.items():
        np.testing.assert_allclose(narrow[k], want, rtol=1e-5, atol=1e-6, err_msg=k)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "lion", "unknown; use 'adamw' or 'sgd'"),
        ("schedule", "linear", "unknown; use 'cosine' or 'step'"),
        ("momentum", 1.0, "out of range"),
        ("drop_factor", -0.1, "out of range"),
        ("drop_every", 0, "use an epoch or more"),
    ],
)
def test_unknown_kinds_and_values_are_refused(field, value, message):
    with pytest.raises(errors.UserError, match=f"optim.{field}: .*{message}"):
        optimizer.make_optimizer(SGD | {field: value}, 10)
