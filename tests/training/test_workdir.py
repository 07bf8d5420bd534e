"""A run's directory is claimed by one identity and one process."""

import json

import ml_collections
import pytest

from clipdg_jax import errors
from clipdg_jax.training import workdir as workdir_lib


def _config(**changes):
    config = ml_collections.ConfigDict(
        {"job": "pretrain", "seed": 0, "log_every": 10, "optim": {"lr": 0.1}, "mesh": {"data": 1}}
    )
    config.update(changes)
    return config


def test_same_identity_is_claimed_again(tmp_path):
    with workdir_lib.claim(tmp_path / "run", _config(), {"natural": "abc"}) as first:
        assert first.results is None
        first.finish({"loss": 1.0})
    with workdir_lib.claim(tmp_path / "run", _config(), {"natural": "abc"}) as second:
        assert second.results == {"loss": 1.0}


def test_operational_fields_may_change(tmp_path):
    with workdir_lib.claim(tmp_path, _config(), {}):
        pass
    with workdir_lib.claim(tmp_path, _config(log_every=1, mesh={"data": 8}), {}):
        written = json.loads((tmp_path / "config.json").read_text())
    assert written["operational"] == {"log_every": 1, "mesh.data": 8}
    assert written["identity"]["optim.lr"] == 0.1


@pytest.mark.parametrize(
    ("config", "inputs", "named"),
    [
        (_config(seed=1), {"natural": "a"}, r"seed \(was 0, now 1\)"),
        (_config(optim={"lr": 0.2}), {"natural": "a"}, r"optim.lr \(was 0.1, now 0.2\)"),
        (_config(), {"natural": "b"}, "inputs.natural"),
        (_config(), {}, "inputs.natural"),
    ],
)
def test_another_identity_is_refused_by_name(tmp_path, config, inputs, named):
    with workdir_lib.claim(tmp_path, _config(), {"natural": "a"}):
        pass
    before = (tmp_path / "config.json").read_bytes()
    with (
        pytest.raises(errors.UserError, match=named),
        workdir_lib.claim(tmp_path, config, inputs),
    ):
        pass
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_second_process_is_refused(tmp_path):
    with (
        workdir_lib.claim(tmp_path, _config(), {}),
        pytest.raises(errors.UserError, match="another run is writing here"),
        workdir_lib.claim(tmp_path, _config(), {}),
    ):
        pass
    with workdir_lib.claim(tmp_path, _config(), {}):  # Free again.
        pass


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"something": "else"}')
    with (
        pytest.raises(errors.UserError, match="not a run's config"),
        workdir_lib.claim(tmp_path, _config(), {}),
    ):
        pass
