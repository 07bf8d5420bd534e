"""LoRA: where it starts, what it adds, and which matrices it finds."""

import jax
import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.finetuning import parts
from tests.finetuning import small_models

IN_PROJ = "visual.transformer.resblocks.0.attn.in_proj_weight"
STEM = "visual.stem.0.conv.weight"


def state_of(planned):
    start = small_models.pretrained().params
    state = planned.init_state(start, start)
    return {**state["frozen"], **state["params"]}, state


def drawn(params, seed=3):
    """With factors B that are not 0."""
    rng = np.random.default_rng(seed)
    return {
        k: rng.normal(0, 0.1, v.shape).astype(np.float32) if k.endswith(".B") else v
        for k, v in params.items()
    }


def test_it_starts_as_the_pretrained_model():
    planned = small_models.make("lora", lora__matrices=r"^visual\.")
    params, _ = state_of(planned)
    found = jax.jit(planned.effective)(params, {"lora": 8.0})
    before = small_models.pretrained().params
    assert not any(key.startswith("lora.") for key in found)
    for key, value in found.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)


def test_it_adds_the_scaled_product_to_every_matrix():
    rank, alpha = 3, 12.0
    planned = small_models.make("lora", lora__matrices=r"^visual\.", lora__rank=rank)
    params, _ = state_of(planned)
    params = drawn(params)
    found = jax.jit(planned.effective)(params, {"lora": alpha})
    rng = np.random.default_rng(0)

    def factors(name):
        return (np.asarray(params[f"lora.{name}.{f}"], np.float64) for f in "AB")

    def check(name, weight, merged):
        w, m = np.asarray(weight, np.float64), np.asarray(merged, np.float64)
        w, m = w.reshape(-1, w.shape[-1]), m.reshape(-1, m.shape[-1])
        a, b = factors(name)
        assert a.shape == (w.shape[0], rank)
        assert b.shape == (rank, w.shape[1])
        x = rng.normal(size=(5, w.shape[0]))
        expected = x @ w + alpha / rank * (x @ a) @ b
        np.testing.assert_allclose(x @ m, expected, atol=1e-5, err_msg=name)
        assert np.abs(x @ m - x @ w).max() > 0.1

    check("visual.proj", params["visual.proj"], found["visual.proj"])
    # A convolution is a product of its flattened windows and its kernel as a matrix.
    check(STEM, params[STEM], found[STEM])
    for i, third in enumerate("qkv"):
        columns = slice(32 * i, 32 * (i + 1))
        check(f"{IN_PROJ}.{third}", params[IN_PROJ][:, columns], found[IN_PROJ][:, columns])


def test_queries_keys_and_values_are_addressed_separately():
    planned = small_models.make("lora", lora__matrices=r"in_proj_weight\.[qv]$")
    params, state = state_of(planned)
    trained = set(state["params"])
    assert {k for k in trained if k.startswith("lora.visual.")} == {
        f"lora.{IN_PROJ}.{third}.{f}" for third in "qv" for f in "AB"
    }
    assert {parts.HEAD_WEIGHT, parts.HEAD_BIAS} <= trained
    assert IN_PROJ in planned.moving
    assert "visual.proj" not in planned.moving
    found = jax.jit(planned.effective)(drawn(params), {"lora": 4.0})
    change = np.abs(np.asarray(found[IN_PROJ]) - np.asarray(params[IN_PROJ])).max(axis=0)
    assert (change[:32] > 0).all()
    assert (change[32:64] == 0).all()
    assert (change[64:] > 0).all()


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match=r"config.lora.matrices: 'lorem' matches none of the \d+"):
        small_models.make("lora", lora__matrices="lorem")
    with pytest.raises(UserError, match=r"config.lora.rank: 0; use 1 or more"):
        small_models.make("lora", lora__rank=0)


def test_with_a_penalty_the_merged_weights_are_held():
    planned = small_models.make("lora+l2", lora__matrices=r"^visual\.")
    start = small_models.pretrained().params
    state = planned.init_state(start, start)
    copies = {k for k in state["frozen"] if k.startswith(parts.PRETRAINED)}
    assert copies == {f"{parts.PRETRAINED}{k}" for k in (parts.HEAD_WEIGHT, parts.HEAD_BIAS)}, (
        "the frozen weights are their own pre-trained values"
    )
    params = drawn({**state["frozen"], **state["params"]})
    scalars = {"lora": 8.0, "l2": 1.0}
    _, metrics = jax.jit(planned.objective)(params, small_models.batch(planned), scalars)
    found = jax.jit(planned.effective)(params, scalars)
    expected = sum(
        np.sum((np.asarray(found[k], np.float64) - np.asarray(start[k], np.float64)) ** 2)
        for k in planned.moving
    )
    np.testing.assert_allclose(metrics["l2"], expected, rtol=1e-4)
