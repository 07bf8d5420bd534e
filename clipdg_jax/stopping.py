"""Stopping on request: SIGTERM asks a run to save what it has and to end.

Schedulers send it some time before they take a machine away (SLURM's pre-emption and time limit,
Kubernetes' eviction, a TPU's maintenance). A run that stops so ends with `EXIT_STATUS`, on which
the launchers in launch/ begin it again; the same command goes on from the checkpoint.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again.


class Stopped(Exception):
    """A run was asked to stop, and has saved what it could; the message says what.

    `clipdg_jax.main` prints it without a traceback and exits with `EXIT_STATUS`.
    """


_asked = False


def asked() -> bool:
    """Whether SIGTERM has come since the latest `watch` began."""
    return _asked


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Notes SIGTERM instead of dying of it; a second one ends the process at once.

    Does nothing where handlers cannot be set: in a thread that is not the main one.
    """
    global _asked
    _asked = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        global _asked
        del number, frame
        _asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
