"""Folders of runs: one for a run that is given none, and what may lie in one in which none has begun."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from galampi.errors import ResultsError, UserError
from galampi.results.checkpoint import load_checkpoint
from galampi.results.reader import RankFile
from galampi.results.schema import RANK_FILE


def new_folder(name: str, *, dry_run: bool = False) -> Path:
    """Create a folder for a new run that no other has, `runs/NAME-DATE-TIME`, and return it, absolute.

    Args:
        name: First part of its name.
        dry_run: Only say what it would be.

    Raises:
        UserError: It cannot be created.
    """
    first = (Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    for number in itertools.count(1):
        out = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            if not dry_run:
                out.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{out}: cannot be created: {error.strerror}") from None
        return out
    raise AssertionError


def rank_files(out: Path) -> list[Path]:
    """Return the files of ranks in a folder, and what is to become one."""
    return [path for path in out.iterdir() if RANK_FILE.fullmatch(path.name)]


def holds_rows(path: Path) -> bool:
    """Whether a rank has made an update by its file: with thinning the first rows are of episodes."""
    rank = RankFile(path, 0)
    return bool(rank.updates.num_rows or rank.episodes.num_rows)


def refuse_results_without_run(out: Path) -> None:
    """Refuse a folder without a job.h5 in which there is more than a start that was cut short leaves.

    Raises:
        UserError: There are rows, or checkpoints but for those that are saved before there is a run.
    """
    for path in rank_files(out):
        if path.suffix == ".h5" and path.stat().st_size and holds_rows(path):
            raise UserError(f"{out}: holds results of a run whose job.h5 is missing; choose another --out")
    for name in ("checkpoint", "checkpoint.new", "kept"):
        for path in (out / name).glob("*"):
            if name != "checkpoint" or not _is_first_checkpoint(path):
                raise UserError(
                    f"{out}: holds {name}/{path.name}, where a run keeps its checkpoints, and no job.h5; choose "
                    "another --out"
                )


def _is_first_checkpoint(path: Path) -> bool:
    """Whether a file is what a rank saves before it trains, or a part of it."""
    if not RANK_FILE.fullmatch(path.name):
        return False
    try:
        return int(load_checkpoint(path, without=("learner",))["counters"]["update"]) == 0
    except (ResultsError, KeyError, TypeError, ValueError):
        return path.suffix == ".part"
