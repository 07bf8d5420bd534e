"""Which runs a report is of, and what it says of those that it leaves out."""

import json

import pytest

from clipdg_jax import errors
from clipdg_jax.study import runs
from tests.study import simulated

MIXES = ("natural=2k,rendition=0k", "natural=1k,rendition=1k", "natural=0k,rendition=2k")


@pytest.fixture
def sweep(tmp_path):
    return simulated.write_sweep(tmp_path / "sweep", seeds=(0,), mixes=MIXES)


def test_a_sweeps_runs_are_read(sweep):
    found = runs.collect([str(sweep)])
    assert found.left_out == {}
    assert found.suite == "demo"
    assert [run.mix for run in found.runs] == list(MIXES)
    second = found.runs[1]
    assert second.amounts == {"natural": 1000, "rendition": 1000}
    assert (second.seed, second.examples, second.steps, second.counted) == (0, 64_000, 1000, True)
    assert second.predictions.exists()


def test_half_finished_and_unreadable_runs_are_named(sweep):
    names = [path.name for path in sorted(sweep.glob("mix-*"))]
    (sweep / names[0] / "results.json").unlink()
    (sweep / names[1] / "results.json").write_text("{")
    found = runs.collect([str(sweep)])
    assert [run.name for run in found.runs] == names[2:]
    first, second = (str(sweep / name) for name in names[:2])
    assert set(found.left_out) == {first, second}
    assert "is not finished: its last logged step is 900" in found.left_out[first]
    assert "no readable results.json" in found.left_out[second]


def test_cells_that_have_not_begun_are_named(sweep):
    cells = json.loads((sweep / "sweep.json").read_text())["cells"]
    cells["later"] = next(iter(cells.values()))
    (sweep / "sweep.json").write_text(json.dumps({"cells": cells}))
    assert "has not begun" in runs.collect([str(sweep)]).left_out[str(sweep / "later")]


def test_runs_of_another_suite_are_left_out_by_name(sweep, tmp_path):
    fewer = {name: simulated.SETS[name] for name in ("natural", "sketch")}
    other = simulated.write_run(tmp_path, "natural=0.5k,rendition=1.5k", 0, sets=fewer)
    found = runs.collect([str(sweep), str(other)])
    assert len(found.runs) == 3
    assert list(found.left_out) == [str(other)]
    told = found.left_out[str(other)]
    assert "other test sets than most runs: demo/natural (800 images), demo/sketch" in told


def test_runs_of_other_jobs_are_left_out_by_name(sweep, tmp_path):
    other = simulated.write_run(tmp_path, "natural=0.5k,rendition=1.5k", 0)
    (other / "results.json").write_text(json.dumps({"job": "finetune"}))
    assert runs.collect([str(sweep), str(other)]).left_out == {
        str(other): "is a run of the job finetune; a report is of pre-trainings"
    }


def test_a_cell_twice_with_another_identity_leaves_both_out(sweep, tmp_path):
    first = sweep / "mix-natural=1k,rendition=1k-seed0"
    other = simulated.write_run(tmp_path, MIXES[1], 0, **{"inputs.natural": "other data"})
    found = runs.collect([str(sweep), str(other)])
    assert [run.mix for run in found.runs] == [MIXES[0], MIXES[2]]
    assert set(found.left_out) == {str(first), str(other)}
    for reason in found.left_out.values():
        assert "is there 2 times and not with the same identity: inputs.natural differs" in reason


def test_the_same_run_twice_counts_once(sweep, tmp_path):
    other = simulated.write_run(tmp_path, MIXES[1], 0)
    found = runs.collect([str(sweep), str(other)])
    assert len(found.runs) == 3
    assert list(found.left_out) == [str(other)]
    assert found.left_out[str(other)].startswith("repeats ")


def test_other_settings_are_told_apart(sweep, tmp_path):
    other = simulated.write_run(tmp_path, MIXES[1], 0, **{"model.name": "tiny-plain"})
    found = runs.collect([str(sweep), str(other)])
    told = runs.settings(found.runs)
    assert told[str(other)] == 'model.name="tiny-plain"'
    assert [t for t in told.values() if t] == ['model.name="tiny-plain"']


def test_no_run_and_no_sweep_is_an_error(tmp_path):
    with pytest.raises(errors.UserError, match="neither the workdir of a sweep nor"):
        runs.collect([str(tmp_path)])
    path = simulated.write_run(tmp_path, MIXES[0], 0)
    (path / "results.json").unlink()
    with pytest.raises(errors.UserError, match=r"no run is left to report on.*is not finished"):
        runs.collect([str(path)])
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(errors.UserError, match="cannot be read as a sweep's cells"):
        runs.collect([str(tmp_path)])
