"""One rank of a job while it trains: its parts, its counts, and what a checkpoint holds of it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from galampi.environments import Simulators
from galampi.errors import ResultsError, UserError
from galampi.gossip import AllReduce, Gossip, Mailboxes, PushSum
from galampi.gossip.patience import TYPICAL_OF, silent_after_s
from galampi.job import Job
from galampi.learning import Learner, RolloutCollector
from galampi.policies.stored import checkpoint_path
from galampi.ranks.launched import LAUNCHER_PID
from galampi.ranks.placement import Placement
from galampi.results import EnergyMeter, JobFile, RankWriter, Sketch, save_checkpoint
from galampi.results.files import is_still_at
from galampi.training.resuming import Start
from galampi.training.silence import Silence

log = logging.getLogger(__name__)

_FIRST_CHECKPOINT = 0.1
"""The first checkpoint comes after this part of the time between two."""


@dataclass(kw_only=True)
class Rank:
    """One rank of a job.

    Attributes:
        job: The settings.
        out: Folder of the run.
        comm: The ranks of the job.
        placement: Where this one runs.
        start: Where it began.
        hostnames: Of every rank.
        simulators: Its simulators.
        learner: Its learner.
        collector: Of rollouts.
        device: Where its network is.
        precision: In which it computes.
        mailboxes: Its ends of the edges.
        gossip: Its part in the exchange.
        allreduce: Of gradients; None with another method.
        silence: Which ranks make no progress.
        sketch: Of parameters.
        energy: Meter of the node; None on ranks that are not the first there.
        writer: Its results file.
        returns: Job time and return of its last 100 episodes.
        update: Updates it has made.
        env_steps: Env steps it has taken.
        own_budget: Env steps after which it ends, where it hears of no other rank's.
        started_s: Monotonic time of the start barrier.
        num_failures: What its simulators have raised in this start.
        last_failure: The newest of it, in a line.
        lost_rank: Whether it has given up waiting for another.
        took_s: Time that its last updates took, their rollouts included.
    """

    job: Job
    out: Path
    comm: MPI.Intracomm
    placement: Placement
    start: Start
    hostnames: Sequence[str]
    simulators: Simulators
    learner: Learner
    collector: RolloutCollector
    device: str
    precision: str
    mailboxes: Mailboxes
    gossip: Gossip
    allreduce: AllReduce | None
    silence: Silence
    sketch: Sketch
    energy: EnergyMeter | None
    writer: RankWriter
    returns: deque[tuple[float, float]]
    update: int
    env_steps: int
    own_budget: int
    started_s: float = field(default_factory=time.monotonic)
    num_failures: int = 0
    last_failure: str = ""
    lost_rank: bool = False
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=TYPICAL_OF))
    _checkpoint_due_s: float = 0.0
    _folder: os.stat_result = field(init=False)

    def __post_init__(self) -> None:
        """Note which folder it is."""
        self._folder = os.stat(self.out)

    def begin(self) -> None:
        """Begin to count time."""
        self.started_s = time.monotonic()
        if self.energy is not None:
            self.energy.start()
        # Ranks save at moments of their own, so that they do not meet at the file system.
        stagger = 1 + self.comm.rank / self.comm.size
        self._checkpoint_due_s = self.started_s + _FIRST_CHECKPOINT * self.job.checkpoint.every_s * stagger

    @property
    def fails_too_often(self) -> bool:
        """Whether its simulators have raised more than the job outlives."""
        return self.num_failures > self.job.environment.max_failures

    @property
    def silent_after_s(self) -> float:
        """Time after which another rank counts as silent."""
        return silent_after_s(self.job.gossip.silent_after_s, self.took_s)

    @property
    def job_time_s(self) -> float:
        """Time since the start barrier of the job, without the time it lay still."""
        return self.start.time_s + time.monotonic() - self.started_s

    @property
    def done(self) -> float:
        """Part of the budget that is spent, as far as this rank knows, in [0, 1]."""
        if self.job.gossip.method == "none":
            return min(1.0, self.env_steps / self.own_budget)
        return min(1.0, self.start.total_env_steps(self.mailboxes.progress) / self.job.total_env_steps)

    @property
    def counts(self) -> dict[str, int]:
        """Messages sent, received and skipped, those of earlier starts included."""
        return {
            name: self.start.counters[name] + int(getattr(self.gossip, name).sum())
            for name in ("sent", "received", "skipped")
        }

    @property
    def is_over(self) -> bool:
        """Whether the job is to end as one that has done its part: its budget, as far as is known, or time is spent."""
        limit_s = self.job.max_time_s
        return self.done >= 1 or bool(limit_s and self.job_time_s >= limit_s)

    def is_to_stop(self, *, signalled: bool) -> bool:
        """Whether this rank ends its loop. The first to see a reason tells all, so that they end together."""
        if self.allreduce is not None:
            # Only what all ranks learnt in the same allreduce may end the loop, or the others would wait in the next.
            return self.allreduce.stop or self.done >= 1
        is_over = self.is_over
        # Ranks that exchange nothing have budgets of their own, and end each by itself.
        ends_all = is_over and self.job.gossip.method != "none"
        return self.mailboxes.is_to_stop(has_reason=signalled or ends_all) or is_over

    def state(self, *, exact: bool) -> dict[str, Any]:
        """Return what a checkpoint holds; `exact` if it is saved after a drain."""
        mixing = self.gossip.mixing
        return {
            "num_ranks": self.comm.size,
            "num_restarts": self.start.num_restarts,
            "exact": exact,
            "time_s": self.job_time_s,
            "weight": mixing.weight,
            "step_scale": mixing.step_scale.state() if isinstance(mixing, PushSum) else {},
            "counters": {"update": self.update, "env_steps": self.env_steps, **self.counts},
            "position": self.writer.position()._asdict(),
            "learner": self.learner.state(),
        }

    def save(self, *, exact: bool) -> None:
        """Save a checkpoint, and keep the one before."""
        self._save(checkpoint_path(self.out, self.comm.rank), exact=exact, keeps_previous=True)

    def _save(self, path: Path, *, exact: bool, keeps_previous: bool = False) -> None:
        state = self.state(exact=exact)
        # The folder would be made anew, for what nobody would look for; the file is written though it has no name.
        if not is_still_at(self.out, self._folder):
            raise UserError(f"{self.out}: its folder was renamed or removed, and with it what was saved before")
        if not self.writer.is_in_place:
            raise UserError(f"{self.writer.path}: was renamed or removed, and with it what was recorded before")
        save_checkpoint(path, state, keeps_previous=keeps_previous)

    def save_if_due(self) -> None:
        """Save a checkpoint if it is time, by the clock or by updates; keep one apart if it is wanted."""
        settings, now_s = self.job.checkpoint, time.monotonic()
        # Ranks of one speed would all save at the same updates.
        own_turn = settings.every_updates * self.comm.rank // self.comm.size
        if now_s >= self._checkpoint_due_s or self.update % settings.every_updates == own_turn:
            self.save(exact=False)
            self._checkpoint_due_s = now_s + settings.every_s
        if settings.keep_every_updates and self.update % settings.keep_every_updates == 0:
            self._save(checkpoint_path(self.out, self.comm.rank, self.update), exact=False)

    def say_failed(self) -> None:
        """Record that the run has failed: by an error, unlike one whose ranks were killed. Local."""
        # Without its launcher a rank of several fails for want of that.
        if self.comm.size == 1 or os.getppid() == LAUNCHER_PID:
            # What keeps this from being written may be the error itself, which is told in any case.
            with suppress(OSError, ResultsError):
                JobFile.fail(self.out, self.comm.rank)

    def mean_return(self) -> float:
        """Mean return of this rank's last 100 episodes; NaN before the first has ended."""
        return float(np.mean([value for _, value in self.returns])) if self.returns else math.nan
