"""Methods joined by +, and the registry."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.finetuning import combination, methods, parts
from clipdg_jax.finetuning.methods.method import Method
from tests.finetuning import small_models


def fold(name, **fields):
    return combination.fold(name, small_models.config(**fields))


def test_a_combination_is_what_its_methods_are():
    folded = fold("lora+kd+wise_ft", lora__alphas=(1.0, 2.0), kd__coefficients=(5.0,))
    assert folded.reparam.trainable == r"^(lora|head)\."
    assert list(folded.penalties) == ["kd"]
    assert folded.after.alphas == tuple(i / 10 for i in range(11))
    assert folded.training == "lora+kd"
    assert folded.points() == [{"lora": 1.0, "kd": 5.0}, {"lora": 2.0, "kd": 5.0}]
    assert fold("wise_ft").training == "full"
    assert fold("l2+wise_ft").training == "l2"
    assert fold("full").points() == [{}]


def test_protection_orders_a_sweep():
    folded = fold("l2", l2__coefficients=(0.1, 10.0, 1.0))
    order = sorted(folded.points(), key=lambda p: folded.protection(p, 1.0))
    assert [p["l2"] for p in order] == [0.1, 1.0, 10.0]
    folded = fold("lora", lora__alphas=(1.0, 4.0, 2.0))
    order = sorted(folded.points(), key=lambda p: folded.protection(p, 1.0))
    assert [p["lora"] for p in order] == [4.0, 2.0, 1.0], "the smaller the closer"
    folded = fold("wise_ft")
    places = [folded.protection({}, alpha) for alpha in folded.after.alphas]
    assert places == sorted(places, reverse=True)
    assert (places[0], places[-1]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lorem", r"method: 'lorem' is unknown; use zero_shot, linear_probe"),
        ("l2+lorem", r"method: 'lorem' is unknown"),
        ("l2+l2", r"'l2\+l2': names one twice"),
        ("lora+linear_probe", r"two of its methods have a reparam part"),
        ("zero_shot+l2", r"zero_shot is not trained, and combines with none"),
    ],
)
def test_what_cannot_be_combined(name, message):
    with pytest.raises(UserError, match=message):
        fold(name)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_alpha_outside_its_range(alpha):
    with pytest.raises(UserError, match=r"config.wise_ft.alphas: .*"):
        fold("wise_ft", wise_ft__alphas=(0.0, alpha), wise_ft__also=0.0)


def test_a_new_method_is_one_file_and_one_line(monkeypatch):
    # The file: the head is pulled to 0, by half of its square.
    def shrink(forward):
        return 0.5 * jnp.sum(jnp.square(forward.params[parts.HEAD_WEIGHT]))

    def build(name, config):
        return parts.Parts(
            name,
            penalty=parts.Penalty(shrink, holds=r"^head\."),
            sweep=parts.Sweep(parts.coefficients(name, "coefficients", config.coefficients)),
        )

    new = Method("a smaller head", build, {"coefficients": (1.0, 2.0)})
    # The line.
    monkeypatch.setitem(methods.METHODS, "shrink", new)

    assert methods.defaults()["shrink"] == {"coefficients": (1.0, 2.0)}
    planned = small_models.make("shrink+lora")
    assert planned.combination.training == "shrink+lora"
    assert len(planned.combination.points()) == 6
    params = small_models.pretrained().params
    state = planned.init_state(params, params)
    everything = {**state["frozen"], **state["params"]}
    _, metrics = jax.jit(planned.objective)(
        everything, small_models.batch(planned), {"shrink": 2.0, "lora": 8.0}
    )
    expected = 0.5 * np.sum(np.square(np.asarray(params[parts.HEAD_WEIGHT], np.float64)))
    np.testing.assert_allclose(metrics["shrink"], expected, rtol=1e-5)


def test_every_method_says_what_it_does_and_can_be_built():
    config = small_models.config()
    for name, method in methods.METHODS.items():
        assert method.about
        built = method.build(name, config.get(name))
        assert built.name == name
        assert dataclasses.is_dataclass(built)
