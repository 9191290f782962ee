"""From checkpoints to the point where each rank goes on.

Owns what a rank's checkpoint holds and how a set of them, saved at different moments and perhaps by another number of
ranks, becomes one start. The files lie in `OUT/checkpoint/`; a rank that a smaller job no longer has keeps a file
with its counters, so that no env step is forgotten and its rows go on if it comes back.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from galampi.errors import ResultsError
from galampi.policies.stored import checkpoint_path
from galampi.results import Position, load_checkpoint, save_checkpoint

Checkpoints = dict[int, dict[str, Any]]


@dataclass
class Start:
    """Where one rank goes on, or begins.

    Attributes:
        num_restarts: Times the run has been resumed, this time included; 0 for a new run.
        learner: State of the learner; None to begin with fresh parameters.
        weight: Push-sum weight.
        counters: `update`, `env_steps`, `sent`, `received` and `skipped` of this rank.
        position: Rows of the rank's file that count; None for a new file.
        time_s: Job time at which the run goes on, the same on every rank.
        progress: Env steps of every rank, [n] int64.
        retired_env_steps: Env steps of ranks that are no longer part of the job.
        weights_restarted: Whether push-sum begins anew with every weight 1.
        reason: What a results file says of the restart.
    """

    num_restarts: int = 0
    learner: dict[str, Any] | None = None
    weight: float = 1.0
    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("update", "env_steps", "sent", "received", "skipped"), 0)
    )
    position: Position | None = None
    time_s: float = 0.0
    progress: np.ndarray[Any, np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    retired_env_steps: int = 0
    weights_restarted: bool = True
    reason: str = ""


def find_start(out: Path, num_restarts: int, comm: MPI.Intracomm) -> Start:
    """Find where this rank goes on in the run at `out`. Collective over comm.

    Every rank goes on from its own checkpoint. If the set was saved after a drain by this number of ranks, push-sum
    weights go on too; otherwise every weight is 1. A rank without a checkpoint, and every rank when their number has
    changed, starts from the mean of all parameters, weighted by push-sum weight.

    Args:
        out: Folder of the run.
        num_restarts: Times the run has been resumed, this time included.
        comm: The ranks of the job.

    Raises:
        ResultsError: A checkpoint is damaged. Raised on the ranks that read it.
    """
    rank, num_ranks = comm.rank, comm.size
    if rank == 0:
        _recover(out / "checkpoint")
    comm.Barrier()
    paths = comm.bcast(sorted((out / "checkpoint").glob("rank-*.h5")) if rank == 0 else None)
    ranks = [int(path.stem.removeprefix("rank-")) for path in paths]
    summaries = comm.bcast(_summaries(dict(zip(ranks, paths, strict=True))) if rank == 0 else None)
    if isinstance(summaries, ResultsError):
        raise summaries
    old_num_ranks = max((s["num_ranks"] for s in summaries.values()), default=num_ranks)
    active = [r for r in sorted(summaries) if r < old_num_ranks]
    same_ranks = old_num_ranks == num_ranks
    exact = (
        same_ranks
        and len(active) == num_ranks
        and len({(s["exact"], s["num_restarts"]) for s in (summaries[r] for r in active)}) == 1
        and summaries[active[0]]["exact"]
    )
    own = load_checkpoint(checkpoint_path(out, rank)) if rank in summaries else None
    start = Start(
        num_restarts=num_restarts,
        time_s=max((s["time_s"] for s in summaries.values()), default=0.0),
        progress=np.array([summaries.get(r, {"env_steps": 0})["env_steps"] for r in range(num_ranks)], dtype=np.int64),
        retired_env_steps=sum(s["env_steps"] for r, s in summaries.items() if r >= num_ranks),
        weights_restarted=not exact,
    )
    if own is not None:
        start.counters = {key: int(own["counters"][key]) for key in start.counters}
        start.position = Position(*(int(own["position"][name]) for name in Position._fields))
        if exact:
            start.weight = float(own["weight"])
    elif (out / f"rank-{rank:04d}.h5").exists():
        start.position = Position(0, 0, 0)
    everyone_has_own = same_ranks and len(active) == num_ranks
    if active and not everyone_has_own:
        # Collective: whoever lacks a state of its own takes part, and so does everybody else.
        mean = comm.bcast(_weighted_mean(out, active) if rank == 0 else None)
        if isinstance(mean, ResultsError):
            raise mean
        start.learner = mean
    if same_ranks and own is not None:
        start.learner = own["learner"]
    start.reason = _reason(active, old_num_ranks, num_ranks, exact=exact)
    return start


def replace_set(out: Path, own: dict[str, Any], comm: MPI.Intracomm) -> None:
    """Put a new set of checkpoints in the place of one of another number of ranks. Collective over comm.

    A kill in the middle leaves either set whole; `find_start` sees to it.
    """
    old, new = out / "checkpoint", out / "checkpoint.new"
    if comm.rank == 0:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for path in sorted(old.glob("rank-*.h5")):
            if int(path.stem.removeprefix("rank-")) >= comm.size:
                state = load_checkpoint(path)
                save_checkpoint(new / path.name, {**state, "learner": {}, "num_ranks": 0})
    comm.Barrier()
    save_checkpoint(new / checkpoint_path(out, comm.rank).name, own)
    comm.Barrier()
    if comm.rank == 0:
        (new / "complete").touch()
        shutil.rmtree(old)
        _recover(old)
    comm.Barrier()


def _recover(folder: Path) -> None:
    """Finish or forget a replacement that was cut short."""
    new = folder.with_name("checkpoint.new")
    if (new / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (new / "complete").unlink()
        new.rename(folder)
    elif new.exists() and folder.exists():
        shutil.rmtree(new)
    elif new.exists():
        # Only the marker is gone: the set was complete and about to be renamed.
        new.rename(folder)


def _summaries(paths: dict[int, Path]) -> dict[int, dict[str, Any]] | ResultsError:
    """Read of each checkpoint what all ranks must agree on; an error is returned, for all to raise."""
    summaries = {}
    try:
        for rank, path in paths.items():
            state = load_checkpoint(path)
            summaries[rank] = {
                "num_ranks": int(state["num_ranks"]),
                "num_restarts": int(state["num_restarts"]),
                "exact": bool(state["exact"]),
                "time_s": float(state["time_s"]),
                "env_steps": int(state["counters"]["env_steps"]),
            }
    except ResultsError as error:
        return error
    return summaries


def _weighted_mean(out: Path, ranks: list[int]) -> dict[str, Any] | ResultsError:
    """Average every float32 array of the learners, weighted by push-sum weight; the rest stays unset."""
    sums: dict[str, Any] = {}
    total = 0.0
    try:
        for rank in ranks:
            state = load_checkpoint(checkpoint_path(out, rank))
            weight = float(state["weight"])
            total += weight
            for key, value in state["learner"].items():
                if isinstance(value, np.ndarray) and value.dtype == np.float32:
                    sums[key] = sums.get(key, 0.0) + weight * value.astype(np.float64)
    except ResultsError as error:
        return error
    return {key: (value / total).astype(np.float32) for key, value in sums.items()}


def _reason(active: list[int], old_num_ranks: int, num_ranks: int, *, exact: bool) -> str:
    if not active:
        return "no checkpoint had been saved: started from the beginning"
    if old_num_ranks != num_ranks:
        return f"resumed on {num_ranks} ranks instead of {old_num_ranks}, each from the weighted mean"
    if exact:
        return "resumed from checkpoints saved after a drain"
    return "resumed from checkpoints saved on the way"
