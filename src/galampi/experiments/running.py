"""Train what a plan lacks, as sweeps on this machine, and keep of each run what the numbers need.

The runs lie in RUNS/tuning and RUNS/results, two sweeps: `status`, `submit` and `watch` take them. What is
recorded already is trained no more, so a plan goes on where its runs are gone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.errors import UnreadableError, UserError
from galampi.experiments import outside
from galampi.experiments.faults import read_suffered, told
from galampi.experiments.kept import chosen_factors, read_kept
from galampi.experiments.plan import (
    OUTSIDE,
    Plan,
    PlannedRun,
    counted_runs,
    read_plan,
    tuning_runs,
)
from galampi.experiments.record import make_writable, read_sums, record, record_outside, write_checksums
from galampi.job import difference_of, load_job
from galampi.launch import here, sweep
from galampi.launch.sweep import SweptRun
from galampi.ranks.processor import processor


def run_plan(folder: Path, runs: Path, at_once: int, tell: Callable[[str], None], sb3: Path | None = None) -> int:
    """Train what a plan lacks, record it, and return the exit code of `sweep`.

    Args:
        folder: Of the experiment.
        runs: Folder in which its runs lie.
        at_once: Most runs at the same time.
        tell: Called with a line now and then.
        sb3: Python of an environment with Stable-Baselines3, for an arm outside.

    Raises:
        UserError: There is no plan, `runs` holds those of another one, or an arm outside cannot be trained.
    """
    plan = read_plan(folder)

    def part(planned: Mapping[str, PlannedRun], name: str) -> int:
        lacking = _lacking(planned, folder / name)
        read_kept(folder, name, plan, {run: planned[run] for run in planned.keys() - lacking.keys()})
        if lacking:
            make_writable(folder / name)
        own = {run: each for run, each in planned.items() if not each.is_outside}
        code = _part(own, folder / name, runs / name, plan, at_once, tell)
        others = {run: each for run, each in planned.items() if each.is_outside}
        return code or _part_outside(others, folder / name, plan, sb3, tell)

    code = part(tuning_runs(plan, folder), "tuning")
    if code:
        return code
    factors = chosen_factors(plan, folder, plan.arms)
    for arm, factor in factors.items():
        tell(f"{arm}: factor {factor:g}")
    return part(counted_runs(plan, folder, factors), "results")


def _part(
    planned: Mapping[str, PlannedRun],
    records: Path,
    runs: Path,
    plan: Plan,
    at_once: int,
    tell: Callable[[str], None],
) -> int:
    """Train and record those of some runs that are not recorded."""
    lacking = _lacking(planned, records)
    if not lacking:
        return 0
    make_writable(runs)
    failures: list[str] = []
    recorded: set[str] = set()

    def keep() -> None:
        for run in sweep.read_sweep(runs):
            if run.state != "done" or run.name not in lacking or run.name in recorded:
                continue
            recorded.add(run.name)
            path = records / f"{run.name}.h5"
            try:
                missed = _told_of_faults(run.out, planned[run.name])
                record(run.out, path, _facts())
                write_checksums(records)
                tell(f"recorded {path}{missed}")
            # What is still being trained goes on, and is kept if it can be.
            except (OSError, UserError) as error:
                failures.append(f"{path}: cannot be kept: {error}")

    def keep_what_is_told() -> None:
        with suppress(sweep.QueueError, UnreadableError):  # The last time it must say.
            keep()

    def started_by(run: SweptRun) -> list[str]:
        faults = planned[run.name].faults if run.name in planned else None
        if faults is None:
            return []
        return [sys.executable, "-m", "galampi.experiments.faults", told(faults), str(run.out)]

    code = here.train_sweep(
        runs,
        plan.num_ranks,
        at_once,
        after_each=keep_what_is_told,
        started_by=started_by,
        laid_out_by=lambda: _lay_out(planned, lacking, runs),
    )
    keep()
    if failures:
        raise UserError("; ".join(failures))
    return code


def _told_of_faults(out: Path, planned: PlannedRun) -> str:
    """Say that faults of a run were to come after its end; '' if none were.

    Raises:
        UserError: Its faults could not happen, for another command has trained it.
    """
    if planned.faults is None:
        return ""
    suffered = read_suffered(out)
    if suffered is None:
        raise UserError(
            f"{out} was not trained by `experiment`, which alone lets its faults happen; remove it, and it is trained "
            "again"
        )
    missed = len(planned.faults) - suffered.num_faults
    return f"; {missed} of its {len(planned.faults)} faults were to come after its end" if missed > 0 else ""


def _lay_out(planned: Mapping[str, PlannedRun], lacking: Mapping[str, PlannedRun], runs: Path) -> None:
    """Make a sweep of what is lacking; one that is there gains what the plan has gained, and loses what that has lost.

    Raises:
        UserError: A run that has begun there is another one, or the folder cannot be written.
    """
    if not sweep.is_sweep(runs):
        sweep.lay_out(runs, {name: each.job for name, each in lacking.items()})
        return
    there = sweep.read_sweep(runs)
    # What was trained there before stays a part of it.
    done = {run.name for run in there if run.state == "done"}
    jobs = {name: each.job for name, each in planned.items() if name in lacking or name in done}
    for run in there:
        has_begun = run.name in jobs and run.state != "missing"
        if has_begun and (differing := difference_of(load_job(run.job_file), jobs[run.name])):
            key, value, asked = differing
            raise _another(runs, run.name, key, value, asked)
        faults = planned[run.name].faults if has_begun else None
        suffered = read_suffered(run.out) if faults is not None else None
        if faults is not None and suffered is not None and suffered.faults not in ("", told(faults)):
            raise _another(runs, run.name, "faults", suffered.faults, told(faults))
    sweep.change(runs, jobs)


def _another(runs: Path, name: str, key: str, there: object, asked: object) -> UserError:
    return UserError(
        f"{runs}: holds the runs of another plan: {key} is {there!r} in {name}, and {asked!r} in the plan; choose "
        "another --runs"
    )


def _part_outside(
    planned: Mapping[str, PlannedRun], records: Path, plan: Plan, sb3: Path | None, tell: Callable[[str], None]
) -> int:
    """Let those of some runs that are not recorded be learned outside, one after the other, and record them."""
    lacking = _lacking(planned, records)
    if not lacking:
        return 0
    if sb3 is None:
        raise UserError(f"{len(lacking)} runs are to be trained with {OUTSIDE}: --sb3 PYTHON says where that is")
    try:
        with terminated_as_interrupted():
            for name, each in lacking.items():
                path = records / f"{name}.h5"
                finished, about = outside.learn(sb3, each.job, plan.num_ranks)
                record_outside(finished, each.job, path, {**about, **_facts()})
                write_checksums(records)
                tell(f"recorded {path}")
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return here.STOPPED
    return 0


def _lacking(planned: Mapping[str, PlannedRun], records: Path) -> dict[str, PlannedRun]:
    """Return those of some runs that are not recorded."""
    kept = read_sums(records)
    there = {name for name in planned if f"{name}.h5" in kept and (records / f"{name}.h5").exists()}
    return {name: each for name, each in planned.items() if name not in there}


def _facts() -> dict[str, str]:
    """Return what is recorded of the machine and the day."""
    return {"processor": processor(), "date": time.strftime("%Y-%m-%d")}
