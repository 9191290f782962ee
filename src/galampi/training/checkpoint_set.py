"""The checkpoints of a run's ranks as one set of files, `OUT/checkpoint/`.

Owns which file of a rank is read, and how a set of another number of ranks is replaced so that no kill loses one. What
a checkpoint means to who goes on from it is in `resuming`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mpi4py import MPI

from galampi.errors import ResultsError, UnreadableError
from galampi.policies.stored import checkpoint_path
from galampi.ranks.placement import together
from galampi.results import (
    Position,
    RankWriter,
    Restart,
    Sketch,
    load_checkpoint,
    open_run,
    previous_checkpoint,
    save_checkpoint,
)
from galampi.results.schema import LEFT_JOB, RANK_FILE

log = logging.getLogger(__name__)

_REPLACED = ".replaced-checkpoint-"


def saved_ranks(out: Path) -> list[int]:
    """Return the ranks that have a checkpoint, or the one before."""
    return sorted({_rank_of(path) for name in (".", "previous") for path in _checkpoints(out / "checkpoint" / name)})


def load(out: Path, rank: int, without: tuple[str, ...] = ()) -> tuple[dict[str, Any], bool]:
    """Read a rank's newest checkpoint that is whole, and whether that is the one before the newest.

    Raises:
        ResultsError: Neither is.
        UnreadableError: The newest may be.
    """
    path = checkpoint_path(out, rank)
    try:
        return load_checkpoint(path, without), False
    except UnreadableError:
        raise
    except ResultsError as error:
        if not previous_checkpoint(path).exists():
            raise
        log.warning("%s; the one before it is used", error)
        return load_checkpoint(previous_checkpoint(path), without), True


def replace_set(out: Path, own: dict[str, Any], comm: MPI.Intracomm) -> None:
    """Put a new set of checkpoints in the place of one of another number of ranks. Collective over comm.

    A kill in the middle leaves either set whole; `recover` sees to it. Rows that ranks which have left wrote after
    their last checkpoint are dropped, as those of any rank are.
    """
    old, new = out / "checkpoint", out / "checkpoint.new"
    with together(comm):
        if comm.rank == 0:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            for path in _checkpoints(old):
                rank = _rank_of(path)
                if rank >= comm.size:
                    state = load(out, rank)[0]
                    if state["num_ranks"]:
                        _cut_rows(out, rank, state, comm.size)
                    save_checkpoint(new / path.name, {**state, "learner": {}, "num_ranks": 0})
    with together(comm):
        save_checkpoint(new / checkpoint_path(out, comm.rank).name, own)
    with together(comm):
        if comm.rank == 0:
            for path in _foreign(old):
                path.rename(new / path.name)
            (new / "complete").touch()
            recover(old)


def recover(folder: Path) -> None:
    """Finish or forget a replacement that was cut short."""
    new = folder.with_name("checkpoint.new")
    if (new / "complete").exists():
        if folder.exists():
            # Not deleted yet: a file system may refuse to delete what somebody reads.
            folder.rename(tempfile.mkdtemp(prefix=_REPLACED, dir=folder.parent))
        new.rename(folder)
    elif new.exists() and folder.exists():
        for path in _foreign(new):
            path.rename(folder / path.name)
        shutil.rmtree(new)
    elif new.exists():
        # Only the marker is gone: the set was complete and about to be renamed.
        new.rename(folder)
    (folder / "complete").unlink(missing_ok=True)
    for replaced in folder.parent.glob(f"{_REPLACED}*"):
        shutil.rmtree(replaced, ignore_errors=True)


def _cut_rows(out: Path, rank: int, state: dict[str, Any], num_ranks: int) -> None:
    """Drop the rows that a rank which has left the job wrote after its checkpoint."""
    path = out / f"rank-{rank:04d}.h5"
    sketches = open_run(out).all_ranks[rank].sketches
    size = sketches.read("value", stop=0)["value"].shape[1]
    writer = RankWriter(
        path,
        rank=rank,
        thinning=int(open_run(out).all_ranks[rank].attributes["thinning"]),
        sketch=Sketch(size, len(state["learner"]["z"])) if size else None,
        resume_at=Position(*(int(state["position"][name]) for name in Position._fields)),
        restart=Restart(
            update=int(state["counters"]["update"]),
            time_s=float(state["time_s"]),
            reason=f"{LEFT_JOB}, which went on with {num_ranks} ranks",
            weights_restarted=True,
        ),
    )
    writer.close()


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, rank by rank; copies under other names are none."""
    return sorted(path for path in folder.glob("rank-*.h5") if RANK_FILE.fullmatch(path.name))


def _foreign(folder: Path) -> list[Path]:
    """Return what somebody keeps among checkpoints, as a copy of one."""
    return [path for path in folder.iterdir() if path.name != "previous" and not RANK_FILE.fullmatch(path.name)]


def _rank_of(path: Path) -> int:
    return int(path.stem.removeprefix("rank-"))
