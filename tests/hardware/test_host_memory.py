"""What is freed is found again, in a process of its own, since the allocator's settings stay."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
import numpy as np
from langsamp_jax.hardware.cpu import keep_freed, use_one_arena

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_one_arena()
found = []
def elsewhere():
    found.append(faults())
    keep_freed(held=1 << 62)  # more than there is: nothing is done
    found.append(faults())
    keep_freed(held=1 << 20)
    faults()
    found.append(faults())
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no GNU C library")
def test_a_large_block_is_not_faulted_in_again_in_any_thread():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, refused, after = map(int, run.stdout.split())
    assert min(before, refused) >= 32  # 64 MB, even if pages are huge
    assert after < 10
