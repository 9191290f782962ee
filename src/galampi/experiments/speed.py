"""Experiments on speed: which method makes more env steps a second while something holds ranks up.

The plan is a `plan.toml` with a table of disturbances; what is measured lies in `results/rounds.json`. Methods take
turns within a round, in the opposite order in every other one; what is compared are the paired samples of a round.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from galampi.analysis.comparison import Estimate, median
from galampi.bench import contestants
from galampi.bench.timed_train import Disturbance
from galampi.errors import ResultsError, UserError
from galampi.experiments.plan import plan_path, read_as, read_toml
from galampi.experiments.record import check_sum, make_writable, read_sums, write_checksums
from galampi.experiments.tables import WIDTH, aligned
from galampi.ranks.processor import processor
from galampi.results.files import replace_text

Method = Literal["push-sum", "gala", "allreduce", "none"]


class Condition(BaseModel):
    """A disturbance, and for how long it is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seconds: float = Field(gt=0)
    """Time that counts of each sample."""
    disturbance: Disturbance = Disturbance()


class SpeedPlan(BaseModel):
    """A plan: in every round each method trains Pong under each condition."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    claim: str
    """What shall be shown."""
    refuted_if: str
    """What would speak against it."""
    num_ranks: int = Field(ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    methods: tuple[Method, ...] = Field(min_length=1)
    baseline: Method
    """The method that the others are compared with."""
    num_rounds: int = Field(ge=1)
    conditions: dict[str, Condition] = Field(min_length=1)

    @model_validator(mode="after")
    def _compares_what_is_measured(self) -> SpeedPlan:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline is {self.baseline!r}; must be one of methods: {list(self.methods)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods has one twice")
        for name, condition in self.conditions.items():
            told = _unlike_a_disturbance(condition, self.num_ranks)
            if told:
                raise ValueError(f"conditions.{name}: {told}")
        return self

    def measured(self, condition: str) -> dict[str, Any]:
        """Return what decides a sample under a condition, as JSON has it."""
        decides = {"num_ranks": self.num_ranks, "precision": self.precision, **vars(self.conditions[condition])}
        return {**decides, "disturbance": asdict(self.conditions[condition].disturbance)}


def _unlike_a_disturbance(condition: Condition, num_ranks: int) -> str:
    """Say which setting of a disturbance would disturb nothing; '' if none."""
    given = condition.disturbance
    for name in ("slow_rank", "stopped_rank"):
        number = getattr(given, name)
        if number is not None and not 0 <= number < num_ranks:
            return f"{name} is {number}; must lie in [0, {num_ranks - 1}]"
    if not 1 <= given.slow_factor < math.inf:
        return f"slow_factor is {given.slow_factor:g}; must be at least 1"
    for name in ("simulator_s", "simulator_sigma", "stop_after_s", "stop_s"):
        if not 0 <= getattr(given, name) < math.inf:
            return f"{name} is {getattr(given, name):g}; must be at least 0"
    if given.slow_rank is not None and given.slow_factor == 1:
        return "slow_rank is given, and slow_factor is 1"
    if given.stopped_rank is not None and not given.stop_s:
        return "stopped_rank is given, and stop_s is 0"
    if given.simulator_sigma and not given.simulator_s:
        return "simulator_sigma is given, and simulator_s is 0"
    ends_s = contestants.SETTLING_S + condition.seconds
    if given.stopped_rank is not None and given.stop_after_s >= ends_s:
        return f"stop_after_s is {given.stop_after_s:g}; all is over after {ends_s:g} s"
    return ""


@dataclass(frozen=True)
class Sample:
    """What was measured of a method under a condition in a round.

    Attributes:
        steps_per_s: Env steps of all ranks a second.
        effective_step: How far the ensemble moves over what its optimizer steps ask for.
        measured: As `SpeedPlan.measured` tells; None in files of an earlier galampi.
    """

    round: int
    condition: str
    method: str
    steps_per_s: float
    effective_step: float
    processor: str
    date: str
    load_average: float
    measured: dict[str, Any] | None = None


def is_about_speed(folder: Path) -> bool:
    """Whether an experiment's plan has conditions; False too if it cannot be read."""
    try:
        return "conditions" in read_toml(folder)
    except UserError:
        return False


def measure_plan(folder: Path, tell: Callable[[str], None]) -> None:
    """Measure what a plan lacks, and keep each sample as it comes.

    Raises:
        UserError: There is no plan, or a sample cannot be taken.
    """
    plan = read_as(SpeedPlan, folder)
    kept = _read(folder)
    _planned(plan, kept, folder)
    samples = {(each.round, each.condition, each.method): each for each in kept}
    make_writable(_path(folder).parent)
    if samples:
        # Of what was kept last the sum may have been cut off.
        _write(folder, list(samples.values()))
    for number in range(1, plan.num_rounds + 1):
        methods = plan.methods if number % 2 else plan.methods[::-1]
        for name, condition in plan.conditions.items():
            for method in methods:
                if (number, name, method) in samples:
                    continue
                load = os.getloadavg()[0]
                found = contestants.training(
                    plan.num_ranks,
                    condition.seconds,
                    precision=plan.precision,
                    method=method,
                    disturbance=condition.disturbance,
                )
                sample = Sample(
                    number,
                    name,
                    method,
                    found["steps_per_s"],
                    found["effective_step"],
                    processor(),
                    time.strftime("%Y-%m-%d"),
                    load,
                    plan.measured(name),
                )
                samples[number, name, method] = sample
                _write(folder, list(samples.values()))
                tell(f"round {number} of {plan.num_rounds}  {name}, {method}: {sample.steps_per_s:,.0f} steps/s")


def ratios(plan: SpeedPlan, samples: list[Sample], condition: str, method: str, *, moved: bool) -> NDArray[np.float64]:
    """Return how many times the steps of the baseline a method makes, of each round that has both, [R].

    Args:
        plan: What was planned.
        samples: What was measured.
        condition: Under which.
        method: Of which.
        moved: Count a step for as much as the ensemble moves by it.
    """
    found: dict[tuple[int, str], float] = {
        (each.round, each.method): each.steps_per_s * (each.effective_step if moved else 1.0)
        for each in samples
        if each.condition == condition
    }
    rounds = [number for number, of in found if of == method and (number, plan.baseline) in found]
    return np.array([found[number, method] / found[number, plan.baseline] for number in rounds])


def speed_table(folder: Path) -> str:
    """Write what an experiment on speed comes to, as lines of text.

    Raises:
        UserError: There is no plan, or nothing was measured.
    """
    plan = read_as(SpeedPlan, folder)
    samples = _planned(plan, _read_kept(folder), folder)
    if not samples:
        raise UserError(f"{folder}: nothing was measured; --runs DIR measures it")
    dates = sorted({each.date for each in samples})
    planned = plan.num_rounds * len(plan.conditions) * len(plan.methods)
    lines = [
        *textwrap.wrap(f"claim: {plan.claim}", WIDTH),
        *textwrap.wrap(f"refuted if: {plan.refuted_if}", WIDTH),
        "",
        f"{len(samples)} of {planned} samples, {plan.num_ranks} ranks each, {plan.precision}; "
        f"{', '.join(sorted({each.processor for each in samples}))}; "
        f"{dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}",
        *textwrap.wrap(
            f"steps/s: median over rounds; ratio: to {plan.baseline} in the same round, median over rounds with its 95 "
            "% interval; moved: the same where a step counts for as much as the ensemble moves by it",
            WIDTH,
        ),
        "",
    ]
    rows = [("", "method", "rounds", "steps/s", "ratio", "moved")]
    for condition in plan.conditions:
        for method in plan.methods:
            rates = [each.steps_per_s for each in samples if (each.condition, each.method) == (condition, method)]
            if rates:
                ratio, moved = (_ratio(plan, samples, condition, method, moved=moved) for moved in (False, True))
                label = condition if method == plan.methods[0] else ""
                rows.append((label, method, str(len(rates)), f"{np.median(rates):,.0f}", ratio, moved))
    return "\n".join([*lines, *aligned(rows)])


def _ratio(plan: SpeedPlan, samples: list[Sample], condition: str, method: str, *, moved: bool) -> str:
    found = ratios(plan, samples, condition, method, moved=moved)
    return "-" if method == plan.baseline or not len(found) else f"{median(found):.2f}"


@dataclass(frozen=True)
class Ratios:
    """How many times the env steps a second of a baseline methods make.

    Attributes:
        baseline: The method that the others are compared with.
        estimates: By condition and method.
    """

    baseline: str
    estimates: dict[str, dict[str, Estimate]]


def compared_with_baseline(folder: Path) -> Ratios:
    """Return the ratio of each method but the baseline under each condition that was measured.

    Raises:
        UserError: There is no plan.
    """
    plan = read_as(SpeedPlan, folder)
    samples = _planned(plan, _read_kept(folder), folder)
    found: dict[str, dict[str, Estimate]] = {}
    for condition in plan.conditions:
        for method in plan.methods:
            each = ratios(plan, samples, condition, method, moved=False)
            if method != plan.baseline and len(each):
                found.setdefault(condition, {})[method] = median(each)
    return Ratios(plan.baseline, found)


def _planned(plan: SpeedPlan, samples: list[Sample], folder: Path) -> list[Sample]:
    """Return those of some samples that a plan asks for.

    Raises:
        UserError: One was measured under another plan.
    """
    planned = [
        each
        for each in samples
        if each.condition in plan.conditions and each.method in plan.methods and each.round <= plan.num_rounds
    ]
    for each in planned:
        asked = plan.measured(each.condition)
        for key, value in (each.measured or {}).items():
            if asked.get(key) != value:
                raise UserError(
                    f"{_path(folder)}: round {each.round} of {each.condition} was measured under another plan: {key} "
                    f"is {value!r} there, and {asked.get(key)!r} by {plan_path(folder)}"
                )
    return planned


def _path(folder: Path) -> Path:
    return folder / "results" / "rounds.json"


def _read(folder: Path) -> list[Sample]:
    path = _path(folder)
    if not path.exists():
        return []
    try:
        kept: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Sample(**each) for each in kept]
    except (ValueError, TypeError) as error:
        raise ResultsError(f"{path}: damaged: {error}") from None


def _read_kept(folder: Path) -> list[Sample]:
    """Read the samples, if they are what was kept."""
    path = _path(folder)
    if path.exists():
        check_sum(path, read_sums(path.parent))
    return _read(folder)


def _write(folder: Path, samples: list[Sample]) -> None:
    lines = ",\n".join(json.dumps(vars(each)) for each in samples)
    path = _path(folder)
    try:
        replace_text(path, f"[\n{lines}\n]\n")
        write_checksums(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
