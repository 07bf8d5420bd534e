"""Small numbers that all processes must agree on, without a word of the devices."""

import itertools
import threading

import jax
from jax._src import distributed  # The coordination service's store has no public name yet.

_POLL_MS = 1000
_created = itertools.count()


class Largest:
    """The largest of the processes' values, call by call.

    Every process makes its n-th call with a value of its own, in any thread and at any time; each
    gets the largest of all processes' n-th values. The values go through the coordination
    service and not over the devices, whose collectives would have to keep the order of those of
    the training steps.

    Processes must create their instances in the same order.
    """

    def __init__(self) -> None:
        self._name = f"clipdg_jax/largest/{next(_created)}"
        self._calls = 0
        self._closed = threading.Event()

    def __call__(self, value: int) -> int:
        """Waits for the other processes. Raises RuntimeError when closed meanwhile."""
        count, mine = jax.process_count(), jax.process_index()
        if count == 1:
            return value
        client = distributed.global_state.client
        client.key_value_set(self._key(self._calls, mine), str(value))
        largest = max(self._wait(self._key(self._calls, i)) for i in range(count))
        # Whoever has told this call's value has read the values of the one before.
        if self._calls:
            client.key_value_delete(self._key(self._calls - 1, mine))
        self._calls += 1
        return largest

    def close(self) -> None:
        """Ends a wait for processes that will not call any more."""
        self._closed.set()

    def _key(self, call: int, process: int) -> str:
        return f"{self._name}/{call}/{process}"

    def _wait(self, key: str) -> int:
        while not self._closed.is_set():
            try:
                return int(distributed.global_state.client.blocking_key_value_get(key, _POLL_MS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise RuntimeError(f"{key}: closed while waiting for other processes")
