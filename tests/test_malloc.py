"""malloc keeps what is freed, in the thread that starts and in others."""

import platform
import subprocess
import sys

PROGRAM = """
import resource, sys, threading
import numpy as np
from clipdg_jax import malloc

kept = malloc.keep_freed_memory() if sys.argv[1] == "keep" else None

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(8):
        np.ones(5_000_000)  # 40 MB: past the size that glibc takes from the heap by default

work()  # The first pass may fault.
before = faults()
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(kept, faults() - before)
"""


def run(mode: str) -> tuple[str, int]:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    kept, faults = out.stdout.split()
    return kept, int(faults)


def test_repeated_allocations_do_not_fault():
    kept, faults = run("keep")
    glibc = platform.libc_ver()[0] == "glibc"
    assert kept == str(glibc)
    if glibc:
        pages_of_one_block = 40_000_000 // 4096
        assert faults < pages_of_one_block
        # Otherwise each of the 16 blocks faults in anew; 2 MB pages make that far fewer.
        assert faults < 0.1 * run("default")[1] or faults < 100
