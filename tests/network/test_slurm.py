"""Gossip between the nodes of a Slurm whose links are late, lose packets, and are cut."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from exchanging import LATE, cut_for, end, ranks
from limits import DEADLOCK_S

from galampi.bench.hosts import Hosts

LOCAL_SLURM = Path(__file__).parent.parent / "cluster" / "local-slurm.sh"
NUM_NODES = 2


@contextmanager
def slurm_on(hosts: Hosts, folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm on hosts, the last of which steers it; yield the environment of its commands."""
    environment = {
        **os.environ,
        "LOCAL_SLURM_DIR": str(folder),
        "LOCAL_SLURM_HOSTS": hosts.prefix,
        "LOCAL_SLURM_NODES": str(NUM_NODES),
        "LOCAL_SLURM_PORT": str(random.randrange(20_000, 32_000)),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        # Both MPI libraries would try the loopback interface too.
        "UCX_NET_DEVICES": "net0",
        "UCX_TLS": "tcp,self",
        "PRTE_MCA_prte_if_include": "net0",
        "OMPI_MCA_btl_tcp_if_include": "net0",
    }

    def control(word: str) -> None:
        command = hosts.on(NUM_NODES + 1, [str(LOCAL_SLURM), word])
        subprocess.run(command, check=True, env=environment, timeout=DEADLOCK_S)

    try:
        control("start")
        yield environment
    finally:
        control("stop")


def test_nobody_waits_for_a_node_that_is_cut_off(tmp_path, tmp_path_factory, cut_s, is_long) -> None:
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path="/usr/sbin") is None]
    if missing:
        pytest.skip(f"{missing[0]} is missing: `tests/cluster/local-slurm.sh install` installs Slurm")
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    is_open_mpi = "Open MPI" in said or "OpenRTE" in said
    if is_open_mpi and not is_long:
        pytest.skip("half a minute; --long-cut runs it")
    size = ["--nodes=2", "--ntasks-per-node=2", "--time=5"]
    # Open MPI's own mpirun, which starts by srun.
    by_mpirun = ["salloc", *size, "mpirun", "-n", "4", "--map-by", "ppr:2:node:oversubscribe"]
    launch = by_mpirun if is_open_mpi else ["srun", "--mpi=pmi2", *size]
    back = tmp_path / "back"
    settings = {"form": "int8", "update_s": 0.02, "after": str(back), "least": 5}
    # munged refuses folders that others may enter; pytest's own lie below such a one.
    folder = tmp_path_factory.mktemp("slurm")
    with Hosts(NUM_NODES + 1, tmp_path, **LATE) as hosts, slurm_on(hosts, folder) as environment:

        def start(program: list[str]) -> list[str]:
            return hosts.on(NUM_NODES + 1, [*launch, *program])

        with ranks(start, environment, **settings) as process:
            cut_for(hosts, cut_s, back)
            assert end(process, 4)["longest_step_s"] < cut_s
