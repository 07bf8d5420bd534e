import json
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from clipdg_jax import errors
from clipdg_jax.domains import encoder
from clipdg_jax.domains.methods import style
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from tests.domains import renders

CONFIG = {
    "mode": "full",
    "weights": "",
    "temperature": 0.1,
    "l2": 1e-3,
    "epochs": 3,
    "examples": 0,
    "batch_size": 16,
    "eval_every": 1,
    "log_every": 1,
    "flip": False,
    "crop_scale": (0.9, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "optim": renders.OPTIM,
}

# Weights in torch's layout and what open_clip makes of them.
FIXTURE = pathlib.Path(__file__).parents[1] / "models" / "fixtures" / "open_clip_tiny.npz"
SMALL = {
    "embed_dim": 16,
    "activation": "quick_gelu",
    "vision": {"image_size": 24, "patch_size": 8, "width": 24, "heads": 3, "layers": 2},
}


def reference(z, label, valid, temperature):
    """Khosla et al.'s equation 2 as it is written, and its number of anchors."""
    z, rows = z.astype(np.float64), np.flatnonzero(valid)
    losses = []
    for i in rows:
        others = [a for a in rows if a != i]
        positives = [p for p in others if label[p] == label[i]]
        if not positives:
            continue
        total = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        terms = [np.log(np.exp(z[i] @ z[p] / temperature) / total) for p in positives]
        losses.append(-sum(terms) / len(positives))
    return np.mean(losses), len(losses)


def descriptors(n, seed=0):
    z = np.random.default_rng(seed).normal(size=(n, 8))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_loss_is_the_papers_in_float64(temperature):
    label = np.array([0, 1, 0, 2, 1, 1, 0, 2, 0, 1, 0, 0])
    valid = np.array([1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1], bool)  # One row of 2: no positives.
    z = descriptors(len(label))
    loss, anchors = jax.jit(style.contrastive_loss, static_argnums=3)(z, label, valid, temperature)
    want, count = reference(z, label, valid, temperature)
    assert anchors == count == 8
    assert float(loss) == pytest.approx(want, rel=2e-6)


def test_rows_that_are_not_valid_have_no_part_in_loss_or_gradient():
    label, valid = np.array([0, 1, 0, 1, 0]), np.array([1, 1, 1, 1, 0], bool)
    z = descriptors(5)
    broken = np.where(valid[:, None], z, np.nan)

    def loss(z, valid):
        return style.contrastive_loss(z, label, valid, 0.1)[0]

    both = jax.jit(jax.value_and_grad(loss))
    ours = np.asarray(both(broken, valid)[1])
    assert (ours[~valid] == 0).all()
    np.testing.assert_array_equal(ours, both(z, valid)[1])
    assert np.abs(ours).max() > 0.1
    for none in (np.zeros(5, bool), np.array([1, 0, 0, 0, 0], bool)):
        value, grad = both(z, none)
        assert value == 0
        assert (np.asarray(grad) == 0).all()


@pytest.fixture(scope="module")
def train():
    return renders.labelled((60, 60, 0))


@pytest.fixture(scope="module")
def validation():
    return renders.labelled((20, 20, 0), first=500)


@pytest.fixture(scope="module")
def fitted(train, validation, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fitted")
    return style.Style.fit(train, validation, renders.context(CONFIG, workdir)), workdir


def accuracy(fitted, examples):
    (inputs,) = examples.batches()
    return (fitted.score(inputs).argmax(axis=1) == examples.domain).mean()


def test_training_lowers_the_loss_and_the_readout_tells_domains_apart(fitted, validation):
    model, tower = renders.tower()
    state = fitted[0].state()
    after = {
        k.removeprefix("features."): v for k, v in state.arrays.items() if k.startswith("features.")
    }
    descriptor = jax.jit(style.Descriptor(model.config))
    (inputs,) = validation.batches()
    before, after = (
        reference(
            np.asarray(descriptor(params, inputs.images(32))),
            validation.domain,
            inputs.valid,
            CONFIG["temperature"],
        )[0]
        for params in (style.start(tower), after)
    )
    # Were all of a domain at one point, far from the other, it would be ln 19.
    assert np.log(19) < after < before - 1
    assert accuracy(fitted[0], renders.labelled((50, 50, 0), first=900)) > 0.9


def test_a_saved_one_scores_the_same(fitted, validation):
    state = fitted[0].state()
    meta = json.loads(json.dumps(state.meta))
    loaded = style.Style.load(type(state)(state.arrays, meta), renders.mesh(1))
    (inputs,) = validation.batches()
    np.testing.assert_array_equal(loaded.score(inputs), fitted[0].score(inputs))
    assert loaded.describe() == (
        "contrastive style descriptors: the encoder's projection, then trained (full)"
    )


def test_frozen_trains_the_head_alone_and_no_length_trains_nothing(train, validation, tmp_path):
    frozen = renders.context(CONFIG | {"mode": "frozen", "epochs": 1}, tmp_path / "frozen")
    untrained = renders.context(CONFIG | {"epochs": 0}, tmp_path / "untrained")
    start = style.start(frozen.encoder.params)
    for context, changed in ((frozen, {style.HEAD}), (untrained, set())):
        arrays = style.Style.fit(train, validation, context).state().arrays
        ours = {name: arrays[f"features.{name}"] for name in start}
        assert {n for n in start if (ours[n] != np.asarray(start[n])).any()} == changed
    assert not any((tmp_path / "untrained").iterdir())


@pytest.fixture(scope="module")
def torch_weights():
    with np.load(FIXTURE) as arrays:
        fixture = dict(arrays)
    return fixture, {
        name.replace("weight/visual.", "backbone."): value
        for name, value in fixture.items()
        if name.startswith("weight/visual.") and name != "weight/visual.proj"
    } | {
        "last_layer_style": fixture["weight/visual.proj"],
        "last_layer_content": np.zeros((24, 16), np.float32),
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_imported_weights_give_open_clips_features(torch_weights, tmp_path, prefix):
    fixture, released = torch_weights
    path = tmp_path / "released.safetensors"
    named = {prefix + name: np.ascontiguousarray(value) for name, value in released.items()}
    safetensors.numpy.save_file(named, path)
    architecture = model_config.from_config(SMALL)
    params = style.import_weights(str(path), architecture)
    ours = jax.jit(style.Descriptor(architecture))(params, fixture["image"])
    np.testing.assert_allclose(ours, fixture["quick_gelu/image_features"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.ln_post.bias": None}, "has no backbone.ln_post.bias"),
        ({"last_layer_style": np.zeros((16, 24))}, r"last_layer_style of shape \[16, 24\], .*24, "),
        ({"backbone.transformer.resblocks.1.mlp.c_fc.weight": np.zeros((24, 96))}, r"\[96, 24\]"),
        ({"backbone.proj": np.zeros((24, 16))}, "has backbone.proj, which the encoder has not"),
    ],
)
def test_weights_that_do_not_fit_are_named(torch_weights, tmp_path, change, message):
    named = torch_weights[1] | {k: np.float32(v) for k, v in change.items() if v is not None}
    named = {k: np.ascontiguousarray(v) for k, v in named.items() if change.get(k, 0) is not None}
    path = tmp_path / "released.safetensors"
    safetensors.numpy.save_file(named, path)
    with pytest.raises(errors.UserError, match=message):
        style.import_weights(str(path), model_config.from_config(SMALL))


def test_no_weights_and_another_activation(tmp_path):
    architecture = model_config.from_config(SMALL)
    with pytest.raises(errors.UserError, match="is no file"):
        style.import_weights(str(tmp_path / "none"), architecture)
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(errors.UserError, match="is not a safetensors file"):
        style.import_weights(str(tmp_path / "text"), architecture)
    gelu = model_config.from_config(SMALL | {"activation": "gelu"})
    with pytest.raises(errors.UserError, match="trained with quick_gelu, the encoder has gelu"):
        style.import_weights(str(tmp_path / "text"), gelu)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "head"}, "style.mode: 'head' is unknown"),
        ({"temperature": 0.0}, "style.temperature: 0.0"),
    ],
)
def test_wrong_fields_are_named(changes, message, train, validation, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        style.Style.fit(train, validation, renders.context(CONFIG | changes, tmp_path))


def test_a_plan_without_data():
    architecture = model_config.from_config({"name": "ViT-L-14-quickgelu"})
    config = ml_collections.ConfigDict(CONFIG | {"epochs": 2})
    plan = style.plan(config, architecture, renders.mesh(1), examples=100)
    assert plan.steps == 12
    trained = plan.abstract["params"]
    assert trained[style.HEAD].shape == (1024, 768)
    assert len(trained) == len(encoder.tower(plan.model.shapes()))
    assert plan.flops_per_example == 3 * flops.forward_flops_image(architecture)
