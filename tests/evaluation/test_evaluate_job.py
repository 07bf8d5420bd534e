import importlib.util
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.jobs import evaluate
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints

TINY = {
    "name": "tiny-plain",
    "embed_dim": 16,
    "vision": {"image_size": 8, "width": 16, "layers": 1, "heads": 2},
    "text": {"context_length": 12, "vocab_size": 600, "width": 16, "layers": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def model():
    return model_lib.Model(model_config.from_config(TINY))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    """Checkpoints of steps 3 and 6."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    saver = checkpoints.Checkpoints(directory, identity={}, architecture=model.config.architecture)
    for step in (3, 6):
        rng = np.random.default_rng(step)
        params = {
            name: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), leaf.dtype)
            for name, leaf in model.shapes().items()
        }
        saver.save(step, {"params": params, "frozen": {}, "opt": {}, "step": jnp.int32(step)})
    saver.close()
    return directory


@pytest.fixture
def root(tmp_path, write_dataset, saved):
    """A run with two checkpoints, and a suite of two test sets."""
    write_dataset(tmp_path / "data" / "photo", n=11)
    write_dataset(tmp_path / "data" / "sketch", n=7, seed=1)
    suite = {
        "test_sets": {
            "photo": {"dataset": "photo", "domain": "natural"},
            "sketch": {"dataset": "sketch", "domain": "rendition"},
        }
    }
    (tmp_path / "data" / "zoo").mkdir()
    (tmp_path / "data" / "zoo" / "suite.json").write_text(json.dumps(suite))
    shutil.copytree(saved, tmp_path / "run" / "checkpoints")
    operational = {"eval.suites": "zoo", "data.root": str(tmp_path / "data")}
    run_config = {"identity": {}, "operational": operational}
    (tmp_path / "run" / "config.json").write_text(json.dumps(run_config))
    return tmp_path


def config_of(root, **changes):
    path = pathlib.Path(__file__).parents[2] / "configs" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("evaluate_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.checkpoint = str(root / "run")
    config.eval.batch_size = 4
    config.update(changes)
    return config


def test_every_checkpoint_is_evaluated_and_an_interrupted_call_goes_on(root, capsys):
    out = root / "out"
    config = config_of(root, step="all")
    evaluate.run(config, out)
    printed = capsys.readouterr().out
    assert "zoo/sketch" in printed
    assert "step 3: zoo natural" in printed
    results = json.loads((out / "results.json").read_text())
    assert results["job"] == "evaluate"
    assert (results["step"], list(results["steps"])) == (6, ["3", "6"])
    assert results["zero_shot"] == results["steps"]["6"] != results["steps"]["3"]
    assert results["zero_shot"]["zoo"]["photo"]["n"] == 11
    assert results["zero_shot"]["zoo"]["sketch"]["domain"] == "rendition"
    for step in ("3", "6"):
        table = pq.read_table(out / f"predictions-{step}.parquet")
        assert table.schema.metadata[b"step"] == step.encode()
        for name, measures in results["steps"][step]["zoo"].items():
            rows = table.filter(pc.equal(table["test_set"].cast("string"), name))
            assert rows["key"].to_pylist() == [f"{name}/{i}" for i in range(measures["n"])]
            assert pc.mean(rows["correct"]).as_py() == pytest.approx(measures["top1"])
    assert (out / "summary.png").read_bytes().startswith(b"\x89PNG")

    evaluate.run(config, out)
    assert "is complete" in capsys.readouterr().out

    # As if killed while evaluating step 6: step 3 is read back, not evaluated again.
    (out / "results.json").unlink()
    (out / "zero_shot-6.json").unlink()
    untouched = (out / "predictions-3.parquet").stat().st_mtime_ns
    evaluate.run(config, out)
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "predictions-3.parquet").stat().st_mtime_ns == untouched


def test_latest_and_chosen_steps(root):
    evaluate.run(config_of(root), root / "latest")
    latest = json.loads((root / "latest" / "results.json").read_text())
    assert list(latest["steps"]) == ["6"]
    # A checkpoints directory serves as well as the run's.
    chosen = config_of(root, step="3", checkpoint=str(root / "run" / "checkpoints"))
    evaluate.run(chosen, root / "chosen")
    assert json.loads((root / "chosen" / "results.json").read_text())["step"] == 3
    with pytest.raises(UserError, match=r"step (3|6)"):
        evaluate.run(config_of(root, step="3"), root / "latest")


def test_a_skipped_test_set_is_reported(root, capsys):
    path = root / "data" / "zoo" / "suite.json"
    suite = json.loads(path.read_text())
    suite["test_sets"]["quickdraw"] = {"dataset": "quickdraw", "domain": "rendition"}
    path.write_text(json.dumps(suite))
    with pytest.raises(UserError, match="quickdraw"):
        evaluate.run(config_of(root), root / "out")
    evaluate.run(config_of(root, missing="skip"), root / "out")
    assert "skipped zoo/quickdraw" in capsys.readouterr().out
    results = json.loads((root / "out" / "results.json").read_text())
    assert list(results["skipped"]["zoo"]) == ["quickdraw"]


def test_dry_run_says_what_would_be_done_or_what_is_missing(root, model, capsys):
    evaluate.run(config_of(root, dry_run=True, step="all"), root / "out")
    printed = capsys.readouterr().out
    assert f"{model.num_params():,}" in printed
    assert "3, 6" in printed
    assert "rendition: 7 images" in printed
    assert not (root / "out").exists()
    evaluate.run(config_of(root, dry_run=True, checkpoint="nowhere"), root / "out")
    assert "cannot evaluate yet: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "4"}, "config.step: .* has no checkpoint of step 4; it has 3, 6"),
        ({"step": "last"}, "config.step: 'last' is none of"),
        ({"checkpoint": "nowhere"}, "nowhere: holds no checkpoint"),
        ({"suites": "park"}, "suite 'park'"),
    ],
)
def test_wrong_inputs_are_one_line(root, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate.run(config_of(root, **changes), root / "out")
    assert "\n" not in str(caught.value)


def test_checkpoints_without_a_run_need_names(root):
    (root / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"need --config\.suites"):
        evaluate.run(config_of(root), root / "out")
