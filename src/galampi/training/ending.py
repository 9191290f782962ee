"""The end of a job: save, drain, save what is exact, sum up; with those ranks that are there.

Owns how long ranks wait for each other at the end, and what becomes of a job that ends without some.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from mpi4py import MPI

from galampi.gossip import Patience, Stage
from galampi.gossip.mixing import Int64s
from galampi.ranks.placement import end_job
from galampi.results import JobFile
from galampi.training.rank import Rank
from galampi.training.signals import StopSignals

log = logging.getLogger(__name__)

PARTIAL_CODE = 4
"""Exit code of a job that has ended without some of its ranks."""
_LOOK_PERIOD_S = 0.01


@dataclass(frozen=True)
class Outcome:
    """What a run came to; the same on every rank.

    Attributes:
        status: `finished` or `stopped`.
        env_steps: Env steps of all ranks, resumed ones included.
        steps_per_s: Env steps a second of all ranks in this start of the run.
        mean_return: Mean return of the last 100 episodes of all ranks; NaN if none has ended.
        messages: Messages sent, all ranks.
        weights: Least and greatest push-sum weight after the drain, and their sum.
        effective_step: How far the ensemble has moved in this start, over what the steps of its ranks ask for.
        distance: Greatest distance of a rank's parameters to the mean of all when the loop ended, before the drain.
        relative_distance: The same, over the norm of the mean.
    """

    status: str
    env_steps: int
    steps_per_s: float
    mean_return: float
    messages: int
    weights: tuple[float, float, float]
    effective_step: float
    distance: float
    relative_distance: float


def end(rank: Rank, signals: StopSignals) -> Outcome:
    """Save, drain, save again and sum up. Collective over the ranks that answer.

    Does not return if some do not answer: what the others have is saved then, and the job ends with `PARTIAL_CODE`.
    """
    comm = rank.comm
    elapsed_s = time.monotonic() - rank.started_s
    # Taken before the drain, whose last averaging brings the ranks closer than they are while they train.
    z_while_training = rank.learner.z.copy()
    if signals.caught is not None:
        log.info("%s: saving", signals.caught.name)
    # Before anybody is waited for.
    rank.save(exact=False)
    patience = Patience(time.monotonic(), 0.0 if rank.lost_rank else rank.job.gossip.silent_after_s)
    is_exact = rank.gossip.drain(
        rank.learner.z,
        lambda: patience.is_over_for_messages(rank.mailboxes.stages, time.monotonic(), signals.caught_at_s),
    )
    rank.learner.refresh()
    rank.save(exact=is_exact)
    if rank.energy is not None:
        rank.writer.write_energy(rank.job_time_s, rank.placement.hostname, rank.energy.counted_j())
    rank.writer.close()
    rank.mailboxes.announce(Stage.SAVED if is_exact else Stage.SAVED_ALONE)
    while ((stages := rank.mailboxes.stages) < Stage.SAVED).any():
        if patience.ends_job(comm.rank, stages, time.monotonic(), signals.caught_at_s):
            _end_without_some(rank, stages)
        time.sleep(_LOOK_PERIOD_S)
    weights = comm.allgather(rank.gossip.mixing.weight)
    if (rank.mailboxes.stages == Stage.SAVED).all():
        assert abs(sum(weights) - comm.size) < 1e-9 * comm.size, f"push-sum weights sum to {sum(weights)}"
    rank.mailboxes.free()
    outcome = _sum_up(rank, weights, z_while_training, elapsed_s)
    if comm.rank == 0:
        JobFile.set_status(rank.out, outcome.status)
    comm.Barrier()
    _close_simulators(rank)
    return outcome


def _end_without_some(rank: Rank, stages: Int64s) -> NoReturn:
    """End the job everywhere, without the ranks that have not saved."""
    missing = np.flatnonzero(stages < Stage.SAVED)
    JobFile.set_status(rank.out, "partial", missing_ranks=missing.tolist())
    there, num_ranks = rank.comm.size - len(missing), rank.comm.size
    silent = ", ".join(rank.silence.describe(int(each)) for each in missing)
    print(
        f"galampi: ended with {there} of {num_ranks} ranks: {silent}; what the others have is saved; go on with: "
        f"mpirun -n {num_ranks} python -m galampi train --out {rank.out} --resume",
        file=sys.stderr,
        flush=True,
    )
    end_job(PARTIAL_CODE)
    raise AssertionError("a job of one rank has no others to wait for")


def _sum_up(rank: Rank, weights: list[float], z_while_training: np.ndarray, elapsed_s: float) -> Outcome:
    """Gather what the job came to. Collective over comm."""
    comm, start, mixing = rank.comm, rank.start, rank.gossip.mixing
    env_steps = start.total_env_steps(np.array(comm.allgather(rank.env_steps), dtype=np.int64))
    recent = sorted(pair for pairs in comm.allgather(list(rank.returns)) for pair in pairs)[-100:]
    moved = comm.allreduce(mixing.weight * mixing.moved)
    num_updates = comm.allreduce(rank.update - start.counters["update"])
    mean = z_while_training / comm.size
    comm.Allreduce(MPI.IN_PLACE, mean)
    distance = max(comm.allgather(float(np.linalg.norm(z_while_training - mean))))
    limit_s = rank.job.max_time_s
    time_is_over = bool(limit_s and start.time_s + elapsed_s >= limit_s)
    # A signal may come while the last update meets the budget, and another rank may have caught it.
    is_finished = env_steps >= rank.job.total_env_steps or comm.allreduce(time_is_over, MPI.LOR)
    return Outcome(
        status="finished" if is_finished else "stopped",
        env_steps=env_steps,
        steps_per_s=(env_steps - start.total_env_steps(start.progress)) / elapsed_s,
        mean_return=float(np.mean([value for _, value in recent])) if recent else float("nan"),
        messages=comm.allreduce(rank.counts["sent"]),
        weights=(min(weights), max(weights), sum(weights)),
        effective_step=moved / num_updates if num_updates else float("nan"),
        distance=distance,
        relative_distance=distance / float(np.linalg.norm(mean)),
    )


def _close_simulators(rank: Rank) -> None:
    """Close the simulators; what an environment of somebody else's raises then harms nothing that is saved."""
    try:
        rank.simulators.close()
    except Exception as error:
        log.warning("closing the simulators: %s: %s", type(error).__name__, error)
