"""Batches from the host's loader to the devices, ahead of the step that needs them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from clipdg_jax.training import sharding

HostBatch = dict[str, np.ndarray]
DeviceBatch = dict[str, jax.Array]


class DeviceFeed:
    """Puts batches on the devices in a background thread, `depth` of them ahead.

    Iterating yields `(host batch, device batch)`. The host batch holds this process's rows, the
    device batch the global ones. An exception of the loader is raised where it would have come.

    Args:
      batches: this process's rows, batch by batch.
      mesh: the devices.
      select: what of a host batch the devices need (32 bits wide at most).
      depth: batches ahead.

    Attributes:
      waited: seconds that the consumer has spent waiting for data.
    """

    def __init__(
        self,
        batches: Iterator[HostBatch],
        mesh: jax.sharding.Mesh,
        select: Callable[[HostBatch], HostBatch],
        depth: int = 2,
    ):
        self._batches = batches
        self._mesh = mesh
        self._select = select
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self.waited = 0.0
        self._thread = threading.Thread(target=self._fill, name="device-feed", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                if not self._offer((batch, sharding.put_batch(self._select(batch), self._mesh))):
                    return
            self._offer(None)
        except BaseException as error:  # Handed to the consumer, whatever it is.
            self._offer(error)

    def _offer(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[tuple[HostBatch, DeviceBatch]]:
        while True:
            start = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - start
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stops the thread; call it before closing the loader below."""
        self._closed.set()
        self._thread.join()
