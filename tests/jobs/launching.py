"""Whole commands in subprocesses, under whichever MPI library is installed beside them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from limits import DEADLOCK_S

from galampi.results import load_checkpoint, open_run, previous_checkpoint

JOBS = Path(__file__).parents[2] / "jobs"
FOREVER = 1_000_000_000
"""Env steps of a job that does not end by itself."""
# A job that starts at once and whose updates take a millisecond.
SMALL_JOB = """
name = "small"
precision = "float32"
[environment]
id = "CartPole-v1"
num_envs = 4
[checkpoint]
every_updates = 50
[record]
sketch_every_s = 0.05
sketch_size = 64
"""


class Command:
    """A running `mpirun ... python -m galampi ...`."""

    def __init__(self, arguments: list[str], ranks: int | None, env: dict[str, str], cwd: Path | None = None) -> None:
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "galampi", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            cwd=cwd,
            start_new_session=True,
        )

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks, in order of their start."""
        return ranks_below(self.process.pid)

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, output and errors."""
        out, err = self.process.communicate(timeout=DEADLOCK_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """Kill the launcher and every rank, as a node going down does, and nobody else."""
        ranks = self.ranks()
        for process in [psutil.Process(self.process.pid), *ranks] if self.process.poll() is None else ranks:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(ranks, timeout=DEADLOCK_S)
        self.process.communicate(timeout=DEADLOCK_S)


def ranks_below(launcher_pid: int) -> list[psutil.Process]:
    """Return the processes of the ranks that a launcher has started, in order of their start."""
    try:
        below = psutil.Process(launcher_pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in below:
        try:
            if "galampi" in process.cmdline() and "mpirun" not in process.name():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    python = [p for p in found if p.name().startswith("python")]
    return sorted(python, key=lambda process: (process.create_time(), process.pid))


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLOCK_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLOCK_S} s")
        time.sleep(0.02)


def has_trained(out: Path, num_ranks: int = 2) -> bool:
    """Whether the ranks have saved after the checkpoint that they begin with."""
    return len(list((out / "checkpoint/previous").glob("rank-*.h5"))) == num_ranks


def newest_checkpoint(out: Path, rank: int) -> dict:
    """Load what a rank has saved last; a kill between two renames leaves the one before alone."""
    path = out / f"checkpoint/rank-{rank:04d}.h5"
    return load_checkpoint(path if path.exists() else previous_checkpoint(path))


def rank_of(process: psutil.Process) -> int:
    """Return the rank that the launcher gave a process."""
    environment = process.environ()
    return int(environment.get("PMI_RANK", environment.get("OMPI_COMM_WORLD_RANK", -1)))


def assert_sound(out: Path, *, num_ranks: int, status: str) -> None:
    """A run's files say one thing: counters rise, weights sum to n, nothing is doubled."""
    run = open_run(out)
    assert run.status == status
    assert run.num_ranks == num_ranks
    for rank in run.ranks:
        updates = rank.updates["update"]
        # A rank that comes back to a job goes on from the largest update of all.
        gaps = updates[1:][np.diff(updates) != 1] - 1
        assert set(gaps) <= set(rank.restarts["update"])
        assert updates[0] == rank.attributes["joined_after_update"] + 1
        assert (np.diff(rank.updates["env_steps"]) > 0).all()
        assert (np.diff(rank.updates["time_s"]) >= 0).all()
        for counter in ("sent", "received", "skipped"):
            assert (np.diff(rank.updates[counter]) >= 0).all()
        assert (np.diff(rank.episodes["episode"]) == 1).all()
    weights = [load_checkpoint(out / f"checkpoint/rank-{r:04d}.h5")["weight"] for r in range(num_ranks)]
    assert sum(weights) == pytest.approx(num_ranks, abs=1e-9)
