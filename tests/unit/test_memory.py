"""What a rank keeps of its memory."""

import subprocess
import sys

import pytest

from galampi import memory
from galampi.errors import UserError

CODE = """
import sys
import psutil
import torch
from galampi.memory import keep_freed_memory
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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the GNU C library")
def test_freed_memory_is_kept_when_asked_for_and_else_given_back() -> None:
    assert kept_bytes("keep") > 60e6
    assert kept_bytes() < 40e6


def group(path, names, *, limit, used, cached):
    path.mkdir(parents=True)
    for name, text in zip((*names[:2], "memory.stat"), (limit, used, f"anon 7\n{names[2]} {cached}"), strict=True):
        (path / name).write_text(f"{text}\n")


def test_a_batch_job_has_what_its_control_groups_leave(tmp_path, monkeypatch):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "fs/slurm/job_7", memory._VERSION_2, limit=1000, used=700, cached=100)
    group(tmp_path / "fs/slurm/job_7/step_0", memory._VERSION_2, limit="max", used=650, cached=100)
    assert memory.left_in_control_groups(membership, tmp_path / "fs") == [400]
    monkeypatch.setattr(memory, "left_in_control_groups", lambda: [400 << 20])
    memory.require_memory(399 << 20, "x")
    with pytest.raises(UserError, match="x: needs about 401 MiB of memory; 400 MiB are free"):
        memory.require_memory(401 << 20, "x")


def test_the_older_control_groups_are_read_too(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu,cpuacct:/a\n4:memory:/slurm/job_7\n0::/\n")
    group(tmp_path / "fs/memory/slurm/job_7", memory._VERSION_1, limit=1000, used=900, cached=50)
    assert memory.left_in_control_groups(membership, tmp_path / "fs") == [150]
    assert memory.left_in_control_groups(tmp_path / "nothing", tmp_path) == []
