"""What is kept of a plan's runs, held against the plan: no number comes from a run that it does not ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from galampi.errors import UserError
from galampi.experiments.faults import told
from galampi.experiments.plan import Plan, PlannedRun, plan_path, tuning_name, tuning_runs
from galampi.experiments.record import RecordedRun, check_sum, read_record, read_sums
from galampi.job import difference_of, parse_job


def read_kept(folder: Path, part: str, plan: Plan, planned: Mapping[str, PlannedRun]) -> dict[str, RecordedRun]:
    """Read what is kept of some runs, by their names; those of which nothing is are left out.

    Args:
        folder: Of the experiment.
        part: `tuning` or `results`.
        plan: The plan.
        planned: The runs.

    Raises:
        UserError: A file is kept of another run than the plan's.
        ResultsError: A file is damaged, or not what it was when it was kept.
    """
    records = folder / part
    sums = read_sums(records)
    kept: dict[str, RecordedRun] = {}
    for name, each in planned.items():
        path = records / f"{name}.h5"
        if not path.exists():
            continue
        check_sum(path, sums)
        kept[name] = read_record(path)
        about = kept[name].about
        num_ranks = 1 if each.is_outside else plan.num_ranks
        if (there := int(about["num_ranks"])) != num_ranks:
            raise _another(path, folder, "num_ranks", there, num_ranks)
        if differing := difference_of(parse_job(str(about["job_toml"]), str(path)), each.job):
            raise _another(path, folder, *differing)
        # Of an earlier galampi it is not known.
        if each.faults is not None and (suffered := str(about.get("faults", ""))) not in ("", told(each.faults)):
            raise _another(path, folder, "faults", suffered, told(each.faults))
    return kept


def chosen_factors(plan: Plan, folder: Path, arms: Iterable[str]) -> dict[str, float]:
    """Return for some arms the factor with the greatest mean area under the curve, by what is kept of the tuning.

    Raises:
        UserError: Some of the tuning is not kept, or no run of an arm has a curve.
        ResultsError: A file of it is damaged.
    """
    factors: dict[str, float] = {}
    if plan.tuning is None:
        return factors
    kept = read_kept(folder, "tuning", plan, tuning_runs(plan, folder))
    for arm in arms:
        areas = []
        for factor in plan.tuning.factors:
            names = [tuning_name(arm, factor, seed) for seed in plan.tuning.seeds]
            if lacking := [name for name in names if name not in kept]:
                path = folder / "tuning" / f"{lacking[0]}.h5"
                raise UserError(f"{path}: this run of the tuning is not recorded; --runs DIR trains it")
            areas.append(np.mean([kept[name].area for name in names]))
        if np.isnan(areas).all():
            raise UserError(f"{folder}: no run of the tuning of {arm} has ten episodes; there is nothing to choose by")
        factors[arm] = plan.tuning.factors[int(np.nanargmax(areas))]
    return factors


def _another(path: Path, folder: Path, key: str, there: object, planned: object) -> UserError:
    return UserError(f"{path}: is of another run: {key} is {there!r} there, and {planned!r} by {plan_path(folder)}")
