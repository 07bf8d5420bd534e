import dataclasses
import os
import time

import pytest

from clipdg_jax.data import shard_workers


@dataclasses.dataclass(frozen=True)
class Pids:
    """Tells who did each shard; `payload` makes the job as large as one with a table in it."""

    payload: bytes = b""

    def run(self, index, stopped):
        time.sleep(0.05)  # Long enough for both workers to get some.
        return os.getpid(), len(self.payload)


@dataclasses.dataclass(frozen=True)
class FailsAt:
    index: int
    log: str

    def run(self, index, stopped):
        if index == self.index:
            raise ValueError(f"shard {index}")
        while not stopped():
            time.sleep(0.01)
        with open(self.log, "a") as file:
            file.write("gave up\n")


@dataclasses.dataclass(frozen=True)
class Dies:
    def run(self, index, stopped):
        os._exit(9)


def test_the_same_processes_do_one_job_after_the_other():
    with shard_workers.Workers(2) as workers:
        assert not workers.started
        first = dict(workers.run(Pids(b"x" * (1 << 21)), range(12)))
        assert workers.started
        second = dict(workers.run(Pids(), range(100, 112)))
    assert sorted(first) == list(range(12))
    assert sorted(second) == list(range(100, 112))
    pids = {pid for pid, _ in first.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {pid for pid, _ in second.values()} <= pids
    assert {size for _, size in first.values()} == {1 << 21}
    assert {size for _, size in second.values()} == {0}


@pytest.mark.parametrize(("processes", "count"), [(0, 3), (1, 3), (4, 1)])
def test_without_work_for_two_no_process_starts(processes, count):
    with shard_workers.Workers(processes) as workers:
        found = dict(workers.run(Pids(), range(count)))
        assert not workers.started
    assert {pid for pid, _ in found.values()} == {os.getpid()}


def test_after_an_error_the_others_give_up(tmp_path):
    log = tmp_path / "log"
    with shard_workers.Workers(2) as workers, pytest.raises(ValueError, match="shard 1"):
        list(workers.run(FailsAt(1, str(log)), range(2)))
    assert log.read_text() == "gave up\n"


def test_a_dead_worker_is_told_with_the_shards_left_undone():
    with shard_workers.Workers(2) as workers, pytest.raises(shard_workers.WorkerDied) as caught:
        list(workers.run(Dies(), [3, 5]))
    assert caught.value.indices == [3, 5]
