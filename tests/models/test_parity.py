"""Against open_clip: the same weights and inputs give its features, loss and gradients."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib

# Written by tools/make_parity_fixture.py.
FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "open_clip_tiny.npz"
CASES = {
    "gelu": {},
    "quick_gelu": {"activation": "quick_gelu"},
    "gelu_avg": {"vision": {"pool": "avg"}},
}
SMALL = {
    "embed_dim": 16,
    "vision": {"image_size": 24, "patch_size": 8, "width": 24, "heads": 3, "layers": 2},
    "text": {"context_length": 12, "vocab_size": 64, "width": 24, "heads": 3, "layers": 2},
}


def from_torch(name, value):
    axes = model_lib.LAYOUTS[model_lib.layout(name)]
    return value if axes is None else value.transpose(axes)


@pytest.fixture(scope="module")
def fixture():
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def params(fixture):
    prefix = "weight/"
    named = {k.removeprefix(prefix): v for k, v in fixture.items() if k.startswith(prefix)}
    return {name: jnp.asarray(from_torch(name, value)) for name, value in named.items()}


def build(case, **overrides):
    given = SMALL | overrides
    for key, value in CASES[case].items():
        given = given | {key: given[key] | value if key in given else value}
    return model_lib.Model(config_lib.from_config(given))


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_open_clips(case, params):
    ours = {name: leaf.shape for name, leaf in build(case).shapes().items()}
    assert ours == {name: leaf.shape for name, leaf in params.items()}


@pytest.mark.parametrize(
    ("case", "how"),
    [
        ("gelu", {}),
        ("gelu_avg", {"remat": "full"}),
        ("quick_gelu", {"scan_layers": True, "remat": "dots"}),
    ],
)
def test_features_loss_and_gradients(case, how, params, fixture):
    model = build(case, **how)

    def objective(params):
        image, text, scale = model(params, fixture["image"], fixture["tokens"])
        logits = scale * image @ text.T
        diagonal = jnp.diag(logits)
        rows = jax.nn.logsumexp(logits, axis=1) - diagonal
        columns = jax.nn.logsumexp(logits, axis=0) - diagonal
        return (rows.mean() + columns.mean()) / 2, (image, text, scale)

    (loss, (image, text, scale)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        params
    )
    np.testing.assert_allclose(image, fixture[f"{case}/image_features"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(text, fixture[f"{case}/text_features"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(scale, np.exp(fixture["weight/logit_scale"]), rtol=1e-6)
    np.testing.assert_allclose(loss, fixture[f"{case}/loss"], rtol=1e-5)
    for name, grad in grads.items():
        want = fixture[f"{case}/grad_norm/{name}"]
        np.testing.assert_allclose(jnp.linalg.norm(grad), want, rtol=1e-4, err_msg=name)


def test_activations_differ_by_more_than_the_tolerance(fixture):
    gelu, quick = (fixture[f"{case}/image_features"] for case in ("gelu", "quick_gelu"))
    assert np.abs(gelu - quick).max() > 1e-4
