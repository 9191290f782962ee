"""Train what a plan lacks, as sweeps on this machine, and keep of each run what the numbers need.

The runs lie in RUNS/tuning and RUNS/results, two sweeps: `status`, `submit` and `watch` take them. What is
recorded already is trained no more, so a plan goes on where its runs are gone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.errors import UserError
from galampi.experiments import outside
from galampi.experiments.plan import (
    OUTSIDE,
    Plan,
    PlannedRun,
    counted_runs,
    read_plan,
    tuning_name,
    tuning_runs,
)
from galampi.experiments.record import read_record, record, record_outside, write_checksums
from galampi.job import load_job
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


def chosen_factors(plan: Plan, folder: Path, arms: Iterable[str]) -> dict[str, float]:
    """Return for some arms the factor with the greatest mean area under the curve, by what is recorded of the tuning.

    Raises:
        UserError: Some of the tuning is not recorded.
    """
    factors: dict[str, float] = {}
    if plan.tuning is None:
        return factors
    for arm in arms:
        areas = []
        for factor in plan.tuning.factors:
            names = [tuning_name(arm, factor, seed) for seed in plan.tuning.seeds]
            areas.append(np.mean([_area(folder / "tuning" / f"{name}.h5") for name in names]))
        factors[arm] = plan.tuning.factors[int(np.nanargmax(areas))]
    return factors


def _area(path: Path) -> float:
    try:
        return read_record(path).area
    except FileNotFoundError:
        raise UserError(f"{path}: this run of the tuning is not recorded; --runs DIR trains it") from None


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
    if not sweep.is_sweep(runs):
        sweep.lay_out(runs, {name: each.job for name, each in lacking.items()})
    laid_out = {run.name: load_job(run.job_file) for run in sweep.read_sweep(runs)}
    if other := next((name for name, each in lacking.items() if laid_out.get(name) != each.job), None):
        raise UserError(f"{runs}: holds the runs of another plan: {other} is not the same there; choose another --runs")

    def keep() -> None:
        facts = _facts()
        for run in sweep.read_sweep(runs):
            path = records / f"{run.name}.h5"
            if run.state == "done" and run.name in lacking and not path.exists():
                record(run.out, path, facts)
                write_checksums(records)
                tell(f"recorded {path}")

    def started_by(run: SweptRun) -> list[str]:
        faults = planned[run.name].faults
        if faults is None:
            return []
        text = json.dumps([asdict(fault) for fault in faults])
        return [sys.executable, "-m", "galampi.experiments.faults", text, str(run.out)]

    code = here.train_sweep(runs, plan.num_ranks, at_once, after_each=keep, started_by=started_by)
    keep()
    return code


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
    return {name: each for name, each in planned.items() if not (records / f"{name}.h5").exists()}


def _facts() -> dict[str, str]:
    """Return what is recorded of the machine and the day."""
    return {"processor": processor(), "date": time.strftime("%Y-%m-%d")}
