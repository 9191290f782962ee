"""What a rank keeps of its memory."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from galampi.learning import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("not told")
def use():
    for size in (300_000, 2_000_000, 6_000_000):
        torch.ones(size)
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the GNU C library")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    assert num_faults("keep") < 100
    # What it is for: without it, every use is paid for again.
    assert num_faults() > 1000
