"""The plan of an experiment: what is claimed, and which runs shall show it. Knows no results.

An experiment is a folder:

    EXPERIMENT/plan.toml       the plan; committed before its runs
    EXPERIMENT/tuning/*.h5     what is kept of the runs that chose a value for each arm
    EXPERIMENT/results/*.h5    what is kept of the runs that count
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from galampi.errors import UserError
from galampi.experiments.faults import Fault
from galampi.job import Job, find_job, load_job
from galampi.launch.sweep import run_name

AnyPlan = TypeVar("AnyPlan", bound=BaseModel)

_FAULT = "fault"
_METHOD = "gossip.method"
OUTSIDE = "stable-baselines3"
"""Value of the axis `gossip.method`, for a point of reference: A2C of that library, in one process."""

Chosen = Mapping[str, str]
"""Settings, each as the text of its value."""


class Tuning(BaseModel):
    """How a setting gets its value in each arm, by seeds that are not used afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    key: str
    """The setting."""
    factors: tuple[float, ...] = Field(min_length=1)
    """What its value in the job is multiplied by; the factor with the greatest area under the curve is taken."""
    seeds: tuple[int, ...] = Field(min_length=1)


class Plan(BaseModel):
    """A plan: every arm, a value of each axis, is trained with every seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    claim: str
    """What shall be shown."""
    refuted_if: str
    """What would speak against it."""
    job: str
    """Job file, relative to the plan, or the name of a shipped job."""
    num_ranks: int = Field(ge=1)
    settings: dict[str, Any] = {}
    """Settings of every run, over those of the job."""
    axes: dict[str, tuple[str | int | float, ...]]
    """Values of the settings that differ between arms."""
    left_out: tuple[dict[str, str | int | float], ...] = ()
    """Arms that are not trained: those that have all of some values."""
    compared: str
    """The axis whose values are compared with one another."""
    baseline: str
    """Its value that the others are compared with."""
    threshold: float
    """Return from which on a run counts as a success."""
    statistic: Literal["return", "distance", "faults", "sketch"] = "return"
    """What the claim is about: returns, how far apart the ranks are, what faults cost, or how far sketches are off."""
    faults: dict[str, tuple[Fault, ...]] = {}
    """What happens to the runs, by values of an axis that is called `fault`."""
    seeds: tuple[int, ...] = Field(min_length=1)
    tuning: Tuning | None = None

    @model_validator(mode="after")
    def _compares_what_is_there(self) -> Plan:
        values = [str(value) for value in self.axes.get(self.compared, ())]
        if self.baseline not in values:
            raise ValueError(f"baseline is {self.baseline!r}; must be a value of the axis {self.compared!r}: {values}")
        if unknown := {key for each in self.left_out for key in each} - set(self.axes):
            raise ValueError(f"left_out names {unknown.pop()!r}; must name axes: {list(self.axes)}")
        if [str(value) for value in self.axes.get(_FAULT, ())] != list(self.faults):
            raise ValueError(f"faults are {list(self.faults)}; must be the values of the axis {_FAULT!r}")
        if self.tuning is not None and set(self.tuning.seeds) & set(self.seeds):
            raise ValueError("seeds of the tuning must not be seeds of the runs that count")
        return self

    @property
    def arms(self) -> dict[str, Chosen]:
        """What each arm chooses, by its name."""
        products = itertools.product(*self.axes.values())
        chosen = [dict(zip(self.axes, map(str, values), strict=True)) for values in products]
        left_out = [{(key, str(value)) for key, value in each.items()} for each in self.left_out]
        return {run_name(each): each for each in chosen if not any(some <= each.items() for some in left_out)}

    @property
    def groups(self) -> dict[str, dict[str, str]]:
        """Arms that are compared, by what they have in common: name of the group, compared value, name of the arm."""
        groups: dict[str, dict[str, str]] = {}
        for name, chosen in self.arms.items():
            rest = {key: value for key, value in chosen.items() if key != self.compared}
            label = ", ".join(f"{key} = {value}" for key, value in rest.items())
            groups.setdefault(label, {})[chosen[self.compared]] = name
        return groups


def read_plan(folder: Path) -> Plan:
    """Read the plan of an experiment.

    Raises:
        UserError: There is none, or it is no plan.
    """
    return read_as(Plan, folder)


def read_as(kind: type[AnyPlan], folder: Path) -> AnyPlan:
    """Read the plan of an experiment as one of a kind.

    Raises:
        UserError: There is none, or it is no such plan.
    """
    try:
        return kind.model_validate(read_toml(folder))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "plan"
        raise UserError(f"{_path(folder)}: {where}: {fault['msg'].removeprefix('Value error, ')}") from None


def read_toml(folder: Path) -> dict[str, Any]:
    """Read the plan of an experiment as it is, of whichever kind.

    Raises:
        UserError: There is none, or it is no TOML.
    """
    path = _path(folder)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from None


def _path(folder: Path) -> Path:
    return folder / "plan.toml"


class PlannedRun(NamedTuple):
    """A run of a plan."""

    job: Job
    faults: tuple[Fault, ...] | None = None
    """What happens to it; None where the plan has no faults, and in a tuning, whose runs are left in peace."""
    is_outside: bool = False
    """Whether another library learns it, Stable-Baselines3."""


def tuning_runs(plan: Plan, folder: Path) -> dict[str, PlannedRun]:
    """Return the runs that choose a value for each arm, by their names, seed by seed."""
    runs: dict[str, PlannedRun] = {}
    if plan.tuning is not None:
        each = itertools.product(plan.tuning.seeds, plan.arms.items(), plan.tuning.factors)
        for seed, (arm, chosen), factor in each:
            job = _job(plan, folder, chosen, seed, factor)
            runs[tuning_name(arm, factor, seed)] = PlannedRun(job, is_outside=_is_outside(chosen))
    return runs


def counted_runs(plan: Plan, folder: Path, factors: Mapping[str, float]) -> dict[str, PlannedRun]:
    """Return the runs that count, by their names, seed by seed.

    Args:
        plan: The plan.
        folder: Where it lies.
        factors: Of each arm what the tuning chose; empty without one.
    """
    runs: dict[str, PlannedRun] = {}
    for seed, (arm, chosen) in itertools.product(plan.seeds, plan.arms.items()):
        job = _job(plan, folder, chosen, seed, factors.get(arm, 1.0))
        faults = plan.faults[chosen[_FAULT]] if plan.faults else None
        runs[counted_name(arm, seed)] = PlannedRun(job, faults, _is_outside(chosen))
    return runs


def tuning_name(arm: str, factor: float, seed: int) -> str:
    """Name a run of the tuning."""
    return f"{arm}_x{factor:g}_seed-{seed}"


def counted_name(arm: str, seed: int) -> str:
    """Name a run that counts."""
    return f"{arm}_seed-{seed}"


def _is_outside(chosen: Chosen) -> bool:
    return chosen.get(_METHOD) == OUTSIDE


def _job(plan: Plan, folder: Path, chosen: Chosen, seed: int, factor: float) -> Job:
    beside = folder / plan.job
    file = beside if beside.is_file() else find_job(plan.job)
    chosen = {key: value for key, value in chosen.items() if key != _FAULT and (key, value) != (_METHOD, OUTSIDE)}
    settings = {key: _text(value) for key, value in plan.settings.items()} | chosen | {"seed": str(seed)}
    job = load_job(file, settings)
    if plan.tuning is None:
        return job
    return load_job(file, settings | {plan.tuning.key: repr(float(_value(job, plan.tuning.key)) * factor)})


def _value(job: Job, key: str) -> Any:
    value: Any = job
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
