"""Gossip between hosts whose links are late, lose packets, and are cut."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limits import DEADLOCK_S

from galampi.bench.hosts import Hosts

PROGRAM = Path(__file__).parent / "exchange.py"
LATE = {"delay_s": 0.005, "loss": 0.01}


def start(hosts, ranks_per_host, **settings) -> subprocess.Popen:
    command = hosts.mpirun(ranks_per_host, [sys.executable, str(PROGRAM), json.dumps(settings)])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process) -> dict:
    out, errors = process.communicate(timeout=DEADLOCK_S)
    assert process.returncode == 0, errors
    told = json.loads(out)
    print(told)
    return told


def check(told, num_ranks) -> None:
    assert told["weight"] == pytest.approx(num_ranks, abs=1e-9)
    assert told["mass_error"] < 4
    assert told["num_averaged"] > 10 * num_ranks
    assert min(told["last_from_elsewhere_s"]) > 0


@pytest.mark.parametrize("form", ["full", "int8"])
def test_late_links_that_lose_packets_lose_no_message(tmp_path, num_hosts, form) -> None:
    with Hosts(num_hosts, tmp_path, **LATE) as hosts:
        told = finish(start(hosts, 4 // num_hosts, form=form, seconds=4, update_s=0.02))
    check(told, 4)


def test_nobody_waits_for_a_link_that_is_cut_and_all_goes_on_when_it_is_back(tmp_path, cut_s) -> None:
    with Hosts(2, tmp_path, **LATE) as hosts:
        # TCP tries again after twice the time each time: a link that is back may be found as late as it was cut.
        process = start(hosts, 2, form="int8", seconds=3 + 3 * cut_s, update_s=0.02)
        time.sleep(3)
        hosts.cut(True)
        time.sleep(cut_s)
        hosts.cut(False)
        told = finish(process)
    check(told, 4)
    assert told["longest_step_s"] < cut_s / 2
    assert min(told["last_from_elsewhere_s"]) > 3 + cut_s
