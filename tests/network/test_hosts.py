"""Gossip between hosts whose links are late, lose packets, and are cut."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from limits import DEADLOCK_S

from galampi.bench.hosts import Hosts

PROGRAM = Path(__file__).parent / "exchange.py"
LATE = {"delay_s": 0.005, "loss": 0.01}


@contextmanager
def ranks(hosts, ranks_per_host, **settings) -> Iterator[subprocess.Popen]:
    """Start ranks, and wait until they have begun; kill them if the test fails."""
    command = hosts.mpirun(ranks_per_host, [sys.executable, str(PROGRAM), json.dumps(settings)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def end(process, num_ranks) -> dict:
    """Wait for the end, and check what must hold of it."""
    out, errors = process.communicate(timeout=DEADLOCK_S)
    assert process.returncode == 0, errors
    told = json.loads(out)
    print(told)
    assert told["weight"] == pytest.approx(num_ranks, abs=1e-9)
    assert told["mass_error"] < 4
    return told


@pytest.mark.parametrize("form", ["full", "int8"])
def test_late_links_that_lose_packets_lose_no_message(tmp_path, num_hosts, form) -> None:
    settings = {"form": form, "update_s": 0.02, "after": str(tmp_path), "least": 20}
    with Hosts(num_hosts, tmp_path, **LATE) as hosts, ranks(hosts, 4 // num_hosts, **settings) as process:
        end(process, 4)


def test_nobody_waits_for_a_link_that_is_cut_and_all_goes_on_when_it_is_back(tmp_path, cut_s) -> None:
    back = tmp_path / "back"
    settings = {"form": "int8", "update_s": 0.02, "after": str(back), "least": 5}
    with Hosts(2, tmp_path, **LATE) as hosts, ranks(hosts, 2, **settings) as process:
        time.sleep(1)
        hosts.cut(True)
        time.sleep(cut_s)
        hosts.cut(False)
        back.touch()
        # TCP tries again after twice the time each time: who waits for it waits for longer than the link was cut.
        assert end(process, 4)["longest_step_s"] < cut_s
