"""Program: train for some seconds, on cores that are told, and say what a run's files do not say.

Started as `mpirun -n N python -m galampi.bench.timed_train SETTINGS`, SETTINGS being JSON of `TimedTraining`. Each rank
writes a file of JSON, for launchers mix up what ranks print.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from galampi.job import load_job
from galampi.ranks.importing import heavy_imports
from galampi.ranks.launched import launched_rank

if TYPE_CHECKING:
    from galampi.learning import Episode, Rollout

LEAST_UPDATES = 3
"""However slow the machine."""


@dataclass(frozen=True)
class TimedTraining:
    """What to do.

    Attributes:
        launched_at: Unix time at which the command was started, s.
        settling_s: Time from the first update on that does not count.
        seconds: Time that counts, until the stop; more where fewer than `LEAST_UPDATES` fall into it.
        cores: Rank r runs on core number r modulo their number alone.
        slow_rank: Rank that is slowed, or None.
        slow_factor: Times as long as it would that an update of that rank takes.
        folder: Takes each rank's `measured-RANK.json`.
        out: Folder of the run.
        job: Settings of the job, over those of the built-in one.
    """

    launched_at: float
    settling_s: float
    seconds: float
    cores: list[int]
    slow_rank: int | None
    slow_factor: float
    folder: str
    out: str
    job: dict[str, str]


def main() -> int:
    """Train until the time is over."""
    settings = TimedTraining(**json.loads(sys.argv[1]))
    rank = launched_rank()
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
        elif num_rollouts > 2 and "pss_bytes" not in measured:
            counted_s = time.monotonic() - first_update_at_s - settings.settling_s
            num_counted += counted_s >= 0
            if counted_s >= settings.seconds and num_counted > LEAST_UPDATES:
                stop()
        if rank == settings.slow_rank and awake_since_s:
            time.sleep((settings.slow_factor - 1) * (time.monotonic() - awake_since_s))
        awake_since_s = time.monotonic()
        return collect(collector)

    # On the class itself: whichever part of training makes the collector.
    setattr(RolloutCollector, "collect", timed_collect)  # noqa: B010
    job = load_job(None, settings.job)
    _, outcome = train(job, Path(settings.out), resume="no", argv=sys.argv, comm=MPI.COMM_WORLD, quiet=True)
    (Path(settings.folder) / f"measured-{rank}.json").write_text(json.dumps(measured))
    return 0 if outcome is not None and outcome.status == "stopped" else 1


if __name__ == "__main__":
    sys.exit(main())
