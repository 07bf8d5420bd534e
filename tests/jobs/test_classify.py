"""Domain classifiers end to end: what a run leaves, going on after a kill, wrong inputs."""

import dataclasses
import json
import shutil
import subprocess
import time

import numpy as np
import pytest

from clipdg_jax.data import demo, files, resolve, schema
from clipdg_jax.domains import calibration, classifier, examples, labels, pictures, scores
from clipdg_jax.domains.methods import ensemble
from clipdg_jax.errors import UserError
from clipdg_jax.jobs import classify
from clipdg_jax.training import sharding
from tests import children
from tests.jobs import small_classifiers, small_runs

NAMES = small_classifiers.METHODS.split(",")
MEMBERS = small_classifiers.FIELDS["ensemble.members"].split(",")


@pytest.fixture(scope="module")
def world(shared_tmp):
    """The small demo pool."""
    root = shared_tmp / "classify-pool"
    config = small_classifiers.config(root)
    demo.ensure(root, demo.DemoSpec(**config.data.demo.to_dict()), processes=0)
    return root


@pytest.fixture(scope="module")
def finished(world, shared_tmp):
    """One uninterrupted comparison: what all others are compared with; only ever read."""
    workdir = shared_tmp / "classify-run"
    with files.lock(shared_tmp / "classify-run.lock", wait=True):
        if not (workdir / "results.json").exists():
            classify.run(small_classifiers.config(world), workdir)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def without_sheets(monkeypatch):
    """Most of a small run's time goes into its contact sheets, which the others do without."""
    monkeypatch.setattr(pictures, "contact_sheet", lambda *_: None)


def contents(directory):
    """Every file but the lock and what a training keeps, by its path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock" and "fit" not in path.parts
    }


def test_what_a_run_leaves(finished):
    found = small_runs.results(finished)
    assert found["job"] == "classify"
    assert found["encoder"] == "scratch"
    assert set(found["sets"]) == {"validation", "test", "test/pool"}
    assert (found["sets"]["validation"]["n"], found["sets"]["test"]["n"]) == (100, 60)
    assert found["sets"]["test/pool"]["n"] == 120
    assert list(found["methods"]) == NAMES
    for name in ("validation", "test", "test/pool"):
        for told in found["sets"][name]["methods"].values():
            assert np.sum(told["decisions"]) == found["sets"][name]["n"]
    table = (finished / "table.md").read_text()
    for name in NAMES:
        assert f"**{name}**" in table
    for name in ("validation", "test", "test_pool"):
        assert (finished / f"curves-{name}.png").read_bytes().startswith(b"\x89PNG")
    sheets = {path.name for path in (finished / "sheets").iterdir()}
    assert {f"{s}-{n}-natural.png" for s in ("test", "test_pool") for n in NAMES} <= sheets
    assert len(sheets) == 2 * 2 * len(NAMES)


def test_labels_and_splits_add_up(finished, world):
    found = small_runs.results(finished)["labels"]
    parts = json.loads((finished / "splits.json").read_text())
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {name: sum(counts.values()) for name, counts in found["splits"].items()}
    assert (sizes["validation"], sizes["test"]) == (100, 60)
    every = [key for part in parts.values() for key in part]
    assert len(every) == len(set(every)) == found["records"]
    assert found["records"] + found["ties"] == 280
    source = resolve.resolve("pool", world)
    truth = {record.key: record.domain for record in map(source.record, range(len(source)))}
    scored = scores.read(finished / "keywords" / "scores.parquet")
    assert list(scored["test"].keys) == parts["test"]
    right = [truth[k] == schema.DOMAINS[d] for k, d in _rows(scored["test"])]
    assert np.mean(right) > 0.95  # Three annotators of 2 % errors each.
    with labels.Store(finished / "labels.sqlite") as store:
        assert len(store.draws()) == 1


def _rows(scored):
    return zip(scored.keys, scored.domain.tolist(), strict=True)


def test_saved_classifiers_say_what_was_measured(finished, world):
    everything = examples.everything(resolve.resolve("test/pool", world))
    mesh = sharding.make_mesh()
    saved = small_runs.results(finished)["methods"]
    assert classifier.is_saved(finished / "ensemble")
    for name in NAMES:
        wanted = all(
            decider["threshold"] is not None for decider in saved[name]["deciders"].values()
        )
        assert classifier.is_saved(finished / name) == wanted
        if not wanted:
            continue
        loaded = classifier.load(finished / name, mesh)
        again = scores.of(loaded.method, everything)
        measured = scores.read(finished / name / "scores.parquet")["test/pool"]
        assert again.keys == measured.keys
        np.testing.assert_array_equal(again.probability, measured.probability, err_msg=name)
        for own, told in zip(loaded.calibration.deciders, saved[name]["deciders"].values()):
            assert own.threshold == told["threshold"]
        assert loaded.provenance["encoder"] == "scratch"


def test_the_ensemble_is_made_of_its_members(finished):
    parts = [scores.read(finished / name / "scores.parquet")["test"] for name in MEMBERS]
    whole = scores.read(finished / "ensemble" / "scores.parquet")["test"]
    product = np.prod([np.float64(part.probability) for part in parts], axis=0) ** (1 / len(parts))
    rest = np.prod(
        [
            np.maximum(1 - np.float64(part.probability).sum(axis=1), ensemble.FLOOR)
            for part in parts
        ],
        axis=0,
    ) ** (1 / len(parts))
    expected = product / (product.sum(axis=1) + rest)[:, None]
    np.testing.assert_allclose(whole.probability, expected, atol=1e-5)


def test_the_same_command_again_says_complete(copied, world, capsys):
    before = contents(copied)
    classify.run(small_classifiers.config(world), copied)
    printed = capsys.readouterr().out
    assert "complete" in printed
    assert "fitting" not in printed
    assert contents(copied) == before


def test_a_stopped_run_goes_on(copied, finished, world, without_sheets, capsys):
    """Stopped while the third method was fitted; and of a trial that lacks its fitted state."""
    (copied / "results.json").unlink()
    shutil.rmtree(copied / "ensemble")
    (copied / "centroid" / "scores.parquet").unlink()
    (copied / "keywords" / "state.safetensors").unlink()
    (copied / "table.md").unlink()
    classify.run(small_classifiers.config(world), copied)
    printed = capsys.readouterr().out
    for name in NAMES:
        assert (f"{name}: fitting" in printed) == (name in ("centroid", "keywords"))
    ours, theirs = contents(copied), contents(finished)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if not name.endswith((".sqlite", ".sqlite-wal", ".sqlite-shm", "config.json")):
            assert ours[name] == theirs[name], name


@pytest.mark.full
def test_killed_runs_end_with_the_same_figures(world, tmp_path):
    """Killed with SIGKILL while labels are made, in a training, and between two methods."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = small_runs.run(small_classifiers.command(world, whole))
    assert done.returncode == 0, done.stderr
    command = small_classifiers.command(world, killed)
    for place in (
        "labels.sqlite",
        "amplitude/scores.parquet",
        "finetune/fit/metrics.jsonl",
        "finetune/scores.parquet",
    ):
        _kill_when(command, (killed / place).exists)
    done = small_runs.run(command)
    assert done.returncode == 0, done.stderr
    assert small_runs.results(killed) == small_runs.results(whole)
    assert (killed / "table.md").read_bytes() == (whole / "table.md").read_bytes()


def _kill_when(command, reached, limit=240):
    """Starts a run and kills it with SIGKILL as soon as `reached()`."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=children.environment(),
        cwd=small_runs.REPO,
    )
    deadline = time.monotonic() + limit
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not get to where it was to be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_another_identity_is_refused(copied, world):
    with pytest.raises(UserError, match=r"calibration.target \(was 0.6, now 0.7\)"):
        classify.run(small_classifiers.config(world, **{"calibration.target": 0.7}), copied)
    classify.run(small_classifiers.config(world, **{"data.threads": 2}), copied)  # Welcome.


@pytest.fixture(scope="module")
def cross_fitted(world, tmp_path_factory):
    """Three folds of two datasets with their records' own domains, by methods without steps."""
    workdir = tmp_path_factory.mktemp("cross") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "contact_sheet", lambda *_: None)
        classify.run(_cross_config(world), workdir)
    return workdir


def _cross_config(world, **fields):
    config = small_classifiers.config(world)
    with config.unlocked():
        config.labels.simulate = {}
    config.update_from_flattened_dict(
        {
            "labels.folds": 3,
            "data.datasets": "pool,test/natural",
            "data.test_sets": "",
            "compare": "keywords,amplitude,ensemble",
            "ensemble.members": "keywords,amplitude",
            **fields,
        }
    )
    return config


def test_cross_fitting_scores_every_record_once_unseen(cross_fitted):
    found = small_runs.results(cross_fitted)
    assert set(found["sets"]) == {"cross-fitted"}
    assert found["sets"]["cross-fitted"]["n"] == 360
    parts = json.loads((cross_fitted / "splits.json").read_text())
    assert [len(part) for part in parts.values()] == [120, 120, 120]
    assert len({key for part in parts.values() for key in part}) == 360
    for k in range(3):
        for name in ("keywords", "amplitude", "ensemble"):
            read = scores.read(cross_fitted / f"fold-{k}" / name / "scores.parquet")
            assert list(read["cross-fitted"].keys) == parts[f"fold {k}"]
    assert any(key.startswith("natural/") for key in parts["fold 0"])
    # The final classifiers have no set to score, and are saved.
    assert scores.read(cross_fitted / "keywords" / "scores.parquet") == {}
    loaded = classifier.load(cross_fitted / "ensemble", sharding.make_mesh())
    assert loaded.provenance["labels"]["folds"] == 3


def test_cross_fitted_decisions_are_the_folds_own(cross_fitted):
    """Recomputed: each fold decided at the thresholds of the two others."""
    found = small_runs.results(cross_fitted)["sets"]["cross-fitted"]["methods"]["amplitude"]
    parts = [
        scores.read(cross_fitted / f"fold-{k}" / "amplitude" / "scores.parquet")["cross-fitted"]
        for k in range(3)
    ]
    taken = np.zeros((3, 4), int)
    for k, part in enumerate(parts):
        others = scores.join([other for i, other in enumerate(parts) if i != k])
        own = calibration.calibrate(
            others.probability,
            others.domain,
            target=0.6,
            rule="point",
            min_support=5,
            allow_unreached=True,
        )
        np.add.at(taken, (part.domain, calibration.decide(part.probability, own)), 1)
    assert found["decisions"] == taken.tolist()


def test_a_stopped_cross_fit_goes_on(cross_fitted, world, without_sheets, tmp_path, capsys):
    workdir = shutil.copytree(cross_fitted, tmp_path / "run")
    (workdir / "results.json").unlink()
    (workdir / "fold-1" / "amplitude" / "scores.parquet").unlink()
    classify.run(_cross_config(world), workdir)
    assert capsys.readouterr().out.count("fitting") == 1
    assert small_runs.results(workdir) == small_runs.results(cross_fitted)


def _deciders(thresholds):
    """A calibration of these thresholds; nothing else of it is looked at."""
    dummy = calibration.calibrate(
        np.array([[0.9, 0.1], [0.1, 0.9]], np.float32),
        np.array([0, 1]),
        target=0.5,
        rule="point",
        min_support=1,
        resamples=2,
    )
    deciders = tuple(
        dataclasses.replace(decider, threshold=float(value))
        for decider, value in zip(dummy.deciders, thresholds, strict=True)
    )
    return calibration.Calibration(deciders, dummy.curves)


@pytest.mark.parametrize("seed", range(20))
def test_aligned_scores_decide_as_the_folds_own_thresholds(seed):
    rng = np.random.default_rng(seed)
    # Many near 0, near 1 and equal, as of sure classifiers; thresholds are some of the scores.
    odds = rng.normal(0, 12, (60, 2))
    probability = (1 / (1 + np.exp(-odds))).astype(np.float32)
    probability[rng.random((60, 2)) < 0.2] = rng.choice(np.float32([0, 1, 0.5, 1e-9, 1 - 6e-8]))
    pool = np.append(probability.ravel(), [np.inf] * 20 if seed % 2 else [])
    own, common = _deciders(rng.choice(pool, 2)), _deciders(rng.choice(pool, 2))
    keys = tuple(map(str, range(60)))
    part = scores.Scores(keys, np.zeros(60, np.int32), probability, np.ones(60, bool))
    aligned = classify._aligned(part, own, common)
    assert aligned.probability.dtype == np.float32
    for column in range(2):
        before, after = probability[:, column], aligned.probability[:, column]
        there = common.deciders[column].threshold
        if np.isfinite(there):
            expected = before.astype(np.float64) >= own.deciders[column].threshold
        else:
            expected = np.zeros(60, bool)
            np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(after.astype(np.float64) >= there, expected)
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()  # In the same order.


def test_alignment_to_the_same_thresholds_changes_next_to_nothing():
    rng = np.random.default_rng(0)
    probability = rng.random((50, 2)).astype(np.float32)
    one = _deciders(probability[7])
    part = scores.Scores(("k",) * 50, np.zeros(50, np.int32), probability, np.ones(50, bool))
    aligned = classify._aligned(part, one, one)
    np.testing.assert_allclose(aligned.probability, probability, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"compare": "keywords,vibes"}, "method: 'vibes' is unknown"),
        ({"compare": ","}, "config.compare: is empty"),
        ({"data.datasets": ""}, "config.data.datasets: is empty"),
        ({"data.test_sets": "pool"}, "data.test_sets: pool is among"),
        ({"data.datasets": "pool,test/pool"}, "pool and test/pool both say that they are 'pool'"),
        ({"data.test_sets": "test/missing"}, "missing"),
        ({"encoder.checkpoint": "no/such/run"}, "no/such/run: holds no checkpoint"),
        ({"labels.validation": 5000}, "need 5060 labels|records"),
        ({"labels.test": 1}, "for test says"),
        ({"ensemble.members": "keywords,vibes"}, "ensemble.members: 'vibes'"),
        ({"calibration.target": 1.5}, "calibration.target: is 1.5"),
        ({"calibration.rule": "luck"}, "calibration.rule: is 'luck'"),
        ({"encoder.model.vision.width": 33}, "vision.width"),
    ],
)
def test_wrong_fields_are_one_line_before_any_fit(world, tmp_path, capsys, fields, named):
    with pytest.raises(UserError, match=named) as refused:
        classify.run(small_classifiers.config(world, **fields), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert "fitting" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "results.json").exists()


def _with_labels(world, path, **fields):
    config = small_classifiers.config(world, "keywords", **{"labels.path": str(path), **fields})
    with config.unlocked():
        config.labels.simulate = {}
    return config


def test_wrong_label_files_are_one_line(world, tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read .*tools\.label"):
        classify.run(_with_labels(world, tmp_path / "none.csv"), tmp_path / "run")
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("key,domain\npool/0,natural\nnobody/7,rendition\n")
    with pytest.raises(UserError, match=r"pool: has no record .* keys are unknown"):
        classify.run(_with_labels(world, unknown), tmp_path / "run")
    other = tmp_path / "other.csv"
    other.write_text("key,domain,dataset\nx/0,natural,elsewhere\n")
    with pytest.raises(UserError, match=r"none of its 1 labels is of pool"):
        classify.run(_with_labels(world, other), tmp_path / "other")


def test_labels_of_one_domain_do_not_do(world, tmp_path):
    source = resolve.resolve("pool", world)
    path = tmp_path / "one.csv"
    rows = [f"{source.record(i).key},natural,random" for i in range(60)]
    path.write_text("key,domain,order\n" + "\n".join(rows))
    fields = {"labels.min_annotators": 1, "labels.validation": 20, "labels.test": 20}
    with pytest.raises(UserError, match="none of the 20 for train says rendition"):
        classify.run(_with_labels(world, path, **fields), tmp_path / "run")


def test_an_unreachable_target_of_one_method_is_told(world, without_sheets, tmp_path, capsys):
    fields = {"calibration.target": 0.999, "calibration.rule": "lower_bound"}
    config = small_classifiers.config(world, "keywords", **fields)
    for fits in (1, 0):  # What was fitted is kept.
        with pytest.raises(UserError, match=r"no threshold reaches precision 0\.999"):
            classify.run(config, tmp_path)
        assert capsys.readouterr().out.count("fitting") == fits
    assert not classifier.is_saved(tmp_path / "keywords")
    config.method = "compare"
    config.compare = "keywords,amplitude"
    classify.run(config, tmp_path / "both")  # A comparison shows it instead.
    assert "no classifier reaches the target: none saved" in capsys.readouterr().out
    assert "Without a threshold" in (tmp_path / "both" / "table.md").read_text()


@pytest.mark.parametrize(("folds", "named"), [(2, "config.labels.folds: is 2"), (500, "500")])
def test_too_few_or_many_folds(world, tmp_path, folds, named):
    with pytest.raises(UserError, match=named):
        classify.run(_cross_config(world, **{"labels.folds": folds}), tmp_path)


def test_damaged_trials_are_told(copied, world):
    (copied / "results.json").unlink()
    state = copied / "keywords" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"keywords/state\.safetensors: is damaged") as refused:
        classify.run(small_classifiers.config(world), copied)
    assert "\n" not in str(refused.value)
    state.write_bytes(whole)
    (copied / "amplitude" / "scores.parquet").write_bytes(b"PAR1, once")
    with pytest.raises(UserError, match=r"amplitude/scores\.parquet: is damaged") as refused:
        classify.run(small_classifiers.config(world), copied)
    assert "\n" not in str(refused.value)


def test_the_dry_run_tells_of_an_ensembles_members(world, tmp_path, capsys):
    config = small_classifiers.config(world, "ensemble", dry_run=True)
    classify.run(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "ensemble: combines its members keywords, amplitude, finetune" in printed
    assert "keywords: solved at once" in printed
    assert "finetune, 120 labels" in printed
    assert not (tmp_path / "run").exists()
