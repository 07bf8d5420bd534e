"""The encoder: batches of one shape on any mesh, its checkpoint and its arrays."""

import jax
import numpy as np
import optax
import pytest

from clipdg_jax.domains import encoder
from clipdg_jax.errors import UserError
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, step
from tests.domains import renders


def mean_and_first(params, images):
    """Rows that depend on their own image only."""
    flat = images.reshape(images.shape[0], -1).astype("float32") / 255
    return jax.numpy.stack([flat.mean(axis=1) * params["scale"], flat[:, 0]], axis=1)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 16, 21])
def test_batches_are_padded_and_cut_back(devices, count):
    mesh = renders.mesh(devices)
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    params = {"scale": np.float32(2.0)}
    found = encoder.apply_batched(mean_and_first, params, images, mesh, batch=5)
    assert found.shape == (count, 2)
    flat = images.reshape(count, 48) / 255
    expected = np.stack([2 * flat.mean(axis=1), flat[:, 0]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def scratch():
    return encoder.scratch(renders.ARCHITECTURE, "float32", renders.mesh(1), seed=3)


def test_features_have_length_one_and_survive_saving(scratch):
    size = scratch.image_size
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    features = scratch.features(images)
    assert features.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    again = encoder.from_arrays(scratch.model.config.to_dict(), scratch.arrays(), renders.mesh(1))
    np.testing.assert_array_equal(again.features(images), features)


def test_only_the_image_tower_is_kept_and_seeds_differ(scratch):
    assert all(name.startswith(model_lib.IMAGE_TOWER) for name in scratch.params)
    other = encoder.scratch(renders.ARCHITECTURE, "float32", renders.mesh(1), seed=4)
    same = encoder.scratch(renders.ARCHITECTURE, "float32", renders.mesh(1), seed=3)
    matrix = max(scratch.params, key=lambda name: scratch.params[name].size)
    assert (np.asarray(other.params[matrix]) != np.asarray(scratch.params[matrix])).any()
    np.testing.assert_array_equal(same.params[matrix], scratch.params[matrix])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory with a checkpoint at step 7."""
    workdir = tmp_path_factory.mktemp("run")
    model = model_lib.Model(model_config.from_config(renders.ARCHITECTURE))
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in model.shapes().items()
    }
    tx = optax.identity()
    mesh = renders.mesh(1)
    state = step.init_state(lambda given: dict(given), params, tx, mesh)
    saved = checkpoints.Checkpoints(
        workdir / "checkpoints", identity={}, architecture=model.config.architecture, keep=1
    )
    saved.save(7, state)
    saved.wait()
    saved.close()
    return workdir, params


def test_a_runs_encoder_is_its_image_tower(run):
    workdir, params = run
    found = encoder.from_checkpoint(str(workdir), renders.ARCHITECTURE, "float32", renders.mesh(1))
    assert found.origin == f"{workdir}, step 7"
    for name, value in found.params.items():
        np.testing.assert_array_equal(value, params[name])
    assert set(found.params) == {n for n in params if n.startswith(model_lib.IMAGE_TOWER)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision": {**renders.ARCHITECTURE["vision"], "width": 64}}, "width 32, .* says 64"),
        ({"embed_dim": 16}, "embed_dim 32, .* says 16"),
        ({"activation": "quick_gelu"}, "activation gelu, .* says quick_gelu"),
    ],
)
def test_another_architecture_is_refused(run, change, named):
    workdir, _ = run
    wanted = {**renders.ARCHITECTURE, **change}
    with pytest.raises(UserError, match=named):
        encoder.from_checkpoint(str(workdir), wanted, "float32", renders.mesh(1))


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        encoder.from_checkpoint(
            str(tmp_path / "none"), renders.ARCHITECTURE, "float32", renders.mesh(1)
        )
