"""What a step trains, with what, and how often it is compiled."""

import jax
import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.finetuning import combination, parts, plan
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import losses
from tests.finetuning import small_models


def start(planned):
    params = small_models.pretrained().params
    return planned.init_state(params, params)


def count_compilations():
    """A list that grows with every program that is compiled from now on."""
    found = []

    def listen(event, duration, **unused):
        del duration, unused
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def test_a_sweep_of_eight_coefficients_compiles_once():
    coefficients = tuple(10.0**k for k in range(-4, 4))
    planned = small_models.make("l2", l2__coefficients=coefficients)
    points = planned.combination.points()
    assert [point["l2"] for point in points] == list(coefficients)
    compiled = count_compilations()
    norms, counts = [], []
    for point in points:
        state = start(planned)
        for number in range(3):
            batch = small_models.batch(planned, number)
            state, _ = planned.train_step(state, batch, planned.scalars(point))
        moved = np.asarray(state["params"]["head.weight"])
        norms.append(np.linalg.norm(moved - np.asarray(state["frozen"]["pretrained.head.weight"])))
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts[-1] == counts[0]
    assert norms[-1] < 0.5 * norms[0], "the coefficient is not a constant of the program"


@pytest.mark.parametrize("name", ["linear_probe", "lora", "kd", "rehearsal"])
def test_what_is_frozen_does_not_change_by_a_bit(name):
    planned = small_models.make(name)
    state = start(planned)
    before = {k: np.array(v) for k, v in state["frozen"].items()}
    trained = {k: np.array(v) for k, v in state["params"].items()}
    scalars = planned.scalars(planned.combination.points()[-1])
    for number in range(2):
        state, metrics = planned.train_step(state, small_models.batch(planned, number), scalars)
        assert metrics["finite"]
    for key, value in before.items():
        np.testing.assert_array_equal(np.asarray(state["frozen"][key]), value, err_msg=key)
    assert sum(not np.array_equal(state["params"][k], v) for k, v in trained.items()) > 1
    text = {k for k in before if not k.startswith(("visual.", "head.", "pretrained.", "lora."))}
    assert bool(text) == (name == "rehearsal"), "the text tower is there where it is needed"
    # Two moments of what trains, and the counters.
    moments = [leaf for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim]
    assert sum(m.size for m in moments) == 2 * sum(v.size for v in trained.values() if v.ndim)


def test_flyp_trains_both_towers_by_the_contrastive_loss():
    planned = small_models.make("flyp")
    state = start(planned)
    assert not state["frozen"]
    assert sorted(state["params"]) == sorted(planned.model.shapes())
    batch = small_models.batch(planned)
    params = small_models.pretrained().params
    loss, metrics = jax.jit(planned.objective)(state["params"], batch, {})
    image, text, scale = jax.jit(planned.model)(
        {k: params[k] for k in planned.model.shapes()}, batch["image"], batch["tokens"]
    )
    expected, _ = losses.clip_loss(image, text, scale, batch["valid"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["valid"] == small_models.ROWS - 1


def test_rehearsal_adds_the_loss_of_the_replayed_rows_alone():
    planned = small_models.make("rehearsal", rehearsal__share=0.5)
    assert planned.batch_size == 2 * small_models.ROWS
    params, batch = small_models.pretrained().params, small_models.batch(planned)
    objective = jax.jit(planned.objective)
    loss, metrics = objective(params, batch, {"rehearsal": 0.25})
    plain = small_models.make("full")
    labelled = {k: v[: small_models.ROWS] for k, v in batch.items() if k != "tokens"}
    alone, _ = jax.jit(plain.objective)(params, labelled, {})
    np.testing.assert_allclose(metrics["task_loss"], alone, rtol=1e-5)
    rows = slice(small_models.ROWS, None)
    image, text, scale = jax.jit(planned.model)(
        {k: params[k] for k in planned.model.shapes()}, batch["image"][rows], batch["tokens"][rows]
    )
    replayed, _ = losses.clip_loss(image, text, scale, batch["valid"][rows])
    np.testing.assert_allclose(loss, alone + 0.25 * replayed, rtol=1e-5)


def test_cross_entropy_is_the_definition():
    planned = small_models.make("full")
    shown = small_models.forward(planned, small_models.moved())
    z, label = np.asarray(shown.logits, np.float64), np.asarray(shown.batch["label"])
    log = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    each = -log[np.arange(len(label)), label][np.asarray(shown.labelled)]
    np.testing.assert_allclose(parts.cross_entropy(shown), each.mean(), rtol=1e-5)


def test_the_head_starts_from_the_zero_shot_weights():
    pretrained = small_models.pretrained()
    text = {k: pretrained.params[k] for k in pretrained.model.shapes()}
    features = jax.jit(pretrained.model.encode_text)(text, pretrained.prompts)
    mean = np.asarray(features, np.float64).reshape(3, 2, -1).mean(axis=1)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    expected = np.exp(float(pretrained.params["logit_scale"])) * unit.T
    np.testing.assert_allclose(pretrained.params[parts.HEAD_WEIGHT], expected, rtol=1e-4, atol=1e-5)
    assert not np.any(pretrained.params[parts.HEAD_BIAS])


# Of ViT-B/32's image tower (`tests/models`), and a head of 1000 classes on 512 features.
TOWER, HEAD = 87_849_216, 513_000
RANK_8 = 12 * 2 * 8 * (768 + 768)  # queries and values of 12 layers


@pytest.mark.parametrize(
    ("name", "trained", "state"),
    [
        ("linear_probe", HEAD, TOWER + 3 * HEAD),
        ("full", TOWER + HEAD, 3 * (TOWER + HEAD)),
        ("l2", TOWER + HEAD, 4 * (TOWER + HEAD)),
        ("lora", RANK_8 + HEAD, TOWER + 3 * (RANK_8 + HEAD)),
    ],
)
def test_memory_is_that_of_the_trained_parameters(name, trained, state):
    made = small_models.load_preset("imagenet")
    made.model.name = "ViT-B-32"
    model = model_lib.Model(model_config.from_config({"name": "ViT-B-32"}))
    planned = plan.make_plan(
        combination.fold(name, made),
        made,
        model,
        small_models.mesh(),
        examples=1_281_167,
        classes=1000,
    )
    assert planned.steps == 10 * (1_281_167 // 512)
    assert planned.trained() == trained
    counters = 3
    assert sum(leaf.size for leaf in jax.tree.leaves(planned.abstract)) <= state + counters


def test_a_length_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"config.steps, config.epochs: 0, 0 make no step"):
        small_models.make("full", steps=0, epochs=0)
