"""Ranks of `exchange.py` on hosts, and what must hold of every exchange when it ends."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from limits import DEADLOCK_S

from galampi.bench.hosts import Hosts

PROGRAM = Path(__file__).parent / "exchange.py"
LATE = {"delay_s": 0.005, "loss": 0.01}


@contextmanager
def ranks(
    start: Callable[[Sequence[str]], list[str]], environment: Mapping[str, str] | None = None, **settings
) -> Iterator[subprocess.Popen]:
    """Start ranks, and wait until they have begun; kill them if the test fails."""
    command = start([sys.executable, str(PROGRAM), json.dumps(settings)])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n", process.communicate()
            yield process
        finally:
            process.kill()


def cut_for(hosts: Hosts, cut_s: float, back: Path) -> None:
    """Cut the first host off for a while, and tell the ranks by a file when it is back."""
    time.sleep(1)
    hosts.cut(True)
    time.sleep(cut_s)
    hosts.cut(False)
    back.touch()


def end(process, num_ranks) -> dict:
    """Wait for the end, and check what must hold of it."""
    out, errors = process.communicate(timeout=DEADLOCK_S)
    assert process.returncode == 0, errors
    told = json.loads(out)
    print(told)
    assert told["weight"] == pytest.approx(num_ranks, abs=1e-9)
    assert told["mass_error"] < 4
    return told
