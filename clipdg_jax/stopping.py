"""Stopping on request: SIGTERM asks a run to save what it has and to end.

Schedulers send it some time before they take a machine away (SLURM's pre-emption and time limit,
Kubernetes' eviction, a TPU's maintenance). A run that stops so ends with `EXIT_STATUS`, on which
the launchers in launch/ begin it again; the same command goes on from the checkpoint.
"""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again.


class Stopped(Exception):
    """A run was asked to stop, and has saved what it could; the message says what.

    `clipdg_jax.main` prints it without a traceback and exits with `EXIT_STATUS`.
    """


@dataclasses.dataclass
class Watch:
    """Whether SIGTERM has come."""

    asked: bool = False


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Notes SIGTERM, the first one; a second one ends the process at once.

    Does nothing where handlers cannot be set: in a thread that is not the main one.
    """
    watched = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield watched
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        watched.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    try:
        yield watched
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
