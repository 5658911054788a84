"""Freed memory is kept while it is asked for, and given back after that."""

import subprocess
import sys

import pytest

MB = 1 << 20
MEASURE = """
from pathlib import Path
import numpy as np
from server_toolkit.distill.freed_memory import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def use():
    tensors = [np.ones(16 << 20, np.uint8) for _ in range(10)]
    del tensors

use()
found = [resident()]
with freed_memory_kept():
    use()
    found.append(resident())
found.append(resident())
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept_inside_and_given_back_behind():
    output = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, check=True, text=True
    ).stdout
    before, inside, behind = map(int, output.split())
    assert inside - before > 120 * MB
    assert behind - before < 40 * MB
