"""From checkpoints to the point where each rank goes on.

Owns how a set of checkpoints, saved at different moments and perhaps by another number of ranks, becomes one start, and
which settings may differ then. The files lie in `OUT/checkpoint/`; a rank that a smaller job no longer has keeps a file
with its counters, so that no env step is forgotten and its rows go on if it comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from galampi.errors import UserError
from galampi.job import Job, are_equal, by_key, parse_job
from galampi.policies.stored import checkpoint_path, find_policy
from galampi.ranks.placement import together
from galampi.results import Position, open_run
from galampi.training.checkpoint_set import load, recover, saved_ranks

_COUNTERS = ("update", "env_steps", "sent", "received", "skipped")
_ORIGIN = ("origin", "origin_environment", "origin_updates", "origin_env_steps")
_MAY_CHANGE = (
    "name",
    "total_env_steps",
    "max_time_s",
    "device",
    "precision",
    "modules_folder",
    "environment.num_envs",
    "environment.vectorization",
    "environment.max_failures",
    "learner.rollout_length",
    "learner.learning_rate",
    "learner.learning_rate_scaling",
    "learner.learning_rate_schedule",
    "learner.entropy_coefficient",
    "gossip.topology",
    "gossip.peers",
    "gossip.weight_floor",
    "gossip.message",
    "gossip.delay_updates",
    "gossip.silent_after_s",
    "checkpoint.",
    "record.",
)
"""Settings, or tables of them, that may change when a run is resumed. With any other changed its numbers would be those
of two jobs."""


@dataclass
class Start:
    """Where one rank goes on, or begins.

    Attributes:
        num_restarts: Times the run has been resumed, this time included; 0 for a new run.
        learner: State of the learner; None to begin with fresh parameters.
        weight: Push-sum weight.
        step_scale: State of the scale of optimizer steps.
        counters: `update`, `env_steps`, `sent`, `received` and `skipped` of this rank.
        position: Rows of the rank's file that count; None for a new file.
        time_s: Job time at which the run goes on, the same on every rank.
        progress: Env steps of every rank, [n] int64.
        retired_env_steps: Env steps of ranks that are no longer part of the job.
        weights_restarted: Whether push-sum begins anew with every weight 1.
        num_ranks_changed: Whether the set of checkpoints is that of another number of ranks.
        reason: What a results file says of the restart.
        changes: What it says of settings that differ from those before.
        origin: What the record says of the run whose policy this one began with; empty for fresh parameters.
    """

    num_restarts: int = 0
    learner: dict[str, Any] | None = None
    weight: float = 1.0
    step_scale: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    position: Position | None = None
    time_s: float = 0.0
    progress: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    retired_env_steps: int = 0
    weights_restarted: bool = True
    num_ranks_changed: bool = False
    reason: str = ""
    changes: str = ""
    origin: dict[str, str | int] = field(default_factory=dict)

    def total_env_steps(self, progress: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Return the env steps of all ranks, those that have left the job included."""
        return int(progress.sum()) + self.retired_env_steps


@dataclass(frozen=True)
class _Head:
    """What one rank finds for all.

    Attributes:
        num_restarts: Times the run has been resumed, this time included.
        changes: Settings that have changed.
        num_ranks: Ranks of the job that is resumed, as its job.h5 says.
        ranks: Those that have a checkpoint, or the one before.
        origin: As `Start` has it.
    """

    num_restarts: int
    changes: str
    num_ranks: int
    ranks: list[int]
    origin: dict[str, str | int]


@dataclass(frozen=True)
class _Set:
    """What all ranks must know of a set of checkpoints.

    Attributes:
        num_restarts: Times the run has been resumed, this time included.
        changes: Settings that have changed.
        summaries: Of each rank, what its checkpoint says but for its learner.
        from_previous: Ranks whose newest checkpoint is gone or damaged.
    """

    num_restarts: int
    changes: str
    summaries: dict[int, dict[str, Any]]
    from_previous: list[int]

    @property
    def num_ranks(self) -> int:
        """Ranks of the job that saved it."""
        return max(int(summary["num_ranks"]) for summary in self.summaries.values())

    def is_exact(self) -> bool:
        """Whether it was saved after one drain, by all."""
        of_job = [self.summaries[rank] for rank in range(self.num_ranks)]
        return all(s["exact"] for s in of_job) and len({s["num_restarts"] for s in of_job}) == 1


def find_start(job: Job, out: Path, comm: MPI.Intracomm) -> Start:
    """Find where this rank goes on in the run at `out`. Collective over comm.

    The ranks share the reading: of every checkpoint one of them reads all but the learner, and whole it is read by the
    rank that goes on from it, or for the mean by one.

    Every rank goes on from its own checkpoint, or from the one before if that is gone or damaged. If the set was saved
    after a drain by this number of ranks, push-sum weights go on too; otherwise every weight is 1. When the number of
    ranks has changed, every rank starts from the mean of all parameters, weighted by push-sum weight, and one that is
    new from the largest update of all.

    Args:
        job: What is to be trained now.
        out: Folder of the run.
        comm: The ranks of the job.

    Raises:
        UserError: On every rank: a rank's checkpoints are gone or damaged, the job is another one, or its ranks, more
            or fewer than before, have no mean.
    """
    rank, num_ranks = comm.rank, comm.size
    head: _Head | None = None
    with together(comm):
        if rank == 0:
            head = _read_head(job, out)
    head = comm.bcast(head)
    assert head is not None
    part: dict[int, tuple[dict[str, Any], bool]] = {}
    with together(comm):
        part = {each: load(out, each, without=("learner",)) for each in head.ranks[rank::num_ranks]}
    loaded = {each: state for read in comm.allgather(part) for each, state in read.items()}
    with together(comm):
        found = _find_set(job, out, num_ranks, head, loaded)
    summaries = found.summaries
    same_ranks = found.num_ranks == num_ranks
    exact = same_ranks and found.is_exact()
    start = Start(
        num_restarts=found.num_restarts,
        time_s=max(float(s["time_s"]) for s in summaries.values()),
        progress=np.array([_env_steps(summaries.get(r)) for r in range(num_ranks)], dtype=np.int64),
        retired_env_steps=sum(_env_steps(s) for r, s in summaries.items() if r >= num_ranks),
        weights_restarted=not exact,
        num_ranks_changed=not same_ranks,
        reason=_reason(found, num_ranks, exact=exact),
        changes=found.changes,
        origin=head.origin,
    )
    if rank in summaries:
        own = summaries[rank]
        start.counters = {key: int(own["counters"][key]) for key in _COUNTERS}
        start.position = Position(*(int(own["position"][name]) for name in Position._fields))
        if exact:
            start.weight = float(own["weight"])
        if same_ranks:
            start.step_scale = own.get("step_scale", {})
    if not same_ranks and rank >= found.num_ranks:
        # So that checkpoints that are kept by their update stay those of one moment.
        start.counters["update"] = max(int(s["counters"]["update"]) for s in summaries.values())
    if same_ranks:
        with together(comm):
            state, is_previous = load(out, rank)
            if is_previous != (rank in found.from_previous):
                raise UserError(f"{checkpoint_path(out, rank)}: read once, and not again; try again")
            start.learner = state["learner"]
    else:
        start.learner = _weighted_mean(out, found.num_ranks, comm)
    return start


def new_start(job: Job, origin: Path | None, comm: MPI.Intracomm) -> Start:
    """Begin a new run, with fresh parameters or the policy of another run. Collective over comm.

    Of the other run it takes the mean of its parameters and nothing else: optimizer, push-sum, counts and random
    numbers begin anew, so it is a run of its own with another first policy.

    Args:
        job: What is to be trained.
        origin: Folder of the other run; None for fresh parameters.
        comm: The ranks of the job.

    Raises:
        UserError: On every rank: the other run has no such policy, or its network is another.
    """
    start = Start(progress=np.zeros(comm.size, np.int64))
    if origin is None:
        return start
    state = None
    with together(comm):
        if comm.rank == 0:
            policy = find_policy(origin)
            theirs, ours = (_what_must_fit(each) for each in (policy.job, job))
            for key in ours:
                if theirs[key] != ours[key]:
                    raise UserError(
                        f"{origin}: its {key} is {theirs[key]!r}; this job's is {ours[key]!r}: its policy does not fit"
                    )
            state = {"z": policy.z} | ({"constants": policy.constants} if policy.constants is not None else {})
            values = str(origin), policy.job.environment.id, max(policy.updates), policy.env_steps
            start.origin = dict(zip(_ORIGIN, values, strict=True))
    start.learner = comm.bcast(state)
    return start


def _what_must_fit(job: Job) -> dict[str, Any]:
    """Return the settings that say what the vector of parameters holds."""
    learner = job.learner.model_dump(include={"normalize_observations", "normalize_returns"})
    return {
        **{f"network.{key}": value for key, value in job.network.model_dump().items()},
        **{f"learner.{key}": value for key, value in learner.items()},
    }


def _read_head(job: Job, out: Path) -> _Head:
    """Read what one rank finds for all. Local, on rank 0.

    Raises:
        UserError: There is no run, or the job is another one.
    """
    recover(out / "checkpoint")
    run = open_run(out)
    changes = _changes(parse_job(run.job_toml, f"{out}/job.h5"), job, out)
    origin = {key: run.attributes[key] for key in _ORIGIN if key in run.attributes}
    return _Head(int(run.attributes["num_restarts"]) + 1, changes, run.num_ranks, saved_ranks(out), origin)


def _find_set(job: Job, out: Path, num_ranks: int, head: _Head, loaded: dict[int, tuple[dict[str, Any], bool]]) -> _Set:
    """Make a set of what all ranks have read: each checkpoint without its learner, and whether it is the one before.

    Raises:
        UserError: See `find_start`.
    """
    summaries = {rank: summary for rank, (summary, _) in sorted(loaded.items())}
    from_previous = [rank for rank, (_, is_previous) in sorted(loaded.items()) if is_previous]
    old_num_ranks = max((int(s["num_ranks"]) for s in summaries.values()), default=head.num_ranks)
    missing = [rank for rank in range(max(old_num_ranks, 1)) if rank not in summaries]
    if missing:
        first = checkpoint_path(out, missing[0])
        raise UserError(
            f"{first}: missing, and {len(missing)} of {old_num_ranks} ranks have no checkpoint to go on from; bring it "
            "back, or begin anew with --resume=anew, which keeps the old files beside the new ones"
        )
    if job.gossip.method == "none" and old_num_ranks != num_ranks:
        raise UserError(
            f"{out}: its {old_num_ranks} ranks never exchanged parameters (gossip.method is 'none'), so there is no "
            f"mean for {num_ranks} ranks to start from; resume it on {old_num_ranks}"
        )
    return _Set(head.num_restarts, head.changes, summaries, from_previous)


def _changes(before: Job, now: Job, out: Path) -> str:
    """Say which settings have changed, one after the other.

    Raises:
        UserError: One that decides what the run's numbers mean.
    """
    old, new = by_key(before), by_key(now)
    changed = [key for key in {**new, **old} if not are_equal(old.get(key), new.get(key))]
    for key in changed:
        if not key.startswith(_MAY_CHANGE):
            raise UserError(
                f"{out}: {key} was {old.get(key)!r} and would be {new.get(key)!r}: half of the run would be another "
                "job's; start a new run with another --out"
            )
    return "; ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in changed)


def _env_steps(summary: dict[str, Any] | None) -> int:
    return int(summary["counters"]["env_steps"]) if summary is not None else 0


def _weighted_mean(out: Path, num_old: int, comm: MPI.Intracomm) -> dict[str, Any]:
    """Average every float32 array of the learners, weighted by push-sum weight; constants stay, the rest is unset.

    Each rank reads its part of the checkpoints. Collective over comm; the same on every rank, to the bit.

    Args:
        out: Folder of the run.
        num_old: Ranks of the job that saved the set.
        comm: The ranks of the job.
    """
    sums: dict[str, Any] = {}
    total = 0.0
    constants = None
    with together(comm):
        for old in range(comm.rank, num_old, comm.size):
            state, _ = load(out, old)
            weight = float(state["weight"])
            total += weight
            constants = state["learner"].get("constants")
            for key, value in state["learner"].items():
                if isinstance(value, np.ndarray) and value.dtype == np.float32:
                    sums[key] = sums.get(key, 0.0) + weight * value.astype(np.float64)
    shapes = comm.bcast({key: value.shape for key, value in sums.items()})
    total = comm.allreduce(total)
    mean: dict[str, Any] = {}
    # Those of every rank are the first's.
    if (constants := comm.bcast(constants)) is not None:
        mean["constants"] = constants
    for key, shape in shapes.items():
        # A rank for whom there was nothing to read adds nothing.
        part = np.ascontiguousarray(sums.get(key, np.zeros(shape)))
        comm.Reduce(MPI.IN_PLACE if comm.rank == 0 else part, part, root=0)
        mean[key] = (part / total).astype(np.float32)
        comm.Bcast(mean[key], root=0)
    return mean


def _reason(found: _Set, num_ranks: int, *, exact: bool) -> str:
    if found.num_ranks != num_ranks:
        reason = f"resumed on {num_ranks} ranks instead of {found.num_ranks}, each from the weighted mean"
    elif exact:
        reason = "resumed from checkpoints saved after a drain"
    else:
        reason = "resumed from checkpoints saved on the way"
    if found.from_previous:
        ranks = ", ".join(map(str, found.from_previous))
        reason += f"; of rank {ranks} from the one before the newest, which is gone or damaged"
    return reason
