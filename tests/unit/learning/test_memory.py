"""What a rank keeps of its memory."""

import subprocess
import sys

import pytest

CODE = """
import sys
import psutil
import torch
from galampi.learning import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("the allocator was not told")
before = psutil.Process().memory_info().rss
several = [torch.ones(6_000_000) for _ in range(3)]
del several
print(psutil.Process().memory_info().rss - before)
"""


def kept_bytes(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the GNU C library")
def test_freed_memory_is_kept_when_asked_for_and_else_given_back() -> None:
    assert kept_bytes("keep") > 60e6
    assert kept_bytes() < 40e6
