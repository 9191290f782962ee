"""Program: train for some seconds, on cores that are told, and say what a run's files do not say.

Started as `mpirun -n N python -m galampi.bench.timed_train SETTINGS`, SETTINGS being JSON of `TimedTraining`. Each rank
writes a file of JSON, for launchers mix up what ranks print.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from galampi.ranks.importing import heavy_imports
from galampi.ranks.launched import launched_rank


@dataclass(frozen=True)
class TimedTraining:
    """What to do.

    Attributes:
        launched_at: Unix time at which the command was started, s.
        seconds: Time from the first update to the stop.
        cores: Rank r runs on core number r modulo their number alone.
        slow_rank: Rank that is slowed, or None.
        slow_factor: Times as long as it would that an update of that rank takes.
        folder: Takes each rank's `measured-RANK.json`.
        train: Arguments of `galampi train`.
    """

    launched_at: float
    seconds: float
    cores: list[int]
    slow_rank: int | None
    slow_factor: float
    folder: str
    train: list[str]


def main() -> int:
    """Train until the time is over."""
    settings = TimedTraining(**json.loads(sys.argv[1]))
    rank = launched_rank()
    # Before torch is loaded, which counts the cores it may use.
    os.sched_setaffinity(0, {settings.cores[rank % len(settings.cores)]})

    # As the command does.
    with heavy_imports():
        from galampi import training
        from galampi.cli import run
        from galampi.learning import RolloutCollector

    measured: dict[str, float] = {}

    def stop() -> None:
        measured["pss_bytes"] = psutil.Process().memory_full_info().pss
        os.kill(os.getpid(), signal.SIGUSR1)

    class TimedCollector(RolloutCollector):
        """Notices the end of each update, for it is asked for the next rollout then."""

        num_rollouts = 0
        awake_since_s = 0.0

        def collect(self) -> Any:
            self.num_rollouts += 1
            if self.num_rollouts == 2:
                measured["first_update_s"] = time.time() - settings.launched_at
                timer = threading.Timer(settings.seconds, stop)
                timer.daemon = True
                timer.start()
            if rank == settings.slow_rank and self.awake_since_s:
                time.sleep((settings.slow_factor - 1) * (time.monotonic() - self.awake_since_s))
            self.awake_since_s = time.monotonic()
            return super().collect()

    setattr(training, "RolloutCollector", TimedCollector)  # noqa: B010
    code = run(["train", *settings.train])
    (Path(settings.folder) / f"measured-{rank}.json").write_text(json.dumps(measured))
    return 0 if code == 3 else 1


if __name__ == "__main__":
    sys.exit(main())
