"""The job audit: draws, waits for labels, and reports."""

import json
import pathlib
import re
import shlex
import tarfile

import numpy as np
import pytest

from clipdg_jax.data import schema
from clipdg_jax.domains import annotators, labels
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import stats
from clipdg_jax.jobs import audit
from tests.domains.curation import small_audit
from tests.jobs import small_runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_audit.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world, tmp_path):
    made = small_runs.load_config("audit").get_config("own")
    made.data.root = str(world.root)
    made.n, made.pool.n = 40, 120
    made.pool.scores = str(world.scores)
    made.labels.path = str(tmp_path / "audit.sqlite")
    return made


def results(directory: pathlib.Path) -> dict:
    return json.loads((directory / "results.json").read_text())


def label(config, world, leave=0, annotator="anna"):
    """Labels all draws rightly, save the last few of each."""
    truth = {small_audit.key(i): schema.DOMAINS[d] for i, d in enumerate(world.truth.tolist())}
    with labels.Store(config.labels.path) as store:
        for draw in store.draws():
            keys = [item.key for item in store.items(draw.id)]
            found = {key: truth[key] for key in keys[: len(keys) - leave]}
            store.set_all(annotator, draw.id, found)


def test_people_label_and_the_same_command_reports(config, world, tmp_path, capsys):
    run = tmp_path / "run"
    audit.run(config, run)
    told = capsys.readouterr().out
    assert not (run / "results.json").exists()
    state = json.loads((run / "state.json").read_text())
    assert state["state"] == audit.WAITING
    assert told.startswith(audit.WAITING)
    with labels.Store(config.labels.path) as store:
        draws = store.draws()
    assert [(d.dataset, d.order, d.size) for d in draws] == [
        ("natural", "audit", 40),
        ("rendition", "audit", 40),
        ("pool", "stratified", 120),
    ]
    commands = [each.strip() for each in told.splitlines() if "tools.label" in each]
    assert commands == [c for one in state["missing"].values() for c in one["commands"]]
    for command, draw in zip(commands, draws, strict=True):
        flags = dict(part.lstrip("-").split("=", 1) for part in shlex.split(command)[3:])
        assert flags.pop("annotator") == "$USER"
        assert flags == {
            "data_root": str(world.root),
            "dataset": draw.dataset,
            "labels": config.labels.path,
            "draw": str(draw.id),
        }

    label(config, world, leave=3)
    audit.run(config, run)
    assert "natural: 3 of 40 records to label" in capsys.readouterr().out
    assert not (run / "results.json").exists()
    config.allow_partial = True
    audit.run(config, run)
    assert "Of 200 records, 9 are missing." in capsys.readouterr().out
    partial = json.loads((run / "partial.json").read_text())
    assert (partial["datasets"]["natural"]["n"], partial["missing"]) == (37, 9)
    assert not (run / "results.json").exists()

    config.allow_partial = False
    label(config, world)
    audit.run(config, run)
    found = results(run)
    assert found["job"] == "audit"
    assert not (run / "state.json").exists()
    assert not (run / "partial.json").exists()
    for name in ("natural", "rendition"):
        one = found["datasets"][name]
        assert (one["n"], one["claimed"]) == (40, 0.98)
        assert (one["low"], one["high"]) == stats.wilson_interval(one["correct"], 40)
        assert one["truth"] == world.precision(name)
    assert sum(one["value"] for one in found["shares"].values()) == pytest.approx(1)
    for number, name in enumerate(schema.DOMAINS):
        assert found["shares"][name]["truth"] == np.mean(world.truth == number)
    table = (run / "audit.md").read_text()
    assert re.search(r"\| natural \| 40 \| \d+ \| [\d.]+ \|", table)
    assert "## Domains of the pool" in table
    assert (run / "audit.png").read_bytes().startswith(b"\x89PNG")

    before = (run / "results.json").read_bytes()
    capsys.readouterr()
    audit.run(config, run)
    assert "this run is complete" in capsys.readouterr().out
    assert (run / "results.json").read_bytes() == before
    config.seed = 1
    with pytest.raises(UserError, match="another seed"):
        audit.run(config, run)


def test_disputes_wait_for_a_decision(config, world, tmp_path, capsys):
    config.pool.name, config.labels.min_annotators = "", 2
    audit.run(config, tmp_path / "run")
    label(config, world)
    with labels.Store(config.labels.path) as store:
        drawn = {draw.id: [item.key for item in store.items(draw.id)] for draw in store.draws()}
        for draw, keys in drawn.items():
            store.set_all("ben", draw, dict.fromkeys(keys, "ambiguous"))
    capsys.readouterr()
    audit.run(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert re.search(r"natural: \d+ to decide\n.* --annotator=\$USER --adjudicate", told)
    with labels.Store(config.labels.path) as store:
        for draw, keys in drawn.items():
            store.adjudicate_all("dan", draw, dict.fromkeys(keys, "natural"))
    audit.run(config, tmp_path / "run")
    found = results(tmp_path / "run")
    assert found["datasets"]["natural"]["correct"] == 40
    assert found["datasets"]["rendition"]["correct"] == 0
    assert (found["shares"], found["notes"]) == ({}, [])
    assert "refuted" in (tmp_path / "run" / "audit.md").read_text()


def test_the_demo_labels_by_itself(config, world, tmp_path, capsys):
    demo = small_runs.load_config("audit").get_config()
    config.labels = demo.labels
    config.datasets = "natural,rendition,ambiguous"
    config.labels.simulate.error = 0.0
    audit.run(config, tmp_path / "run")
    found = results(tmp_path / "run")
    assert (tmp_path / "run" / audit.SIMULATED).exists()
    assert found["missing"] == 0
    assert found["datasets"]["ambiguous"]["claimed"] is None
    for name, one in found["datasets"].items():
        assert one["low"] <= world.precision(name) <= one["high"]
    told = capsys.readouterr().out
    assert "share of the pool" in told
    assert annotators.name_of(3) in labels.Store(tmp_path / "run" / audit.SIMULATED).annotators()


def test_a_pool_in_tars_takes_the_written_datasets(config, tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w"):
        pass
    config.pool.name = str(tmp_path / "tars")
    config.labels = small_runs.load_config("audit").get_config().labels
    audit.run(config, tmp_path / "two")
    assert results(tmp_path / "two")["shares"] == {}
    assert "not read at random" in results(tmp_path / "two")["notes"][0]
    config.datasets = "natural,rendition,ambiguous"
    audit.run(config, tmp_path / "three")
    found = results(tmp_path / "three")
    assert found["strata"].keys() == set(schema.DOMAINS)
    assert sum(one["value"] for one in found["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"datasets": "natural,drawings"},
            r"config\.datasets: .*drawings: no such dataset.*curate",
        ),
        ({"datasets": "pool"}, r"config\.datasets: 'pool' is what the pool is called here"),
        ({"datasets": " , "}, r"config\.datasets: is empty"),
        ({"n": 1000}, r"config\.n: is 1000, but natural has \d+ records"),
        ({"pool.n": 10}, r"config\.pool\.n: is 10; the pool has 600"),
        ({"pool.scores": "nowhere"}, "nowhere: holds no scores of 3 of the pool's 3 shards"),
        ({"pool.duplicates": "nowhere"}, "nowhere: does not exist"),
        ({"labels.path": "no/where"}, "its directory does not exist"),
    ],
)
def test_mistakes_are_one_line(config, tmp_path, fields, told):
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=told) as refused:
        audit.run(config, tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_unknown_truth_cannot_be_simulated(config, world, tmp_path):
    config.labels.simulate = small_runs.load_config("audit").get_config().labels.simulate
    config.datasets, config.pool.name = "pool", ""  # Its records say no true domain besides.
    with pytest.raises(UserError, match=r"the true domain of r/\d+ of pool is unknown"):
        audit.run(config, tmp_path / "run")


def test_labels_of_another_version_do_not_count(config, world, tmp_path):
    config.pool.name = ""
    audit.run(config, tmp_path / "run")
    label(config, world)
    other = small_audit.make(tmp_path / "other", 300, seed=4)
    config.data.root = str(other.root)
    with pytest.raises(UserError, match=r"belongs to a run with another inputs\.natural"):
        audit.run(config, tmp_path / "run")
    with pytest.raises(UserError, match="labels of natural are of another version"):
        audit.run(config, tmp_path / "new")
