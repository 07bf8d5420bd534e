"""Worker processes of the shard engine: kept from one job to the next, gone with their parent."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self


class Job(Protocol):
    """Work on numbered shards; it must pickle, but where there is one process."""

    def run(self, index: int, stopped: Callable[[], bool]) -> Any:
        """Does shard `index`; gives up soon after `stopped()` is True."""


class WorkerDied(RuntimeError):
    """A worker process was killed; `indices` are those of the shards that were left undone."""

    def __init__(self, indices: Sequence[int]):
        super().__init__("a worker process died")
        self.indices = indices


class Workers:
    """Up to `processes` worker processes, for any number of jobs in turn; a context manager.

    They start when a job first has work for two. Fewer than two processes mean the present one.
    """

    def __init__(self, processes: int):
        self._processes = processes
        # Spawned, not forked: JAX, ArrayRecord and OpenCV hold threads that a fork would lose.
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    @property
    def started(self) -> bool:
        """Whether there are processes that wait for work."""
        return self._pool is not None

    def run(self, job: Job, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """(index, result) of each of the job's shards, as they come.

        Raises:
            WorkerDied: a process was killed. After this, as after an error of the job and when
                the iterator is closed early, the workers give up what they do.
        """
        if min(self._processes, len(indices)) < 2:
            # One worker would only add its own start to the work.
            for index in indices:
                yield index, job.run(index, stopped=lambda: False)
            return
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._processes, self._context, _start_worker, (self._stop,)
            )
        # Pickled once. It goes with the tasks and not to the start of a worker, which would be
        # up and have read it before the next one is started.
        pickled = pickle.dumps(job)
        futures = {self._pool.submit(_in_worker, pickled, index): index for index in indices}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            undone = [i for f, i in futures.items() if not f.done() or f.exception()]
            self._stop.set()
            for future in futures:
                future.cancel()
            if isinstance(error, BrokenProcessPool):
                raise WorkerDied(undone) from error
            raise


_stop: Any = None
_job: tuple[bytes, Job] | None = None


def _start_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    # Ctrl-C goes to the whole group; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends this process when its parent ends, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _in_worker(pickled: bytes, index: int) -> Any:
    # The job is kept, because what it builds lazily (a tokeniser, a model) serves all its shards.
    global _job
    if _job is None or _job[0] != pickled:
        _job = (pickled, pickle.loads(pickled))
    return _job[1].run(index, stopped=_stop.is_set)
