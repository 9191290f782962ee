"""Runs whose numbers are pooled, as seeds of one job: each counts once, and what is none is told of."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from galampi.analysis.statistics import total
from galampi.errors import JobError
from galampi.job import Job, difference_of, parse_job
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


def unlike(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each run that differs from the first in more than the seed, or has the seed of one before."""
    known: list[tuple[Run, Job]] = []
    for run in runs:
        try:
            job = parse_job(run.job_toml, f"{run.path}/job.h5")
        except JobError:
            continue  # Of another version; its rows can be read all the same.
        if known:
            first, its_job = known[0]
            # How often it saves and what it records makes no other job of it.
            same = {name: getattr(its_job, name) for name in ("seed", "name", "checkpoint", "record")}
            difference = difference_of(job.model_copy(update=same), its_job)
            if difference is None and run.num_ranks != first.num_ranks:
                difference = "number of ranks", run.num_ranks, first.num_ranks
            if difference is not None:
                key, own, theirs = difference
                yield f"{run.path}: {key} is {own!r}, and {theirs!r} in {first.path}; both count as one algorithm"
            if again := next((other for other, other_job in known if other_job.seed == job.seed), None):
                yield f"{run.path}: of seed {job.seed}, as {again.path} is"
        known.append((run, job))


def unfinished(runs: Sequence[Run]) -> list[str]:
    """Say in a line that some of several runs have not come to their end; in none if all have, or there is one."""
    left = [run for run in runs if run.status != "finished"]
    if not left or len(runs) < 2:
        return []
    least = min(left, key=_share_done)
    return [
        f"{len(left)} of {len(runs)} runs have not finished, and the return of each is that of its own end; least far "
        f"is {least.path}, {least.status} after {_share_done(least):.0%} of its env steps"
    ]


def _share_done(run: Run) -> float:
    """Return the env steps that a run has made over those that it is to make; 0 where that cannot be read."""
    try:
        budget = parse_job(run.job_toml, f"{run.path}/job.h5").total_env_steps
    except JobError:
        return 0.0
    return total(run, "env_steps") / budget


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
