import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.training import losses, sharding

VALID = {
    "all": np.ones(16, bool),
    "most": np.arange(16) % 5 != 2,
    "one": np.arange(16) == 7,
    "none": np.zeros(16, bool),
}


def _features(seed=0, b=16, e=12):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, b, e))
    text = text + 0.5 * image
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return (*(x.astype(np.float32) for x in unit), np.float32(20.0))


def _softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def _clip_reference(image, text, scale, valid):
    """Float64, on the valid rows alone; gradients from dL/dlogits = (P + Q - 2I) / 2n."""
    i, t = image[valid].astype(np.float64), text[valid].astype(np.float64)
    n = len(i)
    grads = [np.zeros(image.shape), np.zeros(text.shape), 0.0]
    if n == 0:
        return 0.0, 0.0, grads
    cosines = i @ t.T
    rows, columns = _softmax(scale * cosines), _softmax(scale * cosines.T).T
    loss = -0.5 * np.mean(np.log(np.diag(rows)) + np.log(np.diag(columns)))
    g = (rows + columns - 2 * np.eye(n)) / (2 * n)
    grads[0][valid], grads[1][valid] = scale * g @ t, scale * g.T @ i
    grads[2] = np.sum(g * cosines)
    return loss, np.mean(rows.argmax(axis=1) == np.arange(n)), grads


@pytest.mark.parametrize("valid", VALID.values(), ids=VALID)
def test_clip_loss_and_gradients_equal_the_closed_form(valid):
    inputs = _features()
    expected, accuracy, expected_grads = _clip_reference(*inputs, valid)
    step = jax.jit(jax.value_and_grad(losses.clip_loss, argnums=(0, 1, 2), has_aux=True))
    (loss, metrics), grads = step(*inputs, valid)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    for grad, want in zip(grads, expected_grads):
        np.testing.assert_allclose(grad, want, atol=2e-6)


def _siglip_reference(image, text, scale, bias, valid):
    i, t = image[valid], text[valid]
    sign = 2 * np.eye(len(i)) - 1
    return np.sum(np.logaddexp(0, -sign * (scale * i @ t.T + bias))) / max(len(i), 1)


@pytest.mark.parametrize("valid", VALID.values(), ids=VALID)
def test_siglip_loss_and_gradients_equal_finite_differences(valid):
    image, text, scale = _features()
    inputs = [image, text, scale, np.float32(-3.0)]
    step = jax.jit(jax.value_and_grad(losses.siglip_loss, argnums=(0, 1, 2, 3), has_aux=True))
    (loss, _), grads = step(*inputs, valid)
    exact = [np.asarray(x, np.float64) for x in inputs]
    np.testing.assert_allclose(loss, _siglip_reference(*exact, valid), rtol=1e-6)
    rng = np.random.default_rng(1)
    for k, grad in enumerate(grads):
        direction = rng.normal(size=exact[k].shape)

        def along(h, k=k, direction=direction):
            moved = [x + h * direction if j == k else x for j, x in enumerate(exact)]
            return _siglip_reference(*moved, valid)

        slope = (along(1e-6) - along(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_masked_records_cannot_matter(name):
    """Neither their features, be they NaN, nor the padding they amount to."""
    image, text, scale = _features()
    valid = VALID["most"]
    bias = () if name == "clip" else (jnp.float32(-3.0),)
    loss = {"clip": losses.clip_loss, "siglip": losses.siglip_loss}[name]

    def value(i, t, v):
        return loss(i, t, scale, *bias, v)[0]

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    spoilt = [np.where(valid[:, None], x, np.float32(np.nan)) for x in (image, text)]
    found, grads = step(*spoilt, valid)
    kept, kept_grads = step(image[valid], text[valid], np.ones(valid.sum(), bool))
    np.testing.assert_allclose(found, kept, rtol=1e-6)
    for grad, want in zip(grads, kept_grads):
        np.testing.assert_allclose(grad[valid], want, atol=1e-6)
        assert not np.any(np.asarray(grad)[~valid])


def test_the_global_batch_gives_the_same_on_any_devices():
    inputs, valid = _features(b=64), np.arange(64) % 7 != 3
    step = jax.jit(jax.value_and_grad(losses.clip_loss, argnums=(0, 1, 2), has_aux=True))
    results = []
    for count, fsdp in ((1, 1), (8, 1), (8, 4)):
        mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:count])
        batch = sharding.put_batch({"i": inputs[0], "t": inputs[1], "v": valid}, mesh)
        (loss, _), grads = step(batch["i"], batch["t"], inputs[2], batch["v"])
        results.append([loss, *grads])
    for other in results[1:]:
        np.testing.assert_allclose(other[0], results[0][0], rtol=1e-6)
        for grad, want in zip(other[1:], results[0][1:]):
            np.testing.assert_allclose(grad, want, atol=1e-6)


def test_siglip_brings_its_own_bias():
    def model(params, image, tokens):
        assert "logit_bias" not in params
        return image, tokens, jnp.exp(params["logit_scale"])

    def init(key):
        return {"logit_scale": jnp.asarray(2.659, jnp.float32)}

    key = jax.random.key(0)
    assert losses.wrap_init(init, "clip") is init
    params = losses.wrap_init(init, "siglip")(key)
    np.testing.assert_allclose(params["logit_scale"], np.log(10), rtol=1e-6)
    assert params["logit_bias"] == -10
    image, text, _ = _features()
    batch = {"image": image, "tokens": text, "valid": VALID["most"]}
    loss, metrics = losses.contrastive_objective(model, "siglip")(params, batch, {})
    exact = [x.astype(np.float64) for x in (image, text)]
    np.testing.assert_allclose(loss, _siglip_reference(*exact, 10, -10, VALID["most"]), rtol=1e-5)
    np.testing.assert_allclose(metrics["logit_scale"], 10, rtol=1e-6)
    assert metrics["valid"] == VALID["most"].sum()
    with pytest.raises(errors.UserError, match="loss: 'sigmoid' is unknown; use 'clip' or"):
        losses.contrastive_objective(model, "sigmoid")


@pytest.mark.parametrize("columns", [5, 16])
def test_chunks_of_captions_cannot_matter(columns, monkeypatch):
    """Whether they divide the batch or not: losses, gradients and accuracy are the whole's."""
    inputs, valid = _features(), VALID["most"]
    bias = np.float32(-3.0)
    results = []
    for width in (16, columns):
        monkeypatch.setattr(losses, "COLUMNS", width)
        clip = jax.value_and_grad(losses.clip_loss, argnums=(0, 1, 2), has_aux=True)
        siglip = jax.value_and_grad(losses.siglip_loss, argnums=(0, 1, 2, 3), has_aux=True)
        results.append(jax.jit(lambda: (clip(*inputs, valid), siglip(*inputs, bias, valid)))())  # noqa: B023
    for found, want in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_all_logits_together_are_never_in_memory():
    """Float32 logits of 4096 x 4096 are 64 MiB; softmaxes and gradients would be several."""
    features = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    scale, valid = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((4096,), bool)

    def value(*args):
        return losses.clip_loss(*args)[0]

    step = jax.jit(jax.grad(value, argnums=(0, 1, 2)))
    compiled = step.lower(features, features, scale, valid).compile()
    square = 4 * 4096**2
    assert "f32[4096,4096]" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * square


@pytest.mark.parametrize("shards", [1, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(shards):
    """8 parts of 64 against 512, the logit scale's gradient too."""
    rng = np.random.default_rng(0)
    params = {
        "image": rng.normal(size=(24, 16)).astype(np.float32),
        "text": rng.normal(size=(12, 16)).astype(np.float32),
        "logit_scale": np.float32(2.0),
    }
    batch = {
        "image": rng.normal(size=(512, 24)).astype(np.float32),
        "tokens": rng.normal(size=(512, 12)).astype(np.float32),
        "valid": rng.random(512) < 0.9,
    }

    def apply(params, image, tokens):
        assert len(image) in (512, 64)
        features = [jnp.tanh(image @ params["image"]), jnp.tanh(tokens @ params["text"])]
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in features]
        return (*unit, jnp.exp(params["logit_scale"]))

    mesh = sharding.make_mesh(devices=jax.devices()[:shards])
    on_devices = sharding.put_batch(batch, mesh)
    results = []
    for accumulate in (1, 8):
        objective = losses.contrastive_objective(
            apply, "clip", accumulate=accumulate, shards=shards
        )
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        results.append(step(params, on_devices, {}))
    for found, want in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.linalg.norm(found - want) <= 1e-5 * np.linalg.norm(want)
