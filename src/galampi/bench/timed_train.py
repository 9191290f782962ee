"""Program: train for some seconds, on cores that are told, and say what a run's files do not say.

Started as `mpirun -n N python -m galampi.bench.timed_train SETTINGS`, SETTINGS being JSON of `TimedTraining`. Each rank
writes a file of JSON, for launchers mix up what ranks print.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from galampi.job import load_job
from galampi.ranks.importing import heavy_imports
from galampi.ranks.launched import launched_rank

if TYPE_CHECKING:
    from galampi.learning import Episode, Rollout

LEAST_UPDATES = 3
"""However slow the machine."""


@dataclass(frozen=True)
class Disturbance:
    """What holds ranks up.

    Attributes:
        slow_rank: Rank whose updates take `slow_factor` times as long as they would; None for none.
        slow_factor: See there.
        simulator_s: Mean time that a step of a simulator takes more than it would, s.
        simulator_sigma: That time is lognormal with this sigma, drawn anew for each simulator and step; a rank waits
            for the slowest of its simulators.
        stopped_rank: Rank that is stopped, as by SIGSTOP, once; None for none.
        stop_after_s: Time from the first update on after which it is stopped.
        stop_s: Time for which it is stopped.
    """

    slow_rank: int | None = None
    slow_factor: float = 3.0
    simulator_s: float = 0.0
    simulator_sigma: float = 0.0
    stopped_rank: int | None = None
    stop_after_s: float = 0.0
    stop_s: float = 0.0


@dataclass(frozen=True)
class TimedTraining:
    """What to do.

    Attributes:
        launched_at: Unix time at which the command was started, s.
        settling_s: Time from the first update on that does not count.
        seconds: Time that counts, until the stop; more where fewer than `LEAST_UPDATES` fall into it.
        cores: Rank r runs on core number r modulo their number alone.
        disturbance: What holds ranks up, as a table of `Disturbance`.
        folder: Takes each rank's `measured-RANK.json`.
        out: Folder of the run.
        job: Settings of the job, over those of the built-in one.
    """

    launched_at: float
    settling_s: float
    seconds: float
    cores: list[int]
    disturbance: dict[str, Any]
    folder: str
    out: str
    job: dict[str, str]


def waiting_s(disturbance: Disturbance, shape: tuple[int, ...], random: np.random.Generator) -> float:
    """Draw how long a rank waits for its simulators in a rollout of [T, B] steps."""
    sigma = disturbance.simulator_sigma
    times = random.lognormal(-(sigma**2) / 2, sigma, size=shape)
    return float(disturbance.simulator_s * times.max(axis=1).sum())


def _stop_later(disturbance: Disturbance) -> None:
    """Let this process be stopped and go on again by a shell, for it cannot wake itself."""
    pid = os.getpid()
    script = f"sleep {disturbance.stop_after_s}; kill -STOP {pid}; sleep {disturbance.stop_s}; kill -CONT {pid}"
    subprocess.Popen(["sh", "-c", script], start_new_session=True)


def main() -> int:
    """Train until the time is over."""
    settings = TimedTraining(**json.loads(sys.argv[1]))
    disturbance = Disturbance(**settings.disturbance)
    rank = launched_rank()
    random = np.random.default_rng(rank)
    # Before torch is loaded, which counts the cores it may use.
    os.sched_setaffinity(0, {settings.cores[rank % len(settings.cores)]})

    # As the command does.
    with heavy_imports():
        from mpi4py import MPI

        from galampi.learning import RolloutCollector
        from galampi.training import train

    measured: dict[str, float] = {}
    num_rollouts, num_counted = 0, 0
    first_update_at_s, awake_since_s = 0.0, 0.0
    collect = RolloutCollector.collect

    def stop() -> None:
        measured["pss_bytes"] = psutil.Process().memory_full_info().pss
        os.kill(os.getpid(), signal.SIGUSR1)

    def timed_collect(collector: RolloutCollector) -> tuple[Rollout, list[Episode]]:
        """Notice the end of each update, for the next rollout is asked for then."""
        nonlocal num_rollouts, num_counted, first_update_at_s, awake_since_s
        num_rollouts += 1
        if num_rollouts == 2:
            measured["first_update_s"] = time.time() - settings.launched_at
            first_update_at_s = time.monotonic()
            if rank == disturbance.stopped_rank:
                _stop_later(disturbance)
        elif num_rollouts > 2 and "pss_bytes" not in measured:
            counted_s = time.monotonic() - first_update_at_s - settings.settling_s
            num_counted += counted_s >= 0
            if counted_s >= settings.seconds and num_counted > LEAST_UPDATES:
                stop()
        if rank == disturbance.slow_rank and awake_since_s:
            time.sleep((disturbance.slow_factor - 1) * (time.monotonic() - awake_since_s))
        awake_since_s = time.monotonic()
        collected = collect(collector)
        if disturbance.simulator_s:
            time.sleep(waiting_s(disturbance, collected[0].rewards.shape, random))
        return collected

    # On the class itself: whichever part of training makes the collector.
    setattr(RolloutCollector, "collect", timed_collect)  # noqa: B010
    job = load_job(None, settings.job)
    _, outcome = train(job, Path(settings.out), resume="no", argv=sys.argv, comm=MPI.COMM_WORLD, quiet=True)
    (Path(settings.folder) / f"measured-{rank}.json").write_text(json.dumps(measured))
    return 0 if outcome is not None and outcome.status == "stopped" else 1


if __name__ == "__main__":
    sys.exit(main())
