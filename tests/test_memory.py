"""Memory that is freed and wanted again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from captioner.memory import keep_freed_memory

def work():
    blocks = [np.empty(30 << 20, dtype=np.uint8) for _ in range(4)]
    for block in blocks:
        block[::4096] = 1  # a byte of each page

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{call}
faults(3)
print(faults(10))
"""


def page_faults(call: str) -> int:
    code = FAULTS.replace("{call}", call)
    return int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_fresh_again():
    fresh = page_faults("")
    assert page_faults("keep_freed_memory()") < fresh / 10
    assert page_faults("keep_freed_memory(all_of_it=True)") < fresh / 10
