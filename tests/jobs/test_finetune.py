"""Fine-tuning from end to end."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from clipdg_jax.data import tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites, zero_shot
from clipdg_jax.finetuning import fitting, methods
from clipdg_jax.jobs import finetune
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, loop
from tests import children
from tests.finetuning import small_models
from tests.jobs import small_finetuning, small_runs


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Compiling for eight devices takes longer than everything else here."""
    real = jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *a: real(*a)[:1])
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data root, checkpoint's workdir)."""
    root = tmp_path_factory.mktemp("data")
    return root, small_finetuning.pretrain(root, tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A complete run: (config, workdir)."""
    config = small_finetuning.config(*world)
    directory = tmp_path_factory.mktemp("finished")
    finetune.run(config, directory)
    return config, directory


def test_what_a_run_leaves(finished, world):
    _, directory = finished
    found = json.loads((directory / "results.json").read_text())
    assert found["job"] == "finetune"
    names = ["zero_shot", "full", "l2+wise_ft", "l2+wise_ft@0.5", "rehearsal"]
    assert list(found["methods"]) == names
    others = ["natural_other", "sketch", "cartoon", "painting", "clipart", "mosaic"]
    for name, own in found["methods"].items():
        assert {"id", "ood", "test_sets", "chosen", "seeds"} <= own.keys()
        assert list(own["test_sets"]) == ["narrow", *others]
        assert own["id"] == own["test_sets"]["narrow"]
        assert own["ood"] == pytest.approx(np.mean([own["test_sets"][k] for k in others]))
        (seed,) = own["seeds"]
        assert seed["test_sets"]["narrow"]["n"] == small_finetuning.NARROW["test"]
        assert ("seconds" in seed["took"]) == (name != "zero_shot")
        assert {"cosine_id", "cosine_ood", "cka_id", "cka_ood"} == seed["features"].keys()
    zero, full = (found["methods"][name]["seeds"][0] for name in ("zero_shot", "full"))
    assert set(zero["distance"].values()) == {0.0}
    assert zero["features"]["cka_ood"] == pytest.approx(1)
    assert full["distance"]["visual.proj"] > 0
    assert full["features"]["cosine_id"] < 1
    sweep = found["methods"]["l2+wise_ft"]["sweep"]
    assert [(p["l2"], p["alpha"]) for p in sweep if p["alpha"] == 0] == [(1.0, 0.0), (0.1, 0.0)]
    assert len(sweep) == 6
    for point in sweep:
        if point["alpha"] == 0:
            assert (point["id"], point["ood"]) == (zero["id"], zero["ood"])
    chosen = found["methods"]["l2+wise_ft@0.5"]["chosen"]
    assert chosen["alpha"] == 0.5
    for name in ("table.md", "table.csv", "sweeps.csv", "tradeoff.png"):
        assert (directory / name).stat().st_size > 0
    rows = (directory / "sweeps.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 1 + 6 + 1
    assert list(directory.glob("events.out.tfevents.*"))


def test_the_reference_row_is_what_the_zero_shot_evaluator_finds(finished, world):
    _, directory = finished
    own = json.loads((directory / "results.json").read_text())["methods"]["zero_shot"]
    model = model_lib.Model(model_config.from_config(small_finetuning.MODEL))
    evaluator = zero_shot.Evaluator(
        model,
        tokenizer.get_tokenizer(model.config.text.vocab_size),
        suites.load(["narrow"], world[0]),
        small_models.mesh(),
        batch_size=16,
    )
    loaded = checkpoints.load_params(world[1] / "checkpoints")
    expected = evaluator(loaded.params)["narrow"]
    assert own["test_sets"] == {name: found["top1"] for name, found in expected.items()}


def test_a_complete_run_says_so_and_another_identity_is_refused(finished, world, capsys):
    config, directory = finished
    before = (directory / "results.json").read_bytes()
    finetune.run(config, directory)
    assert "this run is complete" in capsys.readouterr().out
    assert (directory / "results.json").read_bytes() == before
    other = small_finetuning.config(*world, **{"optim.lr": 0.5})
    with pytest.raises(UserError, match=r"belongs to a run with another optim.lr \(was 0.0002"):
        finetune.run(other, directory)


@pytest.mark.full
def test_what_is_finished_is_not_done_again(finished, world, tmp_path, monkeypatch):
    config, directory = finished
    trained = []

    def counting(step_fn, state, feed, **others):
        if len(trained) == 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            others["steps"] = 2
            loop_train(step_fn, state, feed, **others)
            raise KeyboardInterrupt  # In the middle of the third training.
        trained.append(others["workdir"].relative_to(tmp_path / "run"))
        return loop_train(step_fn, state, feed, **others)

    loop_train = loop.train
    monkeypatch.setattr(fitting.loop, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config, tmp_path / "run")
    finetune.run(config, tmp_path / "run")
    assert [str(path) for path in trained] == [
        "seed-0/trainings/full/default",
        "seed-0/trainings/l2/l2=0.1",
        "seed-0/trainings/l2/l2=1",
        "seed-0/trainings/rehearsal/rehearsal=0.5",
    ]
    assert small_finetuning.results(tmp_path / "run") == small_finetuning.results(directory)


@pytest.mark.full
def test_several_seeds_are_averaged(world, tmp_path, capsys):
    config = small_finetuning.config(*world, methods="zero_shot,linear_probe", seeds=(3, 4))
    finetune.run(config, tmp_path)
    found = small_finetuning.results(tmp_path)["methods"]["linear_probe"]
    assert [seed["seed"] for seed in found["seeds"]] == [3, 4]
    each = [seed["id"] for seed in found["seeds"]]
    assert found["id"] == pytest.approx(np.mean(each))
    assert found["seeds"][0]["distance"]["visual.proj"] == 0
    heads = [seed["distance"]["head"] for seed in found["seeds"]]
    assert heads[0] != heads[1], "the seed draws the images"
    assert "seed 4" in capsys.readouterr().out


BAD = {
    "another architecture": (
        {"model.embed_dim": 32},
        r"its model has embed_dim 16, config.model says 32",
    ),
    "another activation": (
        {"model.activation": "quick_gelu"},
        r"its model has activation gelu, config.model says quick_gelu",
    ),
    "no matrix": (
        {"methods": "lora", "lora.matrices": "nothing"},
        r"config.lora.matrices: 'nothing' matches none of the \d+ matrices",
    ),
    "an alpha": (
        {"wise_ft.alphas": (0.5, 1.1)},
        r"config.wise_ft.alphas: 1.1 is not in \[0, 1\]",
    ),
    "an empty validation split": (
        {"data.validation": "", "data.holdout": 0.0},
        r"config.data.holdout: 0.0 of 40 records leaves the validation split",
    ),
    "too few images": (
        {"data.examples": 500},
        r"config.data.examples: 500 of narrow/train, which has 40",
    ),
    "no such test set": (
        {"data.inside": "nowhere"},
        r"config.data.inside: 'nowhere' is no test set of the suite narrow",
    ),
    "all inside": (
        {"data.outside": "narrow"},
        r"config.data.outside: 'narrow' leaves no test set",
    ),
    "no method": ({"methods": ","}, r"config.methods: is empty"),
    "no seed": ({"seeds": ()}, r"config.seeds: \(\); give one number or several"),
    "no checkpoint": ({"checkpoint": "runs/none"}, r"holds no checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, finished, world, tmp_path):
    fields, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        finetune.run(small_finetuning.config(*world, **fields), tmp_path)
    assert "\n" not in str(error.value)


def test_a_label_outside_the_classes(finished, world, tmp_path, monkeypatch):
    def relabelled(batches):
        for batch in batches:
            yield {**batch, "label": np.where(batch["source"] == 0, 12, batch["label"])}

    real = fitting._prepared
    monkeypatch.setattr(
        fitting, "_prepared", lambda batches, *others: real(relabelled(batches), *others)
    )
    with pytest.raises(UserError, match=r"has the label 12, and there are 12 classes, from 0"):
        finetune.run(small_finetuning.config(*world, methods="full"), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-B-32"])
@pytest.mark.parametrize("data", ["imagenet", "domainnet"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_dry_runs(name, data, model, tmp_path, capsys):
    config = small_runs.load_config("finetune").get_config(f"{name},{data}")
    config.dry_run, config.model.name = True, model
    finetune.run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    if name != "zero_shot":
        wanted = ("trained parameters", "steps", "memory per device")
        assert all(f"\n{line}  " in printed for line in wanted)


@pytest.mark.full
def test_killed_and_started_again(finished, world, tmp_path):
    _, directory = finished
    given = tmp_path / "small.py"
    given.write_text(
        "import pathlib\n"
        "from tests.jobs import small_finetuning\n"
        "def get_config(argument=None):\n"
        "    return small_finetuning.config(*map(pathlib.Path, argument.split('+')))\n"
    )
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "clipdg_jax.main", f"--workdir={run}"),
        f"--config={given}:{world[0]}+{world[1]}",
    ]
    kills = 0
    for marker in ("trainings/full/default/checkpoints/2", "measured/full/default.json"):
        process = subprocess.Popen(command, env=children.environment(), cwd=small_runs.REPO)
        while process.poll() is None and not (run / "seed-0" / marker).exists():
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    assert small_runs.run(command).returncode == 0
    assert small_finetuning.results(run) == small_finetuning.results(directory)
