"""Curation end to end: what a run leaves, going on after kills and errors, wrong inputs."""

import errno
import json
import os
import signal
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from clipdg_jax.data import dataset, files
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites
from clipdg_jax.jobs import curate
from tests.domains import small_datasets
from tests.domains.curation import small_curation as small_pool
from tests.domains.curation.test_report import check_page
from tests.jobs import small_curation, small_runs

DATASETS = ("natural", "rendition", "random-natural")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("world")
    small_curation.make(made)
    return made


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """One uninterrupted run in one process: what all others are compared with."""
    place = tmp_path_factory.mktemp("finished")
    curate.run(small_curation.config(root, place / "out"), place / "run")
    return place


def run_killed(count, root, place):
    """Runs in a process that is killed before its `count`-th file appears."""
    module = "tests.jobs.small_curation"
    paths = (root, place / "run", place / "out")
    done = small_runs.run([sys.executable, "-m", module, str(count), *map(str, paths)])
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_results_add_up_and_know_the_truth(finished):
    results = small_runs.results(finished / "run")
    pool = results["pool"]
    duplicates = len(small_curation.DROPPED)
    assert pool["seen"] == small_curation.RECORDS
    assert pool["unscored"] == {"corrupt_image": 1}
    assert pool["duplicates"] == duplicates
    # 20 of each domain, less what was dropped: numbers 2 (ambiguous), 3, 49 and 25.
    assert pool["decided"] == {"natural": 19, "rendition": 18, "ambiguous": 19, "conflict": 0}
    assert {name: one["records"] for name, one in results["datasets"].items()} == {
        "natural": 19,
        "rendition": 18,
        "random-natural": 19,
    }
    for name, one in results["datasets"].items():
        assert one["records"] + sum(one["dropped"].values()) == pool["seen"], name
    exact = {"precision": 1.0, "recall": 1.0}
    assert results["ground_truth"] == {"natural": exact, "rendition": exact}
    assert results["clean"]["photos"]["records"] == 3
    assert results["clean"]["photos"]["dropped"] == {"not_natural": 6}
    assert results["suites"] == ["zoo_clean"]
    assert results["composition"]["test_sets"]["photos"]["n"] == 9
    assert results["scoring"]["waiting_share"] <= 1


def test_every_dataset_opens_in_tfds_with_the_pools_bytes(finished, root):
    pool = dataset.open_dataset(root / "pool")
    images = {pool.record(i).key: pool.record(i).image for i in range(len(pool))}
    for name in (*DATASETS, "clean/photos"):
        own = dataset.open_dataset(finished / "out" / name)
        builder = tfds.builder_from_directory(finished / "out" / name)
        decoders = {"image": tfds.decode.SkipDecoding()}
        source = builder.as_data_source(own.manifest.split, decoders=decoders)
        assert len(source) == len(own) > 0
        if not name.startswith("clean"):
            assert all(one["image"] == images[one["key"].decode()] for one in source)
        assert builder.info.features["label"].num_classes == len(small_pool.CLASSES)
    controls = dataset.open_dataset(finished / "out" / "random-natural")
    assert controls.domain == ""
    assert {controls.record(i).domain for i in range(len(controls))} > {"natural"}


def test_release_page_and_clean_suite(finished, root):
    release = pq.read_table(finished / "run" / "release.parquet").to_pylist()
    pool = dataset.open_dataset(root / "pool")
    by_key = {pool.record(i).key: pool.record(i) for i in range(len(pool))}
    assert len(release) == 19 + 18 + 19
    for row in release:
        record = by_key[row["key"]]
        assert row["url"] == record.meta["url"]
        assert row["sha256"] == curate.release.hashlib.sha256(record.image).hexdigest()
    text = (finished / "run" / "report.html").read_text()
    assert len(check_page(text)) == 19 + 18 + 19 + 18 + 18 + 19 + 19
    (suite,) = suites.load(["zoo_clean"], str(finished / "out"))
    assert len(suite.test_sets[0].source) == 3


def test_a_finished_run_says_so_and_another_is_refused(finished, root, capsys):
    before = small_curation.sums(finished)
    curate.run(small_curation.config(root, finished / "out", processes=7), finished / "run")
    assert "this run is complete" in capsys.readouterr().out
    assert small_curation.sums(finished) == before
    with pytest.raises(UserError, match=r"another seed \(was 0, now 1\)"):
        curate.run(small_curation.config(root, finished / "out", seed=1), finished / "run")
    small_datasets.saved(root / "another", why="another")
    other = small_curation.config(
        root, finished / "out", classifier=str(root / "another"), test_sets=""
    )
    with pytest.raises(UserError, match=r"another .*inputs.classifier \(was"):
        curate.run(other, finished / "run")
    with pytest.raises(UserError, match=r"out/natural: was begun with classifier="):
        curate.run(other, finished / "run2")


def test_killed_and_finished_by_two_processes_gives_the_same_bytes(finished, root, tmp_path):
    run_killed(30, root, tmp_path)  # In the middle of writing.
    curate.run(small_curation.config(root, tmp_path / "out", processes=2), tmp_path / "run")
    assert small_curation.sums(tmp_path / "out") == small_curation.sums(finished / "out")
    assert not list(tmp_path.rglob(".parts"))
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.full
@pytest.mark.parametrize("count", [3, 9, 17, 29, 45, 60])
def test_killed_anywhere(finished, root, tmp_path, count):
    run_killed(count, root, tmp_path)
    run_killed(2, root, tmp_path)
    curate.run(small_curation.config(root, tmp_path / "out"), tmp_path / "run")
    assert small_curation.sums(tmp_path / "out") == small_curation.sums(finished / "out")


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 4])
def test_any_number_of_processes(finished, root, tmp_path, processes):
    made = small_curation.config(root, tmp_path / "out", processes=processes)
    curate.run(made, tmp_path / "run")
    assert small_curation.sums(tmp_path / "out") == small_curation.sums(finished / "out")
    own, other = (
        [files.sha256(path) for path in sorted((place / "run" / "scores").glob("*.parquet"))]
        for place in (tmp_path, finished)
    )
    assert own == other


@pytest.mark.parametrize("count", [2, 25, 40])
def test_a_full_disk_is_one_line_and_costs_no_earlier_work(
    finished, root, tmp_path, monkeypatch, count
):
    publish, left = files.publish, count

    def publish_while_there_is_room(temporary, path):
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(temporary, path)

    config = small_curation.config(root, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(files, "publish", publish_while_there_is_room)
        with pytest.raises(UserError, match="no space left to write it; free some space"):
            curate.run(config, tmp_path / "run")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("scores/*.parquet")}
    curate.run(config, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert small_curation.sums(tmp_path / "out") == small_curation.sums(finished / "out")


def test_a_shard_that_is_damaged_in_the_middle_stops_one_line_short_and_goes_on(
    finished, root, tmp_path, monkeypatch
):
    config = small_curation.config(root, tmp_path / "out")
    # After the pool was opened, which checks sizes: as when a disk fails while the run goes on.
    (path,) = (root / "pool").glob("*-00003-of-*")
    whole = path.read_bytes()
    monkeypatch.setattr(
        curate.workdir, "claim", lambda *a, claim=curate.workdir.claim: _truncating(path, claim(*a))
    )
    try:
        with pytest.raises(UserError, match=f"{path.name}: cannot be opened as a shard"):
            curate.run(config, tmp_path / "run")
    finally:
        path.write_bytes(whole)
    monkeypatch.undo()
    assert len(list((tmp_path / "run" / "scores").glob("*.parquet"))) == 3
    curate.run(config, tmp_path / "run")
    assert small_curation.sums(tmp_path / "out") == small_curation.sums(finished / "out")


def _truncating(path, claim):
    path.write_bytes(path.read_bytes()[:70_000])
    return claim


def test_tars_are_read_in_place(finished, root, tmp_path):
    config = small_curation.config(root, tmp_path / "out", pool="tars", duplicates="", test_sets="")
    curate.run(config, tmp_path / "run")
    results = small_runs.results(tmp_path / "run")
    assert "ground_truth" not in results
    assert results["pool"]["decided"] == {
        "natural": 20,
        "rendition": 19,
        "ambiguous": 20,
        "conflict": 0,
    }
    made = dataset.open_dataset(tmp_path / "out" / "rendition")
    numbers = [int(made.record(i).key[-5:]) for i in range(len(made))]
    assert numbers == [n for n in range(60) if n % 3 == 1 and n != 25]
    assert all(made.record(i).image == small_pool.picture(n) for i, n in enumerate(numbers))


@pytest.mark.parametrize("pool", ["pool", "tars"])
def test_a_list_selects_exactly_what_it_names(root, tmp_path, pool):
    wanted = np.random.default_rng(0).permutation(60)[:20].tolist()
    path = tmp_path / "urls.txt"
    path.write_text("\n".join(small_pool.url(n) for n in [*wanted, 999]))
    config = small_curation.config(root, tmp_path / "out", "list", pool=pool, list=str(path))
    curate.run(config, tmp_path / "run")
    made = dataset.open_dataset(tmp_path / "out" / "listed")
    found = [made.record(i) for i in range(len(made))]
    assert [record.meta["url"] for record in found] == [small_pool.url(n) for n in sorted(wanted)]
    results = small_runs.results(tmp_path / "run")
    assert results["list"] == {"entries": 21, "repeated": 0, "matched": 20, "unmatched": 1}
    assert results["datasets"]["listed"]["dropped"] == {"not_listed": 40}
    release = pq.read_table(tmp_path / "run" / "release.parquet").to_pylist()
    assert [row["key"] for row in release] == [record.key for record in found]
    assert {row["natural"] for row in release} == {None}


def test_a_list_that_matches_nothing_is_refused_and_can_be_mended(root, tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("nobody\n")
    config = small_curation.config(root, tmp_path / "out", "list", list=str(path))
    with pytest.raises(UserError, match=r"keys.txt: none of its 1 entries is the key of any of th"):
        curate.run(config, tmp_path / "run")
    assert not (tmp_path / "out" / "listed").exists()
    path.write_text("r/007\n")
    curate.run(config, tmp_path / "run")
    assert len(dataset.open_dataset(tmp_path / "out" / "listed")) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"write": "natural,drawings"}, "config.write: 'drawings' is unknown"),
        ({"controls": "all"}, "config.controls: 'all' is unknown"),
        ({"write": ""}, "config.write: is empty"),
        ({"classifier": ""}, "config.classifier: is empty"),
        ({"classifier": "nowhere"}, "is not a saved classifier"),
        ({"batch_size": 0}, "config.batch_size: is 0"),
        ({"pool": "nowhere"}, "no such dataset"),
        ({"duplicates": "nowhere.parquet"}, "nowhere.parquet: does not exist"),
        ({"list": "nowhere.txt"}, "config.controls: needs a classifier"),
        ({"list": "nowhere.txt", "controls": "", "test_sets": ""}, "nowhere.txt is no file"),
    ],
)
def test_wrong_fields_are_told_before_anything_is_written(root, tmp_path, fields, message):
    config = small_curation.config(root, tmp_path / "out", **fields)
    with pytest.raises(UserError, match=message):
        curate.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_classifier_that_takes_nothing_is_refused(root, tmp_path):
    path = tmp_path / "classifier"
    small_datasets.saved(path)
    meta = json.loads((path / "classifier.json").read_text())
    meta["calibration"]["deciders"][1] |= {"threshold": None, "refusal": "too few labels"}
    (path / "classifier.json").write_text(json.dumps(meta))
    config = small_curation.config(root, tmp_path / "out", classifier=str(path))
    with pytest.raises(UserError, match=r"its rendition decider takes nothing \(too few labels\)"):
        curate.run(config, tmp_path / "run")


def test_the_dry_run_tells_of_the_pool_that_is_there(root, tmp_path, capsys):
    config = small_curation.config(root, tmp_path / "out", dry_run=True, processes=3)
    curate.run(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "pool: 60 records" in told
    assert "write natural, rendition, random-natural in one pass" in told
    assert not list(tmp_path.iterdir())
