"""The end of a job: save, drain, save what is exact, sum up; with those ranks that are there.

Owns how long ranks wait for each other at the end, and what becomes of a job that ends without some.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from galampi.errors import USERS_FAILURES
from galampi.gossip import Patience, Stage, is_heard_of
from galampi.gossip.mixing import Int64s
from galampi.ranks.placement import end_job
from galampi.results import JobFile
from galampi.signals import StopSignals
from galampi.training.rank import Rank

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

PARTIAL_CODE = 4
"""Exit code of a job that has ended without some of its ranks."""
_LOOK_PERIOD_S = 0.01
_RECENT_EPISODES = 100


@dataclass(frozen=True)
class Outcome:
    """What a run came to; the same on every rank.

    Attributes:
        status: `finished`, `stopped` or `failed`.
        env_steps: Env steps of all ranks, resumed ones included.
        steps_per_s: Env steps a second of all ranks in this start of the run.
        mean_return: Mean return of the last 100 episodes of all ranks; NaN if none has ended.
        messages: Messages sent, all ranks.
        weights: Least and greatest push-sum weight after the drain, and their sum.
        effective_step: How far the ensemble has moved in this start, over what the steps of its ranks ask for.
        distance: Greatest distance of a rank's parameters to the mean of all when the loop ended, before the drain.
        relative_distance: The same, over the norm of the mean.
        failure: Why it failed, if simulators raised too often.
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
    failure: str


def end(rank: Rank, signals: StopSignals) -> Outcome:
    """Save, drain, save again and sum up. Collective over the ranks that answer.

    Does not return if some do not answer: what the others have is saved then, and the job ends with `PARTIAL_CODE`.
    """
    comm = rank.comm
    elapsed_s = time.monotonic() - rank.started_s
    # Taken before the drain, whose last averaging brings the ranks closer than they are while they train.
    z_while_training = rank.learner.parameters.copy()
    if signals.caught is not None:
        log.info("%s: saving", signals.caught.name)
    rank.mailboxes.announce(Stage.SAVING)
    # Before anybody is waited for.
    rank.save(exact=False)
    rank.mailboxes.announce(Stage.DRAINING)
    hears = is_heard_of(rank.job.gossip.method)
    patience = Patience(time.monotonic(), 0.0 if rank.lost_rank else rank.silent_after_s, hears=hears)

    def stages() -> Int64s:
        if signals.caught is not None:
            # What came to a rank that has done its part alone is for all.
            rank.mailboxes.announce_stop()
        return rank.mailboxes.stages

    if not hears and comm.rank == 0 and (stages() == Stage.TRAINING)[1:].any():
        log.info("rank 0 has done its part, and waits for the others, which it hears nothing of until they have")
    is_exact = rank.gossip.drain(
        rank.learner.z,
        lambda: patience.is_over_for_messages(stages(), time.monotonic(), signals.caught_at_s),
    )
    rank.learner.refresh()
    rank.save(exact=is_exact)
    if rank.energy is not None:
        rank.writer.write_energy(rank.job_time_s, rank.placement.hostname, rank.energy.counted_j())
    rank.writer.close()
    rank.mailboxes.announce(Stage.SAVED if is_exact else Stage.SAVED_ALONE)
    while ((found := stages()) < Stage.SAVED).any():
        if patience.ends_job(comm.rank, found, time.monotonic(), signals.caught_at_s):
            _end_without_some(rank, found)
        time.sleep(_LOOK_PERIOD_S)
    is_whole = bool((rank.mailboxes.stages == Stage.SAVED).all())
    rank.mailboxes.free()
    outcome = sum_up(rank, z_while_training, elapsed_s)
    if is_whole:
        total = outcome.weights[2]
        # No assert: it is to hold under `python -O` as well.
        if not abs(total - comm.size) < 1e-9 * comm.size:
            raise AssertionError(f"push-sum weights sum to {total}")
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


def sum_up(rank: Rank, z_while_training: np.ndarray, elapsed_s: float) -> Outcome:
    """Gather on rank 0, as arrays, what the job came to, and tell the outcome to all. Collective over comm.

    Args:
        rank: This one.
        z_while_training: Its parameters at the end of its training, [P].
        elapsed_s: Time it has trained.
    """
    comm, start, mixing = rank.comm, rank.start, rank.gossip.mixing
    limit_s = rank.job.max_time_s
    mean = z_while_training / comm.size
    comm.Allreduce(MPI.IN_PLACE, mean)
    facts = {
        # Whole numbers are exact in float64 up to 2^53.
        "env_steps": rank.env_steps,
        "updates": rank.update - start.counters["update"],
        "sent": rank.counts["sent"],
        "weight": mixing.weight,
        "moved": mixing.weight * mixing.moved,
        "distance": float(np.linalg.norm(z_while_training - mean)),
        # Without exchange each ends by itself, and one that was resumed after it had done its part at once.
        "elapsed_s": elapsed_s,
        "time_is_over": bool(limit_s and start.time_s + elapsed_s >= limit_s),
    }
    gathered = dict(zip(facts, _gather(comm, np.array(list(facts.values()), np.float64)), strict=True))
    recent = _gather(comm, _newest(rank.returns))
    told = ""
    if rank.fails_too_often:
        told = (
            f"simulators of rank {comm.rank} have raised {rank.num_failures} times, and environment.max_failures is "
            f"{rank.job.environment.max_failures}; the last time: {rank.last_failure}"
        )
    # On rank 0 alone, as all the rest.
    failure = next(filter(None, comm.gather(told) or ()), "")
    outcome: Outcome | None = None
    if comm.rank == 0:
        env_steps = start.total_env_steps(gathered["env_steps"].astype(np.int64))
        # A signal may come while the last update meets the budget, and another rank may have caught it.
        is_finished = env_steps >= rank.job.total_env_steps or gathered["time_is_over"].any()
        # Rank after rank, as whoever reads the files does, for many may end at one moment.
        ended_s, returns = recent.reshape(2, _RECENT_EPISODES, -1).swapaxes(1, 2).reshape(2, -1)
        returns = returns[np.argsort(ended_s, kind="stable")][: np.isfinite(ended_s).sum()][-_RECENT_EPISODES:]
        weights, num_updates = gathered["weight"], gathered["updates"].sum()
        distance = float(gathered["distance"].max())
        outcome = Outcome(
            status="failed" if failure else "finished" if is_finished else "stopped",
            failure=failure,
            env_steps=env_steps,
            steps_per_s=(env_steps - start.total_env_steps(start.progress)) / float(gathered["elapsed_s"].max()),
            mean_return=float(returns.mean()) if len(returns) else float("nan"),
            messages=int(gathered["sent"].sum()),
            weights=(float(weights.min()), float(weights.max()), float(weights.sum())),
            effective_step=float(gathered["moved"].sum() / num_updates) if num_updates else float("nan"),
            distance=distance,
            relative_distance=distance / float(np.linalg.norm(mean)),
        )
    outcome = comm.bcast(outcome)
    assert outcome is not None
    return outcome


def _gather(comm: MPI.Intracomm, row: Floats) -> Floats:
    """Return on rank 0 the rows of all ranks, transposed, [length, n]; elsewhere nothing. Collective over comm."""
    rows = np.empty((comm.size if comm.rank == 0 else 0, row.size))
    comm.Gather(row, rows, root=0)
    return np.ascontiguousarray(rows.T)


def _newest(returns: Iterable[tuple[float, float]]) -> Floats:
    """Return times and returns of a rank's last episodes, one after the other; NaN for those it has not had."""
    newest = np.full((2, _RECENT_EPISODES), np.nan)
    pairs = np.array(list(returns)[-_RECENT_EPISODES:]).reshape(-1, 2)
    newest[:, : len(pairs)] = pairs.T
    return newest.ravel()


def _close_simulators(rank: Rank) -> None:
    """Close the simulators; what an environment of somebody else's raises then harms nothing that is saved."""
    try:
        rank.simulators.close()
    except USERS_FAILURES as error:
        log.warning("closing the simulators: %s: %s", type(error).__name__, error)
