import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipdg_jax import errors
from clipdg_jax.training import losses, optimizer, sharding, step

OPTIM = {
    "lr": 1e-3,
    "warmup": 5,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
    "clip": None,
}
STEPS = 20
TX = optimizer.make_optimizer(OPTIM, STEPS)
KEY = jax.random.key(0)
ONE = sharding.make_mesh(devices=jax.devices()[:1])


def init(key):
    """Two one-layer towers; the vision one is large enough for fsdp to split it."""
    a, b = jax.random.split(key)
    return {
        "visual.proj": 0.05 * jax.random.normal(a, (512, 128)),
        "text_projection": 0.2 * jax.random.normal(b, (24, 128)),
        "ln_final.weight": jnp.ones((128,)),
        "logit_scale": jnp.asarray(2.659),  # weakly typed on purpose
    }


def apply(params, image, tokens):
    image = image @ params["visual.proj"]
    text = jax.nn.one_hot(tokens, 24).sum(axis=1) @ params["text_projection"]
    text = jnp.tanh(text) * params["ln_final.weight"][None, :]
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return (*unit, jnp.exp(params["logit_scale"]))


def host_batch(s, b=32):
    """Images that follow from the captions, with noise."""
    rng = np.random.default_rng(s)
    tokens = rng.integers(24, size=(b, 6), dtype=np.int32)
    counts = (tokens[:, :, None] == np.arange(24)).sum(axis=1)
    image = counts @ np.random.default_rng(99).normal(size=(24, 512)) + rng.normal(size=(b, 512))
    return {
        "image": image.astype(np.float32),
        "tokens": tokens,
        "valid": rng.random(b) < 0.9,
    }


OBJECTIVE = losses.contrastive_objective(apply, "clip")


def build(mesh, objective=OBJECTIVE, trainable="", tx=TX, **options):
    abstract = step.abstract_state(init, KEY, tx, mesh, trainable)
    state = step.init_state(init, KEY, tx, mesh, trainable)
    return state, step.make_train_step(objective, tx, abstract, mesh, **options)


def run(mesh, steps=STEPS):
    state, train = build(mesh, schedule=optimizer.schedule(1e-3, 5, STEPS))
    history = []
    for s in range(steps):
        state, metrics = train(state, sharding.put_batch(host_batch(s), mesh), {})
        history.append(jax.device_get(metrics))
    return state, history, train


def test_twenty_steps_agree_on_one_and_eight_devices_and_compile_once():
    results = []
    for count, fsdp in ((1, 1), (8, 1), (8, 4)):
        mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:count])
        state, history, train = run(mesh)
        assert train._cache_size() == 1
        assert state["params"]["visual.proj"].sharding.is_fully_replicated == (fsdp == 1)
        results.append([m["loss"] for m in history])
    assert results[0][-1] < 0.9 * results[0][0]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-6)


def test_what_a_step_computes():
    """Loss, gradient norm, rate and the update itself, beside a plain single-device step."""
    params = {k: jnp.asarray(v, jnp.float32) for k, v in init(KEY).items()}
    batch = host_batch(0)
    grad = jax.jit(jax.value_and_grad(lambda p: OBJECTIVE(p, batch, {})[0]))
    loss, grads = grad(params)
    update = jax.jit(lambda g, p: optax.apply_updates(p, TX.update(g, TX.init(p), p)[0]))
    expected = update(grads, params)

    state, history, _ = run(ONE, steps=1)
    metrics = history[0]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3 / 5, rtol=1e-6)
    assert metrics["valid"] == batch["valid"].sum()
    assert metrics["finite"]
    assert int(state["step"]) == 1
    for name, want in expected.items():
        np.testing.assert_allclose(state["params"][name], want, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("finite", [True, False])
def test_what_is_not_finite_is_left_out_on_any_backend(monkeypatch, backend, finite):
    monkeypatch.setattr(step.jax, "default_backend", lambda: backend)
    state, grads = {"params": {"a": jnp.arange(3.0)}}, {"a": jnp.ones(3)}

    def update(state, grads):
        return {"params": {"a": state["params"]["a"] - grads["a"]}}

    found = jax.jit(lambda state: step.updated_if(jnp.asarray(finite), update, state, grads))(state)
    expected = update(state, grads) if finite else state
    np.testing.assert_array_equal(found["params"]["a"], expected["params"]["a"])


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(spoil):
    mesh = ONE

    def objective(params, batch, scalars):
        loss, metrics = OBJECTIVE(params, batch, scalars)
        # sqrt has an infinite gradient at 0 while its value is finite.
        loss = loss + jnp.sqrt(scalars["zero"] * params["logit_scale"]) + scalars["bad"]
        return loss, metrics

    state, train = build(mesh, objective)
    batch = sharding.put_batch(host_batch(0), mesh)
    state, metrics = train(state, batch, {"zero": 1.0, "bad": 0.0})
    assert metrics["finite"]
    before = jax.tree.map(lambda x: np.array(x, copy=True), state)
    scalars = {"zero": 1.0, "bad": np.inf} if spoil == "loss" else {"zero": 0.0, "bad": 0.0}
    state, metrics = train(state, batch, scalars)
    assert not metrics["finite"]
    assert np.isfinite(metrics["loss"]) == (spoil == "gradient")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, state)))
    state, metrics = train(state, batch, {"zero": 1.0, "bad": 0.0})
    assert metrics["finite"]
    assert int(state["step"]) == 2
    assert train._cache_size() == 1


def test_only_trainable_parameters_move_and_have_moments():
    mesh = ONE
    start = jax.device_get(step.merged_params(step.init_state(init, KEY, TX, mesh)))
    state, train = build(mesh, trainable="^(visual|logit)")
    assert sorted(state["params"]) == ["logit_scale", "visual.proj"]
    assert sorted(state["frozen"]) == ["ln_final.weight", "text_projection"]
    moments = [leaf for leaf in jax.tree.leaves(state["opt"]) if leaf.shape]
    assert [leaf.shape for leaf in moments] == [(512, 128)] * 2
    state, _ = train(state, sharding.put_batch(host_batch(0), mesh), {})
    moved = {k for k, v in step.merged_params(state).items() if not np.array_equal(v, start[k])}
    assert moved == {"logit_scale", "visual.proj"}
    with pytest.raises(errors.UserError, match="trainable: 'nothing' matches none of the 4"):
        step.abstract_state(init, KEY, TX, mesh, "nothing")


def test_the_logit_scale_stays_within_its_limits():
    mesh = ONE
    for sign, limit in ((-1.0, np.log(100.0)), (1.0, 0.0)):

        def objective(params, batch, scalars, sign=sign):
            return sign * params["logit_scale"], {}

        state, train = build(mesh, objective, tx=optax.sgd(10.0))
        batch = sharding.put_batch(host_batch(0), mesh)
        for _ in range(2):
            state, _ = train(state, batch, {})
        np.testing.assert_allclose(state["params"]["logit_scale"], limit, rtol=1e-6)
        state, train = build(mesh, objective, tx=optax.sgd(10.0), clamp={})
        state, _ = train(state, batch, {})
        np.testing.assert_allclose(state["params"]["logit_scale"], 2.659 - 10 * sign, rtol=1e-6)


def test_moments_lie_with_their_parameters():
    mesh = sharding.make_mesh(fsdp=4)
    state = step.init_state(init, KEY, TX, mesh)
    abstract = step.abstract_state(init, KEY, TX, mesh)
    assert step.state_shardings(state) == step.state_shardings(abstract)
    split = [leaf.shape for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
    assert split == [(512, 128)] * 3  # the parameter and its two moments


def test_a_state_can_start_from_given_parameters():
    given = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(1.5)}
    state = step.init_state(lambda params: params, given, TX, ONE, "a")
    np.testing.assert_array_equal(state["params"]["a"], given["a"])
    np.testing.assert_array_equal(state["frozen"]["b"], given["b"])
