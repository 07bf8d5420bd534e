"""Keeps glibc from giving memory back to the system between training steps."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Makes free() keep memory for the next malloc(), on Linux; elsewhere does nothing.

    XLA's CPU backend allocates its buffers anew in each step. By default glibc maps and unmaps
    large ones every time, and the kernel must zero their pages again.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # Not glibc.
        return
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_MMAP_THRESHOLD, 2**30)
