"""Grain's worker processes, made to end with their parent and to fit the shared memory.

Elements are computed by `element(i)` of a picklable task, in threads of worker processes (or of
this one), and arrive in order.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from clipdg_jax.errors import UserError

_SHARED_MEMORY = "/dev/shm"
_POLL_SECONDS = 0.5

Batch = dict[str, np.ndarray]


class Task(Protocol):
    """A picklable sequence of batches; `__getitem__` is called by several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def batch_bytes(self) -> int:
        """Bytes of one element."""
        ...


class Elements(Iterator[Batch]):
    """The elements of a task from `start` on, computed ahead of need.

    Exceptions of a task are raised here. Close it: worker processes run until then.

    Args:
      task: what to compute.
      start: the first element.
      workers: processes; element `start` + i is computed by worker i modulo `workers`. 0 computes
        in this process.
      threads: of each process; each computes one element at a time. 0 (with no workers) computes
        when asked.
      prefetch: elements ready ahead, for each process.

    Raises:
      UserError: the machine's shared memory cannot hold the elements ready ahead.
    """

    def __init__(self, task: Task, start: int, *, workers: int, threads: int, prefetch: int):
        if workers < 0 or threads < 0 or prefetch < 1:
            raise UserError(
                f"data: workers={workers}, threads={threads}, prefetch={prefetch}; workers and "
                "threads must be at least 0 and prefetch at least 1"
            )
        dataset = grain.MapDataset.source(task)[start:]
        # Within a worker the elements wait in the queue to the parent, so that its threads need
        # no more than one each.
        ahead = max(1, threads) if workers else max(threads, prefetch)
        stream = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        if workers:
            _check_shared_memory(workers * (prefetch + 2) * task.batch_bytes(), workers)
            # Grain reads absl flags, which are not parsed when it is used from Python.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            # Processes that start from here on get one BLAS thread; ours has read it already.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            stream = stream.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=prefetch
                ),
                worker_init_fn=functools.partial(_start_worker, os.getpid()),
            )
        self._processes = workers > 0
        self._iterator: Any = iter(stream)

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the workers and frees their shared memory; harmless when called again."""
        iterator, self._iterator = self._iterator, iter(())
        if hasattr(iterator, "close"):
            iterator.close()
            del iterator
            if self._processes:
                # Their queues' semaphores go with it: now, not while the interpreter shuts down.
                gc.collect()


def _start_worker(parent: int, index: int, count: int) -> None:
    """What a worker process does first."""
    del index, count
    import cv2  # Its threads would compete with those of the other workers.

    cv2.setNumThreads(0)
    # A scheduler sends it to all processes of a run. The parent decides what follows, and needs
    # batches until then; it ends its workers by SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent has, however that ended."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _check_shared_memory(needed: int, workers: int) -> None:
    if not os.path.isdir(_SHARED_MEMORY):
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"data.workers: {workers} workers need {needed / 2**20:.0f} MB in {_SHARED_MEMORY}, "
            f"which has {free / 2**20:.0f} MB free; lower data.workers or data.prefetch, or give "
            "the container more (docker run --shm-size=8g)"
        )
