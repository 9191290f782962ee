"""What an experiment comes to: its arms, and the numbers of their runs, from what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.comparison import Estimate, difference
from galampi.errors import UserError
from galampi.experiments.kept import chosen_factors, read_kept
from galampi.experiments.plan import Plan, counted_name, counted_runs, read_plan
from galampi.experiments.record import RecordedRun, are_at_least


@dataclass(frozen=True)
class Arm:
    """The runs of an arm that are there.

    Attributes:
        value: Its value of what is compared.
        factor: What its tuned setting was multiplied by; None without a tuning.
        runs: By seed.
    """

    value: str
    factor: float | None
    runs: dict[int, RecordedRun]

    @property
    def number(self) -> float | None:
        """Its value as a number; None if it is none."""
        try:
            number = float(self.value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    @cached_property
    def with_returns(self) -> dict[int, RecordedRun]:
        """Those of its runs in which enough episodes ended for a final return and a curve."""
        return {seed: run for seed, run in self.runs.items() if np.isfinite([run.final_return, run.area]).all()}

    @property
    def finals(self) -> NDArray[np.float64]:
        """Final returns of the runs that have one."""
        return np.array([run.final_return for run in self.with_returns.values()])

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas under the learning curves of the runs that have one."""
        return np.array([run.area for run in self.with_returns.values()])

    def num_successes(self, threshold: float) -> int:
        """Return how many runs reach a return at the end; one that has none does not."""
        return int(are_at_least(self.finals, threshold).sum())


@dataclass(frozen=True)
class Outcome:
    """An experiment and its runs.

    Attributes:
        plan: What was planned.
        groups: Arms that are compared, by the name of what they have in common.
    """

    plan: Plan
    groups: dict[str, list[Arm]]

    @property
    def runs(self) -> list[RecordedRun]:
        """All runs that are there."""
        return [run for arms in self.groups.values() for arm in arms for run in arm.runs.values()]

    @cached_property
    def decimals(self) -> int:
        """Decimals of returns, such that the greatest there is has three digits or more."""
        shown = [abs(value) for arms in self.groups.values() for arm in arms for value in (*arm.finals, *arm.areas)]
        greatest = max(shown, default=0.0)
        return max(1, 2 - math.floor(math.log10(greatest))) if greatest else 1


def read_outcome(folder: Path) -> Outcome:
    """Read an experiment.

    Raises:
        UserError: There is no plan, nothing is kept of its runs, or what is kept is of others.
        ResultsError: A file is damaged, or not what was kept.
    """
    plan = read_plan(folder)
    names = {(arm, seed): counted_name(arm, seed) for arm in plan.arms for seed in plan.seeds}
    there = [arm for (arm, _), name in names.items() if (folder / "results" / f"{name}.h5").exists()]
    if not there:
        raise UserError(f"{folder}: nothing is kept of its runs; --runs DIR trains them")
    # An arm that has no runs yet may have no tuning either.
    factors = chosen_factors(plan, folder, dict.fromkeys(there))
    kept = read_kept(folder, "results", plan, counted_runs(plan, folder, factors))
    runs = {arm: {seed: kept[name] for seed in plan.seeds if (name := names[arm, seed]) in kept} for arm in plan.arms}
    groups = {
        group: [Arm(value, factors.get(name), runs[name]) for value, name in arms.items()]
        for group, arms in plan.groups.items()
    }
    return Outcome(plan, groups)


def relative(arm: Arm, what: str) -> NDArray[np.float64]:
    """Return the relative distance or bound of each run of an arm, %."""
    return np.array([100 * getattr(run, f"relative_{what}") for run in arm.runs.values()])


def growth(arms: Sequence[Arm], what: str) -> Estimate | None:
    """Return the exponent with which distance or bound grows with the arms' values, over the seeds of all.

    None where fewer than two arms have a seed in common for which all have that number.
    """

    def has(run: RecordedRun) -> bool:
        return bool(getattr(run, f"relative_{what}") > 0)

    if len(arms) < 2:
        return None
    seeds = [seed for seed in arms[0].runs if all(seed in arm.runs and has(arm.runs[seed]) for arm in arms)]
    if not seeds:
        return None
    values = np.log([float(arm.value) for arm in arms])
    logs = np.log([[getattr(arm.runs[seed], f"relative_{what}") for seed in seeds] for arm in arms])
    return difference(np.polyfit(values, logs, 1)[0], np.zeros(len(seeds)))
