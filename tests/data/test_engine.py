"""The shard engine: same bytes however often killed, with any number of processes and hosts."""

import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from clipdg_jax.data import dataset, engine, files, parts, schema, shards, writing
from clipdg_jax.errors import UserError


def record(i):
    if i % 11 == 4:
        return engine.Drop("four" if i % 2 else "other")
    return schema.Record(f"x/{i}", np.random.default_rng(i).bytes(300 + i % 200), f"number {i}")


def build(path, *, fn=record, count=120, size=10, target=9000, config=None, **options):
    return writing.write_dataset(
        path,
        engine.index_shards(count, size),
        engine.Each(fn),
        config=config or {"world": 1},
        target_shard_bytes=target,
        **options,
    )


def sums(path):
    """Name -> sha256 of every file below a directory, hidden ones too."""
    found = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_counts_add_up_and_nothing_is_left_over(tmp_path):
    data = build(tmp_path / "d")
    manifest = data.manifest
    assert manifest.seen == 120
    assert manifest.dropped == {"four": 5, "other": 6}
    assert len(data) == 109
    shard_names = {shard.file for shard in manifest.shards}
    assert len(shard_names) > 3
    assert set(os.listdir(data.path)) == shard_names | {
        "manifest.json",
        "dataset_info.json",
        "features.json",
    }


def test_shards_are_about_the_target_size_whether_parts_are_joined_or_split(tmp_path):
    for size in (1, 7, 120):  # part files far below, near and above the target
        data = build(tmp_path / f"d{size}", size=size, target=9000)
        assert [data.record(i).key for i in range(len(data))] == [
            f"x/{i}" for i in range(120) if i % 11 != 4
        ]
        payloads = [sum(len(schema.encode(r)) for r in shard) for shard in data.shards()]
        assert max(payloads) <= 9000
        assert np.mean(payloads[:-1]) > 4500


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [[]]),
        ([3, 3, 3, 3], [[0, 1, 2], [3]]),
        ([20, 1, 9, 20], [[0], [1, 2], [3]]),
        ([0, 10, 0, 1], [[0, 1, 2], [3]]),
    ],
)
def test_neighbours_are_grouped_up_to_the_target(sizes, expected):
    assert parts.group_by_size(sizes, 10) == expected


def test_the_result_does_not_depend_on_processes_or_hosts(tmp_path):
    expected = sums(build(tmp_path / "inline" / "d").path)
    assert sums(build(tmp_path / "pool" / "d", processes=2).path) == expected

    results = {}

    def host(index):
        options = {"process_index": index, "process_count": 3}
        results[index] = build(tmp_path / "hosts" / "d", **options)

    hosts = [threading.Thread(target=host, args=(i,), daemon=True) for i in (2, 0, 1)]
    for thread in hosts:
        thread.start()
    for thread in hosts:
        thread.join(30)
    assert sums(tmp_path / "hosts" / "d") == expected
    assert results[0].fingerprint == dataset.open_dataset(tmp_path / "hosts" / "d").fingerprint


# A process that kills itself with SIGKILL at the n-th file it completes, or at the file of that
# name: just before or just after the file gets its name, or with half of it written.
_VICTIM = """
import os, signal, sys, importlib.util
spec = importlib.util.spec_from_file_location("the_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from clipdg_jax.data import files
point, when, publish, count = sys.argv[3], sys.argv[4], files.publish, 0
def killing(temporary, path):
    global count
    count += 1
    now = point in (str(count), path.name)
    if now and when == "torn":
        os.truncate(temporary, os.path.getsize(temporary) // 2)
    if now and when != "after":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, path)
    if now:
        os.kill(os.getpid(), signal.SIGKILL)
files.publish = killing
module.build(module.pathlib.Path(sys.argv[2]))
"""


def run_victim(path, point, when):
    """Whether the process was killed, as opposed to coming to its end."""
    arguments = [sys.executable, "-c", _VICTIM, __file__, str(path), str(point), when]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode != 0


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path):
    expected = sums(build(tmp_path / "whole" / "d").path)
    target = tmp_path / "killed" / "d"
    # In the parts, at their reports, while joining, at the metadata, at the manifest.
    points = ((1, "torn"), (2, "after"), (5, "torn"), (12, "before"), (3, "after"), (6, "after"))
    for point, when in (*points, ("features.json", "before"), ("manifest.json", "torn")):
        assert run_victim(target, point, when), (point, when)
        with pytest.raises(UserError, match="not a dataset"):
            dataset.open_dataset(target)
    assert not run_victim(target, 1000, "after")
    assert sums(target) == expected


def test_killed_between_the_manifest_and_the_end_it_is_complete(tmp_path):
    expected = sums(build(tmp_path / "whole" / "d").path)
    target = tmp_path / "killed" / "d"
    assert run_victim(target, "manifest.json", "after")
    assert (target / ".parts").exists()
    assert len(dataset.open_dataset(target)) == 109
    lines = []
    build(target, say=lines.append)
    assert "complete already" in lines[0]
    assert sums(target) == expected


_ORPHANS = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("the_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["the_test"] = module
spec.loader.exec_module(module)
if __name__ == "__main__":
    module.build(pathlib.Path(sys.argv[2]), fn=module.slow, processes=2)
"""


def slow(i):
    pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
    time.sleep(0.05)
    return record(i)


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_ORPHANS)
    pids = tmp_path / "pids"
    pids.mkdir()
    paths = os.pathsep.join([str(pathlib.Path(engine.__file__).parents[2]), str(tmp_path)])
    environment = os.environ | {"PIDS": str(pids), "PYTHONPATH": paths}
    # The workers find the function by its module's name.
    (tmp_path / "the_test.py").write_text(pathlib.Path(__file__).read_text())
    parent = subprocess.Popen(
        [sys.executable, str(script), __file__, str(tmp_path / "d")], env=environment
    )
    deadline = time.monotonic() + 30
    while len(os.listdir(pids)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    workers = [int(name) for name in os.listdir(pids)]
    assert len(workers) == 2
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))
    expected = sums(build(tmp_path / "whole" / "d").path)
    assert sums(build(tmp_path / "d").path) == expected


def failing(i):
    if i == 57:
        raise KeyError("no such thing")
    return record(i)


def dying(i):
    if i == 57:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(i)


@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_names_its_shard_and_leaves_no_half_files(tmp_path, processes):
    with pytest.raises(engine.ShardError, match="00005: KeyError: 'no such thing'"):
        build(tmp_path / "d", fn=failing, processes=processes)
    assert not [name for name in sums(tmp_path) if name.endswith(".tmp")]
    assert sums(build(tmp_path / "d").path) == sums(build(tmp_path / "other" / "d").path)


def test_a_worker_that_is_killed_is_reported(tmp_path):
    with pytest.raises(engine.ShardError, match="worker process died"):
        build(tmp_path / "d", fn=dying, processes=2)


def test_a_function_must_account_for_every_item(tmp_path):
    def forgetful(items):
        return (record(i) for i in items if i % 2)

    source = engine.index_shards(20, 10)
    with pytest.raises(engine.ShardError, match=r"00000: .*10 items seen, but 5 written"):
        writing.write_dataset(tmp_path / "d", source, forgetful, config={})


def test_another_config_is_refused_and_a_complete_dataset_left_alone(tmp_path):
    def stop(i):
        raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        build(tmp_path / "d", fn=stop, config={"world": 1, "seed": 2})
    with pytest.raises(UserError, match=r"begun with seed=2, now seed=3"):
        build(tmp_path / "d", config={"world": 1, "seed": 3})
    with pytest.raises(UserError, match="inputs="):
        build(tmp_path / "d", config={"world": 1, "seed": 2}, count=130)
    build(tmp_path / "d", config={"world": 1, "seed": 2})
    before = sums(tmp_path)
    lines = []
    build(tmp_path / "d", fn=stop, config={"world": 1, "seed": 2}, say=lines.append)
    assert "complete already" in lines[0]
    with pytest.raises(UserError, match=r"begun with seed=2, now seed=null"):
        build(tmp_path / "d")
    assert sums(tmp_path) == before


def test_a_users_files_are_not_touched(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a dataset"):
        build(tmp_path / "d")
    with pytest.raises(UserError, match="file is in the way"):
        build(tmp_path / "d" / "thesis.tex" / "data")
    assert list(sums(tmp_path)) == ["d/thesis.tex"]


def test_two_runs_at_once_one_waits_or_says_so(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def pausing(i):
        begun.set()
        go_on.wait(20)
        return record(i)

    first = threading.Thread(target=build, args=(tmp_path / "d",), kwargs={"fn": pausing})
    first.start()
    begun.wait(20)
    with pytest.raises(UserError, match="another run is writing here"):
        build(tmp_path / "d")
    waiting = []
    second = threading.Thread(
        target=lambda: waiting.append(build(tmp_path / "d", fn=None, wait=True))
    )
    second.start()
    time.sleep(0.1)
    go_on.set()
    first.join(20)
    second.join(20)
    assert waiting[0].fingerprint == dataset.open_dataset(tmp_path / "d").fingerprint
    assert not (tmp_path / "d" / ".parts").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_or_closed_disk_is_one_line_and_can_be_resumed(tmp_path, monkeypatch, number):
    expected = sums(build(tmp_path / "whole" / "d").path)
    publish, left = files.publish, [9]

    def full(temporary, path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number), str(temporary))
        publish(temporary, path)

    monkeypatch.setattr(files, "publish", full)
    with pytest.raises(UserError, match=r"/d/\.parts/.*: (no space left|may not be written)"):
        build(tmp_path / "d")
    monkeypatch.undo()
    assert not [name for name in sums(tmp_path) if name.endswith(".tmp")]
    assert sums(build(tmp_path / "d").path) == expected


def test_a_file_size_limit_stops_a_real_writer_in_one_line(tmp_path):
    script = (
        "import resource, signal, sys, pathlib\n"
        "from clipdg_jax.data import shards\n"
        "from clipdg_jax.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "writer = shards.ShardWriter(pathlib.Path(sys.argv[1]) / 'a')\n"
        "try:\n"
        "    for i in range(40): writer.write(bytes(1_000_000))\n"
        "    writer.close()\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "/a: no space left" in result.stdout, result.stderr
    assert os.listdir(tmp_path) == []


def test_batches_have_one_shape_and_never_span_shards():
    shapes = []

    def square(batch, valid):
        shapes.append((batch, valid.tolist()))
        return [x * x for x in batch]

    fn = engine.Batched(square, 4)
    assert list(fn(iter(range(1, 7)))) == [1, 4, 9, 16, 25, 36]
    assert shapes == [([1, 2, 3, 4], [True] * 4), ([5, 6, 5, 5], [True, True, False, False])]
    assert list(fn(iter(()))) == []
    assert list(fn(iter(range(4)))) == [0, 1, 4, 9]
    assert len(shapes) == 3


class Listing:
    """A sink for what is not records: the values of a shard in its report."""

    def __init__(self):
        self.values = []

    def open(self, index):
        return Listing()

    def write(self, value):
        self.values.append(value)

    def commit(self):
        return self.values

    def discard(self):
        pass


def test_datasets_are_sources_and_damage_is_counted(tmp_path):
    data = build(tmp_path / "d", size=120, target=10**6)
    path = data.path / data.manifest.shards[0].file
    content = bytearray(path.read_bytes())
    content[content.find(b"number 50")] ^= 1
    path.write_bytes(content)
    counts = engine.map_shards(
        data.shards(),
        engine.Each(lambda r: engine.Drop("odd") if int(r.key[2:]) % 2 else r.key),
        Listing(),
        tmp_path / "work",
        config={},
    )
    odd = sum(1 for i in range(120) if i % 2 and i % 11 != 4)
    assert counts.seen == 109
    assert counts.dropped == {"odd": odd, "unreadable_record": 1}
    assert counts.written == 109 - odd - 1
    report = json.loads((tmp_path / "work" / "000000.json").read_text())
    assert report["output"] == [f"x/{i}" for i in range(0, 120, 2) if i % 11 != 4 and i != 50]


def test_sources_may_yield_drops_and_faults(tmp_path):
    class Source:
        name = "s"

        def __iter__(self):
            error = shards.RecordError("broken")
            yield from (1, engine.Fault("odd_end"), engine.Drop("cut"), error, 2)

    counts = engine.map_shards(
        [Source()], engine.Each(str), Listing(), tmp_path / "work", config={}
    )
    assert (counts.seen, counts.written) == (4, 2)
    assert counts.dropped == {"cut": 1, "unreadable_record": 1}
    assert counts.faults == {"odd_end": 1}
    assert engine.read_report(tmp_path / "work", 0)["output"] == ["1", "2"]
