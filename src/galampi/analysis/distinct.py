"""Runs that are given more than once, as they are or as copies, and count once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from galampi.errors import JobError
from galampi.job import parse_job
from galampi.results.reader import Run


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leave out the runs that are the same as another one; of copies the one that has come furthest stays.

    Returns:
        The runs, in order, and a line to tell of each that is left out.
    """
    kept: list[Run] = []
    told = []
    by_place: dict[Path, int] = {}
    alike: dict[str, list[int]] = {}
    for run in runs:
        place = run.path.resolve()
        if place in by_place:
            told.append(f"{run.path}: given more than once, counted once")
            continue
        others = alike.setdefault(repr((run.num_ranks, _settings(run))), []) if len(runs) > 1 else []
        by_place[place] = next((number for number in others if _is_same(run, kept[number])), len(kept))
        if by_place[place] == len(kept):
            others.append(len(kept))
            kept.append(run)
            continue
        other = kept[by_place[place]]
        less, more = sorted((run, other), key=_num_rows) if _num_rows(run) != _num_rows(other) else (run, other)
        kept[by_place[place]] = more
        told.append(f"{less.path}: a copy of {more.path}, not counted")
    return kept, told


def _is_same(run: Run, other: Run) -> bool:
    """Whether rows of both are the same: they say when each update was made, to a fraction of a microsecond."""
    tables = run.ranks[0].updates, other.ranks[0].updates
    num_common = min(table.num_rows for table in tables)
    columns = [table.read("time_s", "grad_norm", stop=num_common) for table in tables]
    return num_common > 0 and all(
        np.array_equal(columns[0][name], columns[1][name], equal_nan=True) for name in columns[0]
    )


def _settings(run: Run) -> dict[str, object]:
    """Return the job's settings but for its length, which may have grown since a copy was made."""
    try:
        return parse_job(run.job_toml, f"{run.path}/job.h5").model_dump(exclude={"total_env_steps"})
    except JobError:
        return {"job_toml": run.job_toml}  # Of another version; its rows can be read all the same.


def _num_rows(run: Run) -> int:
    return sum(rank.updates.num_rows for rank in run.all_ranks)
