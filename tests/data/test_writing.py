"""Several datasets in one pass: each as if it had been written alone, however often killed."""

import errno
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from clipdg_jax.data import dataset, engine, files, parts, schema, writing
from clipdg_jax.errors import UserError

NAMES = ("natural", "rendition")


def record(i):
    return schema.Record(f"x/{i}", np.random.default_rng(i).bytes(300 + i % 200), f"number {i}")


def goes_to(i):
    """Two of seven to one dataset, one to the other, one to both, two to none."""
    return {0: ("natural",), 1: ("natural",), 2: ("rendition",), 3: NAMES}.get(i % 7, ())


def route(i):
    if i % 7 == 6:
        return engine.Drop("corrupt_image")
    return writing.Routed(record(i), goes_to(i), "odd" if i % 2 else "even")


def build(root, *, fn=route, targets=NAMES, config=None, target=4000, work=None, **options):
    return writing.write_datasets(
        {name: writing.Target(root / name, domain=name) for name in targets},
        engine.index_shards(105, 15),
        engine.Each(fn),
        work=work or root / "run",
        config=config or {"world": 1},
        target_shard_bytes=target,
        **options,
    )


def sums(path):
    """Name -> sha256 of every file below a directory, hidden ones too."""
    found = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    build(root)
    return root


@pytest.fixture(scope="module")
def expected(whole):
    return sums(whole)


def test_each_dataset_is_as_if_written_alone(whole, tmp_path):
    for name in NAMES:

        def alone(i, name=name):
            routed = route(i)
            if isinstance(routed, engine.Drop) or name in routed.to:
                return getattr(routed, "record", routed)
            return engine.Drop(routed.reason)

        one = writing.write_dataset(
            tmp_path / name,
            engine.index_shards(105, 15),
            engine.Each(alone),
            config={"world": 1},
            domain=name,
            target_shard_bytes=4000,
        )
        assert sums(one.path) == sums(whole / name)
        assert len(one.manifest.shards) > 3


def test_each_manifest_adds_up_by_itself(whole):
    numbers = [i for i in range(105) if i % 7 != 6]
    for name in NAMES:
        manifest = dataset.open_dataset(whole / name).manifest
        missing = [i for i in numbers if name not in goes_to(i)]
        odd = sum(i % 2 for i in missing)
        assert manifest.seen == 105
        assert manifest.records == 90 - len(missing)
        assert manifest.dropped == {"corrupt_image": 15, "odd": odd, "even": len(missing) - odd}
    # Only the datasets stay, and nothing of the work.
    assert {name.split("/")[0] for name in sums(whole)} == set(NAMES)
    assert not [name for name in sums(whole) if ".parts" in name]


def test_the_result_does_not_depend_on_processes_or_hosts(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(parts, "_WORTH_A_PROCESS", 1000)  # so that they join the parts as well
    build(tmp_path / "pool", processes=2)
    assert sums(tmp_path / "pool") == expected

    results = {}

    def host(index):
        results[index] = build(tmp_path / "hosts", process_index=index, process_count=3)

    hosts = [threading.Thread(target=host, args=(i,), daemon=True) for i in (2, 0, 1)]
    for thread in hosts:
        thread.start()
    for thread in hosts:
        thread.join(30)
    assert sums(tmp_path / "hosts") == expected
    assert set(results[0]) == set(NAMES)


# Imports once, then forks a child for each build: a hundred kills take seconds. The child kills
# itself with SIGKILL at the n-th file that it completes: just before or just after the file gets
# its name, or with half of it written.
_VICTIMS = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("the_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from clipdg_jax.data import files

def child(path, point, when):
    publish, count = files.publish, 0
    def killing(temporary, path):
        nonlocal count
        count += 1
        if count == point and when == "torn":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
        if count == point and when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(temporary, path)
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)
    files.publish = killing
    module.build(path)

for line in sys.stdin:
    path, point, when = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            child(pathlib.Path(path), int(point), when)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def run_victims(runs):
    """The exit status of each (path, point, when), one after the other."""
    lines = "".join(f"{path} {point} {when}\n" for path, point, when in runs)
    result = subprocess.run(
        [sys.executable, "-c", _VICTIMS, __file__],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    statuses = [int(line) for line in result.stdout.split()]
    assert set(statuses) <= {0, -signal.SIGKILL}, result.stderr
    return statuses


FILES = 56  # that a build completes, each of them once: parts, shards, reports, metadata


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.full)])
def test_killed_at_any_point_it_ends_with_the_same_bytes(tmp_path, expected, step):
    whens = ("torn", "before", "after")
    points = [(n, whens[n % 3]) for n in range(1, FILES + 1)][::step]
    runs = [(tmp_path / f"{point}", point, when) for point, when in points]
    resumed = [(path, FILES + 1, "after") for path, _, _ in runs]
    # One that is killed again and again, after a few files each time.
    often = [(tmp_path / "often", 1 + n * 5 % 7, whens[n % 3]) for n in range(7)]
    statuses = run_victims([*runs, *often, *resumed, (tmp_path / "often", FILES + 1, "after")])
    kills = len(runs) + len(often)
    assert statuses == [-signal.SIGKILL] * kills + [0] * (len(runs) + 1)
    for path in tmp_path.iterdir():
        assert sums(path) == expected, path


def test_complete_datasets_are_left_alone(tmp_path, expected):
    build(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    lines = []
    found = build(tmp_path, fn=None, say=lines.append)
    assert {name: len(data) for name, data in found.items()} == {"natural": 45, "rendition": 30}
    assert [line.split(": ")[1] for line in lines] == ["complete already, left as it is"] * 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    # One that is missing is written again, and the other one is not.
    shutil.rmtree(tmp_path / "rendition")
    lines.clear()
    build(tmp_path, say=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'natural'}: complete already")
    assert sums(tmp_path) == expected
    assert all((tmp_path / p).stat().st_mtime_ns == t for p, t in before.items() if "nat" in str(p))


def stop_at(number):
    def fn(i):
        if i == number:
            raise UserError("stop")
        return route(i)

    return fn


def test_what_is_not_this_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="stop"):
        build(tmp_path, fn=stop_at(50))
    with pytest.raises(UserError, match=r"run/\.parts: was begun with world=1, now world=2"):
        build(tmp_path, config={"world": 2})
    with pytest.raises(UserError, match=r"begun with datasets=\[\"natural\", \"rendition\"\]"):
        build(tmp_path, targets=("natural",))
    with pytest.raises(UserError, match=r"natural/\.parts: was begun with world=1, now world=2"):
        build(tmp_path, config={"world": 2}, work=tmp_path / "other")
    shutil.rmtree(tmp_path / "rendition")
    with pytest.raises(UserError, match=r"rendition/.parts: is gone, but .*run/.parts says"):
        build(tmp_path)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "rendition").mkdir()
    (tmp_path / "rendition" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="rendition: holds files that are not a dataset"):
        build(tmp_path)
    (tmp_path / "rendition" / "thesis.tex").unlink()
    build(tmp_path)
    with pytest.raises(UserError, match="natural: was begun with world=1, now world=2"):
        build(tmp_path, config={"world": 2})


def test_another_run_on_one_of_the_datasets_is_refused(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def pausing(i):
        begun.set()
        go_on.wait(20)
        return route(i)

    first = threading.Thread(target=build, args=(tmp_path,), kwargs={"fn": pausing})
    first.start()
    begun.wait(20)
    with pytest.raises(UserError, match=r"run/\.parts: another run is writing here"):
        build(tmp_path)
    with pytest.raises(UserError, match=r"rendition/\.parts: another run is writing here"):
        build(tmp_path, targets=("rendition",), work=tmp_path / "other")
    go_on.set()
    first.join(20)
    assert len(dataset.open_dataset(tmp_path / "rendition")) == 30


@pytest.mark.parametrize("room", [3, 12, 20, 27, FILES - 1])
def test_a_full_disk_is_one_line_and_can_be_resumed(tmp_path, monkeypatch, expected, room):
    publish, left = files.publish, [room]

    def full(temporary, path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
        publish(temporary, path)

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(UserError, match="no space left"):
        build(tmp_path)
    monkeypatch.undo()
    assert not [name for name in sums(tmp_path) if name.endswith(".tmp")]
    build(tmp_path)
    assert sums(tmp_path) == expected


@pytest.mark.parametrize("damage", ["changed", "cut", "cut between records"])
def test_a_damaged_part_is_not_joined(tmp_path, damage):
    with pytest.raises(UserError, match="stop"):
        build(tmp_path, fn=stop_at(50), target=10**6)
    part = sorted((tmp_path / "natural" / ".parts").glob("*.records"))[1]
    content = bytearray(part.read_bytes())
    if damage == "changed":
        content[200] ^= 1
    length = int.from_bytes(content[:8], "little")
    part.write_bytes(content[: {"cut": -1, "cut between records": length + 12}.get(damage)])
    with pytest.raises(engine.ShardError, match=rf"{part.name}: .*the disk is failing"):
        build(tmp_path, target=10**6)
    assert not (tmp_path / "natural" / "manifest.json").exists()


def test_a_dataset_that_gets_nothing_is_empty(tmp_path):
    made = build(tmp_path, fn=lambda i: writing.Routed(record(i), ("natural",), "natural"))
    assert len(made["natural"]) == 105
    manifest = made["rendition"].manifest
    assert [shard.records for shard in manifest.shards] == [0]
    assert manifest.dropped == {"natural": 105}


def test_mistakes_of_the_caller(tmp_path):
    with pytest.raises(engine.ShardError, match="'x/0' is routed to 'sketch'; no such dataset"):
        build(tmp_path, fn=lambda i: writing.Routed(record(i), ("sketch",), ""))
    targets = {name: writing.Target(pathlib.Path(tmp_path / "one")) for name in NAMES}
    with pytest.raises(ValueError, match="the same directory"):
        writing.write_datasets(targets, [], engine.Each(route), work=tmp_path, config={})
