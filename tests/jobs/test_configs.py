"""Every preset of every config tells what it would take, without data."""

import collections
import re

import pytest

from clipdg_jax import jobs
from clipdg_jax.jobs import inputs, pretrain
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.training import dry_run
from tests.jobs import small_runs


def _marks(name: str, preset: str):
    """The paper's runs differ in their numbers only, so that a few of them do."""
    slow = name == "paper" and preset not in ("natural=57M", "natural=0.5M,rendition=15.5M")
    return pytest.param(name, preset, marks=[pytest.mark.full] * slow)


PRESETS = [
    (path.stem, preset)
    for path in sorted((small_runs.REPO / "configs").glob("*.py"))
    for preset in getattr(small_runs.load_config(path.stem), "PRESETS", ("",))
]


@pytest.mark.parametrize(("name", "preset"), [_marks(*one) for one in PRESETS])
def test_dry_run(name, preset, tmp_path, capsys):
    config = small_runs.load_config(name).get_config(preset)
    config.lock()
    config.dry_run = True
    jobs.module(config).run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert printed.strip()
    assert not (tmp_path / "run").exists(), "a dry run leaves nothing behind"


def test_the_papers_run(capsys, tmp_path):
    config = small_runs.load_config("mix").get_config("paper,natural=44M,rendition=13M")
    config.dry_run = True
    jobs.module(config).run(config, tmp_path)
    lines = dict(
        line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    told = {key.strip(): value.strip() for key, value in lines.items()}
    assert told["parameters"] == "151,277,313"
    assert told["steps"] == f"{57_000_000 // 16_384 * 32:,}"
    assert told["devices"].startswith("8 ")
    assert told["FLOPs per example"].startswith("28.7")  # A caption a row: 41.7.
    # fp32 parameters and two moments, whole on each device, and two counters.
    state = 3 * 151_277_313 * 4 / 2**30
    assert float(told["state per device"].split()[0]) == pytest.approx(state, abs=1e-3)


def test_fsdp_divides_the_state(capsys, tmp_path):
    def state_gib(fsdp: int) -> float:
        config = small_runs.load_config("mix").get_config("paper")
        config.dry_run, config.mesh.fsdp = True, fsdp
        jobs.module(config).run(config, tmp_path)
        (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("state per")]
        return float(line.split()[3])

    # Vectors stay whole.
    assert state_gib(8) == pytest.approx(state_gib(1) / 8, rel=0.03)


def test_inputs_make_what_the_configs_name(monkeypatch):
    monkeypatch.chdir(small_runs.REPO)
    for name, preset in PRESETS:
        for given in small_runs.load_config(name).get_config(preset).get("inputs", ()):
            inputs.load(given)

    def config(name, preset=""):
        return small_runs.load_config(name).get_config(preset)

    dedup, classify = map(inputs.workdir, ("configs/dedup.py", "configs/classify.py:demo"))
    curate = inputs.workdir("configs/curate.py")
    assert config("curate").duplicates == str(dedup / "duplicates.parquet")
    assert config("curate").classifier == str(classify / config("classify", "demo").method)
    assert config("classify", "demo").data.exclude == config("curate").duplicates
    assert config("audit").pool.duplicates == config("curate").duplicates
    assert config("audit").pool.scores == str(curate / "scores")
    encoder = config("mix", "encoder")
    compare = config("classify", "compare")
    assert compare.encoder.checkpoint == str(inputs.workdir("configs/mix.py:encoder"))
    assert compare.encoder.model.name == encoder.model.name
    assert compare.encoder.model.vision.image_size == encoder.model.vision.image_size
    assert compare.data.demo == encoder.data.demo
    worlds = [
        config(name, preset).data.demo
        for name, preset in (("mix", ""), ("dedup", ""), ("classify", "demo"), ("curate", ""))
    ]
    assert all(world == worlds[0] for world in worlds)
    assert {"natural", "rendition"} == set(config("curate").write.split(","))
    assert config("mix").eval.suites == ",".join(
        f"{suite}_clean" for suite in config("curate").test_sets.split(",")
    )


PAPER = small_runs.load_config("paper")


@pytest.mark.parametrize("preset", PAPER.PRETRAININGS)
def test_the_papers_hours_are_those_of_the_dry_run(preset):
    config = PAPER.get_config(preset)
    hours = dry_run.hours(pretrain.operations(config), "A100", 8)
    # 28.75 GFLOP a pair, captions packed in 0.22 rows each; epochs of whole batches.
    amounts = [float(part.split("=")[1].rstrip("M")) for part in preset.split(",")]
    pairs = sum(amounts) * 1e6 // 16_384 * 16_384 * 32
    assert hours == pytest.approx(28.749e9 * pairs / (0.4 * 312e12 * 8) / 3600, rel=1e-3)
    (line,) = re.findall(rf"^    {re.escape(preset)} +([\d.]+)$", PAPER.__doc__, re.MULTILINE)
    assert float(line) == round(hours, 1)


def test_every_run_of_the_paper_is_there_once():
    assert len(PAPER.PRETRAININGS) == len(set(PAPER.PRETRAININGS)) == 26
    totals = collections.Counter(
        sum(float(part.split("=")[1].rstrip("M")) for part in preset.split(","))
        for preset in PAPER.PRETRAININGS
    )
    # Sizes of the runs in millions: natural alone, random controls, rendition, and mixes of both.
    assert totals == {57: 4, 45: 2, 30: 4, 16: 11, 8: 5}
    sweep = small_runs.load_config("sweep").get_config("paper")
    assert [cell.partition(":")[2] for cell in sweep.cells] == list(PAPER.PRETRAININGS)


def _hours(preset: str) -> float:
    (hours,) = re.findall(rf"^    {preset} +([\d.]+)  ", PAPER.__doc__, re.MULTILINE)
    return float(hours)


def test_the_classifiers_hours_are_those_of_its_training():
    config = PAPER.get_config("classifier")
    model = model_config.from_config({**config.encoder.model.to_dict(), "dtype": config.dtype})
    seen = 13_000 // config.finetune.batch_size * config.finetune.batch_size
    operations = 3 * flops.forward_flops_image(model) * seen * config.finetune.epochs
    assert _hours("classifier") == round(dry_run.hours(operations, "A100", 8), 1)


@pytest.mark.full
@pytest.mark.parametrize("preset", ["imagenet", "domainnet"])
def test_the_hours_of_fine_tuning_are_those_of_every_training(preset, capsys, tmp_path):
    config = PAPER.get_config(preset)
    config.dry_run = True
    jobs.module(config).run(config, tmp_path)
    blocks = capsys.readouterr().out.split("\n\n")
    total, seen = 0.0, set()
    for block in blocks:
        told = re.match(r"\S+: (\S+) on .* images, (\d+) training", block)
        # What is only interpolated shares its training with another.
        if told and told[1] not in seen:
            seen.add(told[1])
            (size, prefix) = re.search(r"FLOPs of the run +([\d.,]+) (.)FLOP", block).groups()
            operations = float(size.replace(",", "")) * {"E": 1e18, "P": 1e15}[prefix]
            total += int(told[2]) * dry_run.hours(operations, "A100", 8)
    assert _hours(preset) == round(total, 1)
