"""The policy that a run has stored: which checkpoints there are, and the parameters they hold.

Knows the layout of `OUT/checkpoint` and `OUT/kept` and what a checkpoint says of the parameters. Knows neither MPI nor
torch: a policy is looked up wherever the files can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from galampi.errors import ResultsError
from galampi.job import Job, parse_job
from galampi.results import load_checkpoint, open_run
from galampi.results.schema import RANK_FILE


@dataclass(frozen=True, eq=False)
class StoredPolicy:
    """Parameters as they were saved.

    Attributes:
        job: The job that trained them.
        z: [P] float32.
        source: Whose they are: `mean`, or `rank 3`.
        updates: Updates each of the ranks that `z` comes from had made.
        env_steps: Env steps of those ranks together.
        modules: Modules that the job named when it was trained, as `imported_sources` tells them.
        constants: Of a network of the user's own, [C] uint8; None if it has none.
    """

    job: Job
    z: np.ndarray
    source: str
    updates: tuple[int, ...]
    env_steps: int
    modules: Sequence[str] = ()
    constants: np.ndarray | None = None


def checkpoint_path(out: Path, rank: int, update: int | None = None) -> Path:
    """Return the path of a rank's newest checkpoint, or of the one kept after an update."""
    folder = out / "checkpoint" if update is None else out / "kept" / f"update-{update:08d}"
    return folder / f"rank-{rank:04d}.h5"


def find_policy(out: Path, *, rank: int | None = None, update: int | None = None) -> StoredPolicy:
    """Read the policy of a run from its checkpoints.

    The mean is weighted by push-sum weight, z = sum_i w_i z_i / sum_i w_i, in float64. Checkpoints saved on the way are
    of different moments on each rank; those of a run that has ended are of one.

    Args:
        out: Folder of the run.
        rank: Whose parameters; None for the weighted mean of all ranks.
        update: Take the checkpoints kept after this update rather than the newest.

    Raises:
        ResultsError: There is no run, no such rank, or a checkpoint is missing or damaged; or the mean is asked for
            of ranks that never exchanged parameters.
    """
    run = open_run(out)
    job = parse_job(run.job_toml, f"{run.path}/job.h5")
    num_ranks = run.num_ranks if update is None else _num_ranks_then(run.path, update)
    if rank is not None and rank >= num_ranks:
        raise ResultsError(f"{run.path}: rank is {rank}; must lie in [0, {num_ranks - 1}]")
    if rank is None and num_ranks > 1 and job.gossip.method == "none":
        # The mean of networks that were trained apart is no policy of theirs.
        raise ResultsError(
            f"{run.path}: its {num_ranks} ranks never exchanged parameters, so they have no policy in common; "
            "`evaluate` and `export` take that of one, --rank R"
        )
    ranks = range(num_ranks) if rank is None else [rank]
    weighted: np.ndarray = np.zeros(1)
    total, updates, env_steps, constants = 0.0, [], 0, None
    for each in ranks:
        path = checkpoint_path(run.path, each, update)
        state = load_checkpoint(path)
        try:
            # The weights of a rank on its own do not matter, and its bytes stay as they are.
            weight = float(state["weight"]) if rank is None else 1.0
            weighted = weighted + weight * state["learner"]["z"].astype(np.float64)
            constants = state["learner"].get("constants")
            updates.append(int(state["counters"]["update"]))
            env_steps += int(state["counters"]["env_steps"])
        except (KeyError, ValueError) as error:
            raise ResultsError(f"{path}: holds no parameters that fit those of the other ranks: {error}") from error
        total += weight
    modules = run.attributes.get("modules", ())
    source = "mean" if rank is None else f"rank {rank}"
    z = (weighted / total).astype(np.float32)
    return StoredPolicy(job, z, source, tuple(updates), env_steps, modules, constants)


def _num_ranks_then(out: Path, update: int) -> int:
    """Return the number of ranks of the job when it kept the checkpoints of an update; it may have changed since.

    Raises:
        ResultsError: There are none, or the first is damaged.
    """
    files = checkpoint_path(out, 0, update).parent.glob("rank-*.h5")
    kept = sorted(path for path in files if RANK_FILE.fullmatch(path.name))
    if not kept:
        raise ResultsError(f"{out}: no checkpoint of update {update}; {_kept(out)}")
    try:
        return int(load_checkpoint(kept[0])["num_ranks"])
    except KeyError as error:
        raise ResultsError(f"{kept[0]}: damaged: it holds no {error}") from error


def kept_updates(out: Path) -> list[int]:
    """Return the updates after which checkpoints are kept beside the newest, ascending."""
    names = (path.name.removeprefix("update-") for path in (out / "kept").glob("update-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _kept(out: Path) -> str:
    updates = kept_updates(out)
    if not updates:
        return "none is kept but the newest; see checkpoint.keep_every_updates"
    return f"kept are those of update {', '.join(map(str, updates))}"
