"""Deduplication end to end: planted copies, references, going on after a kill, wrong inputs."""

import collections
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipdg_jax.data import dataset, demo, engine, files, resolve, schema, writing
from clipdg_jax.domains.dedup import search, signatures, similar
from clipdg_jax.errors import UserError
from clipdg_jax.jobs import dedup
from tests import children
from tests.jobs import small_runs

WORLD = {
    "natural": 0,
    "rendition": 0,
    "ambiguous": 0,
    "pool": 500,
    "pool_copies": 0.5,
    "test_natural": 20,
    "test_style": 2,
    "size": 40,
    "vocab_size": 2048,
}
FIRST_THREE = ("reencoded", "resized", "cropped")
OTHERS = ("mirrored", "recoloured")
MODES = ("exact", "perceptual", "embedding", "cascade")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    demo.ensure(root, demo.DemoSpec(**WORLD), processes=0)
    return root


def config_of(root, argument="", **fields):
    config = small_runs.load_config("dedup").get_config(argument)
    with config.unlocked():
        config.data.demo = {}
    config.data.root = str(root)
    config.processes = 0
    config.buckets.size = 150
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """The workdir of a run of each mode."""
    base = tmp_path_factory.mktemp("runs")
    for mode in MODES:
        dedup.run(config_of(world, mode), base / mode)
    return {mode: base / mode for mode in MODES}


def table(workdir):
    return pq.read_table(workdir / "duplicates.parquet").to_pylist()


def records(root, name="pool"):
    """(shard, row) -> record."""
    shards = resolve.resolve_pool(name, root).shards()
    return {(i, j): r for i, shard in enumerate(shards) for j, r in enumerate(shard)}


def test_every_mode_finds_what_it_is_for(runs, world):
    truth = {mode: small_runs.results(runs[mode])["ground_truth"] for mode in MODES}
    kinds = collections.Counter(r.meta.get("copy") for r in records(world).values())
    assert min(kinds[kind] for kind in demo.COPIES) > 30
    assert [truth[mode]["exact"] for mode in MODES] == [1, 1, 1, 1]
    assert truth["exact"]["precision"] == 1
    assert max(truth["exact"][kind] for kind in (*FIRST_THREE, *OTHERS)) == 0
    for mode in ("perceptual", "embedding"):
        assert min(truth[mode][k] for k in ("reencoded", "resized", *OTHERS)) >= 0.98
        assert truth[mode]["cropped"] < 0.6
        assert truth[mode]["precision"] >= 0.98
    assert min(truth["cascade"][kind] for kind in FIRST_THREE) >= 0.95
    assert min(truth["cascade"][kind] for kind in OTHERS) >= 0.98
    assert truth["cascade"]["precision"] >= 0.99


@pytest.mark.parametrize("mode", MODES)
def test_counts_and_truth_are_those_of_the_table(runs, world, mode):
    found, rows, every = small_runs.results(runs[mode]), table(runs[mode]), records(world)
    assert found["job"] == "dedup"
    assert found["records"] == len(every) == found["left"] + found["duplicates"]
    assert found["duplicates"] == len(rows) == sum(found["by_how"].values())
    assert collections.Counter(row["how"] for row in rows) == found["by_how"]
    places = [(row["shard"], row["row"]) for row in rows]
    assert places == sorted(set(places))
    by_key = {record.key: record for record in every.values()}
    dropped = {row["key"] for row in rows}
    right, cluster = 0, {}
    for row in rows:
        assert every[row["shard"], row["row"]].key == row["key"]
        assert row["kept"] == "pool"
        assert row["kept_key"] not in dropped
        cluster[row["key"]] = row["kept_key"]
        origins = [by_key[key].meta.get("copy_of", key) for key in (row["key"], row["kept_key"])]
        right += origins[0] == origins[1]
        if row["how"] == "exact":
            assert by_key[row["key"]].image == by_key[row["kept_key"]].image
            assert row["cosine"] is row["distance"] is None
        elif row["how"] == "perceptual":
            assert row["distance"] <= 4
        else:
            assert row["cosine"] >= (0.96 if mode == "embedding" else 0.8)
    assert found["ground_truth"]["precision"] == right / len(rows)
    for kind in demo.COPIES:
        pairs = [(r.key, r.meta["copy_of"]) for r in every.values() if r.meta.get("copy") == kind]
        same = [cluster.get(a, a) == cluster.get(b, b) for a, b in pairs]
        assert found["ground_truth"][kind] == pytest.approx(np.mean(same))
    fingerprint = dataset.open_dataset(world / "pool").fingerprint
    metadata = pq.read_schema(runs[mode] / "duplicates.parquet").metadata
    assert metadata[b"pool"].decode() == fingerprint
    assert not (runs[mode] / "buckets").exists()


def test_perceptual_pairs_are_those_of_brute_force(runs, world):
    """Whatever is left is farther apart than the radius, by its own hash and its mirror's."""
    members = [signatures.Member("pool", 0, 1)]
    signed = signatures.Signatures(runs["perceptual"] / "signatures", members)
    columns = signed.table(0, ["phash", "mirror"]).columns
    own, mirror = (column.to_numpy() for column in columns)
    left = np.setdiff1d(np.arange(len(own)), [row["row"] for row in table(runs["perceptual"])])
    apart = np.bitwise_count(own[left][:, None] ^ own[left][None, :])
    other = np.bitwise_count(own[left][:, None] ^ mirror[left][None, :])
    near = np.triu((apart <= 4) | (other <= 4), 1)
    assert not near.any()
    for row in table(runs["perceptual"]):
        if row["how"] == "perceptual":
            assert row["distance"] % 2 == 0  # Half of the bits are set in every hash.


def test_what_the_pool_holds_of_the_references_is_dropped_for_them(world, tmp_path):
    """A test set with copies of the pool's records, and copies of its own."""
    pool = list(records(world).values())
    originals = [r for r in pool if "copy" not in r.meta][:40]
    taken = [schema.Record(f"t/{i}", r.image) for i, r in enumerate(originals)]
    taken += [schema.Record("t/again", originals[0].image)]
    writing.write_dataset(
        tmp_path / "tests", [_Shard("t", tuple(taken))], engine.Each(_same), config={}
    )
    dedup.run(config_of(world, "perceptual", against=f"{tmp_path}/tests"), tmp_path / "run")
    found, rows = small_runs.results(tmp_path / "run"), table(tmp_path / "run")
    assert found["references"] == 41
    by_key = {row["key"]: row for row in rows}
    for i, original in enumerate(originals):
        row = by_key[original.key]
        assert (row["kept"], row["kept_key"]) == (f"{tmp_path}/tests", f"t/{i}")
        assert row["how"] == "exact"
    assert {row["shard"] for row in rows} == {0}
    in_favour = sum(row["kept"] != "pool" for row in rows)
    assert found["in_favour_of"] == {f"{tmp_path}/tests": in_favour, "pool": len(rows) - in_favour}
    assert in_favour > 45  # The pool's copies of the forty too.
    assert found["ground_truth"]["exact"] == 1


def _same(item):
    return item


class _Shard:
    def __init__(self, name, items):
        self.name, self.items = name, items

    def __iter__(self):
        return iter(self.items)


def test_broken_records_are_counted_and_never_duplicates(tmp_path):
    good = demo.render(demo.World(40), "natural", 0, 1).image
    image = demo.build.encode_jpeg(good)
    items = [schema.Record(f"p/{i}", image) for i in range(3)]
    items += [schema.Record(f"p/bad{i}", b"\xff\xd8\xffbroken") for i in range(2)]
    writing.write_dataset(tmp_path / "pool", [_Shard("p", items)], engine.Each(_same), config={})
    for mode in ("exact", "cascade"):
        dedup.run(config_of(tmp_path, mode), tmp_path / mode)
        found = small_runs.results(tmp_path / mode)
        assert found["not_compared"] == {"corrupt_image": 2}
        assert (found["records"], found["left"], found["by_how"]) == (5, 3, {"exact": 2})
        assert [row["row"] for row in table(tmp_path / mode)] == [1, 2]
        assert "ground_truth" not in found


def contents(workdir):
    """Every file's content but locks'."""
    return {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


def test_the_same_command_again_says_complete(runs, world, capsys):
    before = contents(runs["cascade"])
    dedup.run(config_of(world, "cascade", ram_gib=3.0), runs["cascade"])
    assert "complete" in capsys.readouterr().out
    after = contents(runs["cascade"])
    assert {k: v for k, v in after.items() if k != "config.json"} == {
        k: v for k, v in before.items() if k != "config.json"
    }
    with pytest.raises(UserError, match=r"cascade.cosine \(was 0.8, now 0.9\)"):
        dedup.run(config_of(world, "cascade", **{"cascade.cosine": 0.9}), runs["cascade"])


def test_stopped_between_its_steps_it_goes_on(runs, world, tmp_path, monkeypatch):
    """Stopped after the signatures, within the buckets, and before the results."""
    workdir = tmp_path / "run"
    for module, name, calls in (
        (search, "by_content", 0),
        (similar, "find", 1),
        (files, "write_json", None),
    ):
        real, left = getattr(module, name), calls

        def stopping(*arguments, real=real, **options):
            nonlocal left
            if left == 0 or (left is None and str(arguments[0]).endswith("results.json")):
                raise KeyboardInterrupt
            if left is not None:
                left -= 1
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                dedup.run(config_of(world, "cascade"), workdir)
        assert not (workdir / "results.json").exists()
    signed = (workdir / "signatures/000000.parquet").stat().st_mtime_ns
    dedup.run(config_of(world, "cascade"), workdir)
    assert (workdir / "signatures/000000.parquet").stat().st_mtime_ns == signed
    ours, theirs = contents(workdir), contents(runs["cascade"])
    assert {k: v for k, v in ours.items() if k != "config.json"} == {
        k: v for k, v in theirs.items() if k != "config.json"
    }


@pytest.mark.full
def test_killed_runs_end_with_the_same_bytes(world, runs, tmp_path):
    """SIGKILL while signing, at the centroids, while copying, at a bucket, and before the table."""
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", "clipdg_jax.main", f"--workdir={workdir}"]
    command += [f"--config={small_runs.REPO / 'configs' / 'dedup.py'}:cascade"]
    command += [f"--config.data.root={world}", "--config.buckets.size=150"]
    command += [f"--config.data.demo.{name}={value}" for name, value in WORLD.items()]
    for place in (
        "signatures/job.json",
        "buckets/centroids.npy",
        "buckets/buckets.bin",
        "buckets/found/000000.json",
        "duplicates.parquet",
    ):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=children.environment(),
            cwd=small_runs.REPO,
        )
        deadline = time.monotonic() + 240
        while not (workdir / place).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
    done = small_runs.run(command)
    assert done.returncode == 0, done.stderr
    assert (workdir / "duplicates.parquet").read_bytes() == (
        runs["cascade"] / "duplicates.parquet"
    ).read_bytes()
    assert small_runs.results(workdir) == small_runs.results(runs["cascade"])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": "fuzzy"}, r"config.mode: 'fuzzy' is unknown; one of exact"),
        ({"ram_gib": 0.2}, r"config.ram_gib: is 0.2"),
        ({"perceptual.radius": 40}, r"config.perceptual.radius: is 40"),
        ({"buckets.size": 0}, r"config.buckets.size: is 0; 1 or more"),
        ({"cascade.cosine": 1.5}, r"config.cascade.cosine: is 1.5; it lies between 0 and 1"),
        ({"against": "pool"}, r"config.against: pool is config.pool itself"),
        ({"against": "nothing"}, r"nothing: no such dataset"),
        ({"pool": "missing"}, r"missing: no such dataset"),
        ({"encoder.checkpoint": "nowhere"}, r"nowhere"),
    ],
)
def test_wrong_inputs_are_one_line(world, tmp_path, fields, told):
    with pytest.raises(UserError, match=told) as raised:
        dedup.run(config_of(world, "cascade", **fields), tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_bucket_too_large_keeps_what_was_done(runs, world, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(runs["cascade"], workdir)
    for name in ("results.json", "duplicates.parquet"):
        (workdir / name).unlink()
    monkeypatch.setattr(search.Memory, "OVERHEAD", 2 * 2**30 - 400_000)
    told = r"bucket \d has .* GiB, .* config.ram_gib=2 leaves.* smaller config.buckets.size"
    with pytest.raises(UserError, match=told):
        dedup.run(config_of(world, "cascade"), workdir)
    assert (workdir / "buckets/centroids.npy").exists()
    assert not (workdir / "buckets/buckets.bin").exists()
    dedup.run(config_of(world, "cascade", ram_gib=2.5), workdir)
    assert (workdir / "duplicates.parquet").read_bytes() == (
        runs["cascade"] / "duplicates.parquet"
    ).read_bytes()


def test_the_papers_dry_run(tmp_path, capsys):
    config = small_runs.load_config("dedup").get_config("paper")
    config.dry_run = True
    dedup.run(config, tmp_path / "run")
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    whole = {key.strip(): value.strip() for key, value in told.items()}
    assert whole["records"] == "400,000,000 x 768"
    assert whole["buckets"].startswith("12,208 of 32,768 records")
    entry = 8 + 8 + 8 + 8 + 1024 + 128 + 2 * 768
    assert whole["buckets on disk"] == f"{400e6 * entry / 2**30:.4g} GiB"
