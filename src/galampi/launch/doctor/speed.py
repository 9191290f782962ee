"""How fast simulators and learner are here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from galampi.errors import UserError
from galampi.job import Job
from galampi.launch.doctor.finding import Finding

if TYPE_CHECKING:
    from mpi4py import MPI

_MEASURE_S = 2.0


def check_speed(job: Job, comm: MPI.Intracomm) -> tuple[Finding, int | None]:
    """Measure simulators and learner, all ranks at once; also returns the number of parameters, if the job starts."""
    from galampi.memory import keep_freed_memory
    from galampi.ranks.placement import place, together
    from galampi.training.setup import make_learning

    placement = place(comm)
    keep_freed_memory()
    try:
        with together(comm):
            learning = make_learning(job, placement, comm.rank, comm.size)
    except UserError as error:
        return Finding(
            "speed", "failed", f"the job does not start: {error}", "mend the job, or ask for other nodes"
        ), None
    learner, collector = learning.learner, learning.collector
    env_steps, env_s = 0, 0.0
    comm.Barrier()
    began_s = time.monotonic()
    while time.monotonic() - began_s < _MEASURE_S:
        rollout, _ = collector.collect()
        learner.compute_gradient(rollout)
        learner.apply_gradient(1e-6)
        learner.refresh()
        env_steps += rollout.num_valid
        env_s += collector.env_s
    elapsed_s = time.monotonic() - began_s
    learning.simulators.close()
    alone, trained = np.array(comm.allgather((env_steps / env_s, env_steps / elapsed_s))).T
    text = (
        f"emulators alone {np.median(alone):,.0f} env steps/s a rank; with learning {trained.min():,.0f} to "
        f"{trained.max():,.0f} a rank, {trained.sum():,.0f} in all: {job.total_env_steps:,} take about "
        f"{_duration(job.total_env_steps / trained.sum())} ({learning.device}, {learning.precision}, "
        f"{learner.z.size:,} parameters)"
    )
    figures = {"emulator_steps_per_s": alone.tolist(), "learner_steps_per_s": trained.tolist()}
    if trained.min() < 0.5 * np.median(trained):
        slow = comm.allgather(placement.hostname)[int(trained.argmin())]
        advice = f"a rank on {slow} is less than half as fast as the others; they will not wait for it, but look at it"
        return Finding("speed", "warning", text, advice, figures), learner.z.size
    return Finding("speed", "ok", text, figures=figures), learner.z.size


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} seconds"
