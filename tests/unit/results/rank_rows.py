"""Rows whose every column follows from the update, so that a torn one shows; and writers to be killed.

Run as a script: `rank_rows.py endless FILE` or `rank_rows.py resume FILE CALL`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from galampi.results import Position, RankWriter, Restart, Sketch, UpdateRow

SKETCH = Sketch(8, 100)


def write_row(writer: RankWriter, update: int) -> None:
    """Buffer one row in every table."""
    n = float(update)
    row = UpdateRow(
        update=update,
        env_steps=80 * update,
        time_s=n,
        policy_loss=n,
        value_loss=n,
        entropy=n,
        grad_norm=n,
        step_norm=n,
        learning_rate=n,
        step_scale=n,
        step_weight=n,
        weight=n,
        moved=n,
        sent=update,
        received=update,
        skipped=update,
        message_age_s=n,
        env_s=n,
        act_s=n,
        learn_s=n,
        gossip_s=n,
        record_s=n,
    )
    writer.write_update(row)
    writer.write_episode(episodic_return=n, length=update, env_steps=80 * update, time_s=n, simulator=update)
    writer.write_sketch(update, n, np.full(8, n))
    writer.write_edges(update, n, [1], [update], [update], [update])
    writer.write_energy(n, "node-1", {"package-0": n})
    writer.write_failure(update=update, time_s=n, simulator=0, simulator_episode=1, error="broke", traceback="line")


def write_endlessly(path: Path) -> None:
    """Write and flush three rows at a time, saying how many after each flush, until killed."""
    writer = RankWriter(path, rank=0, sketch=SKETCH)
    update = 0
    while True:
        for _ in range(3):
            update += 1
            write_row(writer, update)
        writer.flush()
        print(update, flush=True)


def resume_until_killed(path: Path, fatal_call: int) -> None:
    """Resume at row 50, but die at the n-th call that touches the file system; print how many there were."""
    num_calls = 0

    def fatal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for owner, name in (
        (h5py.Dataset, "__setitem__"),
        (h5py.Dataset, "resize"),
        (h5py.File, "flush"),
        (os, "fsync"),
        (Path, "rename"),
    ):
        setattr(owner, name, fatal(getattr(owner, name)))
    restart = Restart(update=50, time_s=0.0, reason="killed", weights_restarted=True)
    RankWriter(path, rank=0, sketch=SKETCH, resume_at=Position(50, 50, 50), restart=restart).close()
    print(num_calls)


if __name__ == "__main__":
    if sys.argv[1] == "endless":
        write_endlessly(Path(sys.argv[2]))
    else:
        resume_until_killed(Path(sys.argv[2]), int(sys.argv[3]))
