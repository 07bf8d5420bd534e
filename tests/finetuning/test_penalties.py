"""L1, L2 and distillation, against closed forms in float64."""

import jax
import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.finetuning import parts
from tests.finetuning import small_models


def gradient(planned, params, name):
    """Of a penalty by every parameter that moves."""

    def value(moving):
        shown = small_models.forward(planned, {**params, **moving})
        return planned.combination.penalties[name].value(shown)

    moving = {key: params[key] for key in planned.moving}
    return jax.jit(jax.value_and_grad(value))(moving)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_value_and_gradient_are_the_closed_forms(name, reduction):
    planned = small_models.make(name, **{f"{name}__reduction": reduction})
    params, before = small_models.moved(), small_models.pretrained().params
    value, grads = gradient(planned, params, name)
    assert sorted(grads) == sorted(key for key in before if key.startswith(("visual.", "head."))), (
        "the text tower is not trained, and not held"
    )
    # Differences of float32 numbers this close are exact.
    far = {k: np.asarray(params[k], np.float64) - np.asarray(before[k], np.float64) for k in grads}
    count = sum(d.size for d in far.values()) if reduction == "mean" else 1
    total = sum(np.sum(np.abs(d) if name == "l1" else d**2) for d in far.values())
    np.testing.assert_allclose(value, total / count, rtol=1e-5)
    for key, d in far.items():
        expected = (np.sign(d) if name == "l1" else 2 * d) / count
        np.testing.assert_allclose(grads[key], expected, rtol=1e-5, atol=1e-12, err_msg=key)
    assert any((d == 0).any() for d in far.values()), "where nothing moved, L1 pulls nowhere"


def test_only_the_leaves_that_are_named_are_held():
    planned = small_models.make("l2", l2__leaves=r"^head\.")
    _, grads = gradient(planned, small_models.moved(), "l2")
    assert {key for key, g in grads.items() if np.any(g)} == {"head.weight", "head.bias"}
    with pytest.raises(UserError, match=r"config.l2.leaves: 'nowhere' matches none of"):
        small_models.make("l2", l2__leaves="nowhere")


def test_held_leaves_do_not_decay_and_others_do():
    def updates(name, **fields):
        planned = small_models.make(name, optim__weight_decay=0.5, **fields)
        params = {key: small_models.pretrained().params[key] for key in planned.moving}
        zeros = jax.tree.map(np.zeros_like, params)
        found, _ = planned.tx.update(zeros, planned.tx.init(params), params)
        return {key for key, value in found.items() if np.any(value)}

    plain = updates("full")
    assert {"visual.proj", "head.weight", "visual.conv1.weight"} <= plain
    assert updates("l2") == updates("l1") == set()
    assert updates("l2", l2__leaves=r"^head\.") == plain - {"head.weight"}
    assert updates("kd") == plain, "distillation holds outputs, not weights"


@pytest.mark.parametrize("of", ["features", "logits", "kl"])
def test_distillation_is_zero_at_the_start(of):
    planned = small_models.make("kd", kd__of=of, kd__temperature=2.0)
    value, grads = gradient(planned, small_models.pretrained().params, "kd")
    assert abs(value) < 1e-9  # Both come out of one program, which may round either otherwise.
    for key, g in grads.items():
        np.testing.assert_allclose(g, 0, atol=1e-6, err_msg=key)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("of", ["features", "logits", "kl"])
def test_distillation_follows_its_definition(of):
    temperature = 2.0
    planned = small_models.make("kd", kd__of=of, kd__temperature=temperature)
    params = small_models.moved(scale=0.05)
    value, _ = gradient(planned, params, "kd")
    shown = small_models.forward(planned, params)
    valid = np.asarray(shown.labelled)
    f, f0, z, z0 = (
        np.asarray(x, np.float64)[valid]
        for x in (
            shown.features,
            shown.pretrained_features,
            shown.logits,
            shown.pretrained_logits,
        )
    )
    if of == "features":
        expected = np.mean(np.sum((f - f0) ** 2, axis=1))
    elif of == "logits":
        expected = np.mean((z - z0) ** 2)
    else:
        p, q = softmax(z0 / temperature), softmax(z / temperature)
        expected = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    assert expected > 1e-4
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_the_objective_adds_what_the_parts_say():
    planned = small_models.make("l2+kd")
    state = planned.init_state(small_models.moved(), small_models.pretrained().params)
    everything = {**state["frozen"], **state["params"]}
    assert f"{parts.PRETRAINED}visual.proj" in state["frozen"]
    loss, metrics = jax.jit(planned.objective)(
        everything, small_models.batch(planned), {"l2": 0.5, "kd": 3.0}
    )
    assert metrics["l2"] > 0
    assert metrics["kd"] > 0
    expected = metrics["task_loss"] + 0.5 * metrics["l2"] + 3.0 * metrics["kd"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l2__reduction": "max"}, r"config.l2.reduction: 'max' is unknown; use 'sum' or 'mean'"),
        ({"l2__coefficients": (-1.0, 1.0)}, r"config.l2.coefficients: .* none negative"),
        ({"l2__coefficients": ()}, r"config.l2.coefficients: .* one number or more"),
        ({"kd__of": "pixels"}, r"config.kd.of: 'pixels' is unknown; use features, logits, kl"),
        ({"kd__temperature": 0.0}, r"config.kd.temperature: 0.0; above 0"),
    ],
)
def test_wrong_settings_are_named(fields, message):
    name = next(iter(fields)).partition("__")[0]
    with pytest.raises(UserError, match=message):
        small_models.make(name, **fields)
