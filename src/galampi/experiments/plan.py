"""The plan of an experiment: what is claimed, and which runs shall show it. Knows no results.

An experiment is a folder:

    EXPERIMENT/plan.toml       the plan; committed before its runs
    EXPERIMENT/tuning/*.h5     what is kept of the runs that chose a value for each arm
    EXPERIMENT/results/*.h5    what is kept of the runs that count
"""

from __future__ import annotations

import itertools
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from galampi.errors import UserError
from galampi.experiments.faults import Fault
from galampi.job import Job, did_you_mean, fields, find_job, load_job, toml_text
from galampi.launch.axes import free_name, run_name

AnyPlan = TypeVar("AnyPlan", bound=BaseModel)

_FAULT = "fault"
_METHOD = "gossip.method"
OUTSIDE = "stable-baselines3"
"""Value of the axis `gossip.method`, for a point of reference: A2C of that library, in one process."""

Chosen = Mapping[str, str]
"""Settings, each as the text of its value."""
Scalar = bool | int | float | str


class Tuning(BaseModel):
    """How a setting gets its value in each arm, by seeds that are not used afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    key: str
    """The setting."""
    factors: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)
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
    axes: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]]
    """Values of the settings that differ between arms."""
    left_out: tuple[dict[str, Scalar], ...] = ()
    """Arms that are not trained: those that have all of some values."""
    compared: str
    """The axis whose values are compared with one another."""
    baseline: str
    """Its value that the others are compared with."""
    threshold: float = Field(allow_inf_nan=False)
    """Return from which on a run counts as a success."""
    statistic: Literal["return", "steps", "distance", "faults", "sketch"] = "return"
    """What the claim is about: returns, env steps to the threshold, how far apart the ranks are, what faults cost, or
    how far sketches are off."""
    faults: dict[str, tuple[Fault, ...]] = {}
    """What happens to the runs, by values of an axis that is called `fault`."""
    seeds: tuple[int, ...] = Field(min_length=1)
    tuning: Tuning | None = None

    @model_validator(mode="after")
    def _compares_what_is_there(self) -> Plan:
        values = self._values(self.compared)
        if self.baseline not in values:
            raise ValueError(f"baseline is {self.baseline!r}; must be a value of the axis {self.compared!r}: {values}")
        for key, value in [pair for each in self.left_out for pair in each.items()]:
            if key not in self.axes:
                raise ValueError(f"left_out names {key!r}; must name axes: {list(self.axes)}")
            if toml_text(key, value) not in self._values(key):
                raise ValueError(f"left_out names {value!r}; must be a value of the axis {key!r}: {self._values(key)}")
        if not self.arms:
            raise ValueError("left_out leaves no arm")
        if self._values(_FAULT) != list(self.faults):
            raise ValueError(f"faults are {list(self.faults)}; must be the values of the axis {_FAULT!r}")
        if self.tuning is not None and set(self.tuning.seeds) & set(self.seeds):
            raise ValueError("seeds of the tuning must not be seeds of the runs that count")
        return self

    @model_validator(mode="after")
    def _says_everything_once(self) -> Plan:
        said: dict[str, Sequence[object]] = {f"axes.{key}": self._values(key) for key in self.axes}
        said["seeds"] = self.seeds
        if self.tuning is not None:
            said |= {"tuning.seeds": self.tuning.seeds, "tuning.factors": self.tuning.factors}
        for where, values in said.items():
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise ValueError(f"{where} has {twice[0]!r} twice")
        if "seed" in (*self.axes, *self.settings):
            raise ValueError("seed is no setting or axis of a plan; its seeds are `seeds`")
        return self

    @model_validator(mode="after")
    def _has_what_it_is_about(self) -> Plan:
        if self.statistic == "distance" and self.num_ranks == 1:
            raise ValueError("num_ranks is 1; distances are between two ranks or more")
        if self.statistic == "faults" and not self.faults:
            raise ValueError(f"faults are missing; what they cost wants an axis {_FAULT!r} and what its values are")
        if self.faults and OUTSIDE in self._values(_METHOD):
            raise ValueError(f"faults are for our own runs; leave {OUTSIDE!r} out of axes.{_METHOD}")
        return self

    def _values(self, key: str) -> list[str]:
        """Return the values of an axis as text; none if there is no such axis."""
        return [toml_text(key, value) for value in self.axes.get(key, ())]

    @property
    def arms(self) -> dict[str, Chosen]:
        """What each arm chooses, by its name."""
        products = itertools.product(*map(self._values, self.axes))
        chosen = [dict(zip(self.axes, values, strict=True)) for values in products]
        left_out = [{(key, toml_text(key, value)) for key, value in each.items()} for each in self.left_out]
        arms: dict[str, Chosen] = {}
        for each in chosen:
            if not any(some <= each.items() for some in left_out):
                arms[free_name(run_name(each), arms)] = each
        return arms

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
        raise UserError(f"{plan_path(folder)}: {where}: {fault['msg'].removeprefix('Value error, ')}") from None


def read_toml(folder: Path) -> dict[str, Any]:
    """Read the plan of an experiment as it is, of whichever kind.

    Raises:
        UserError: There is none, or it is no TOML.
    """
    path = plan_path(folder)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read: not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from None


def plan_path(folder: Path) -> Path:
    """Return where the plan of an experiment lies."""
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
    return f"{arm}_x{repr(factor).removesuffix('.0')}_seed-{seed}"


def counted_name(arm: str, seed: int) -> str:
    """Name a run that counts."""
    return f"{arm}_seed-{seed}"


def _is_outside(chosen: Chosen) -> bool:
    return chosen.get(_METHOD) == OUTSIDE


def _job(plan: Plan, folder: Path, chosen: Chosen, seed: int, factor: float) -> Job:
    beside = folder / plan.job
    file = beside if beside.is_file() else find_job(plan.job)
    chosen = {key: value for key, value in chosen.items() if key != _FAULT and (key, value) != (_METHOD, OUTSIDE)}
    settings = dict(_by_key(plan.settings)) | chosen | {"seed": str(seed)}
    where = str(plan_path(folder))
    job = load_job(file, settings, where)
    if plan.tuning is None:
        return job
    value = _number(job, plan.tuning.key, where)
    # A whole number stays one, where it can.
    tuned = int(value * factor) if isinstance(value, int) and (value * factor).is_integer() else value * factor
    return load_job(file, settings | {plan.tuning.key: toml_text(plan.tuning.key, tuned)}, where)


def _by_key(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings in a table and the tables in it, each with the text of its value."""
    known = dict(fields())
    for name, value in table.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and key not in known:
            yield from _by_key(value, f"{key}.")
        else:
            yield key, toml_text(key, value)


def _number(job: Job, key: str, where: str) -> float:
    """Return the value of a setting that is tuned.

    Raises:
        UserError: It is no setting, or no number.
    """
    known = [name for name, _ in fields()]
    if key not in known:
        raise UserError(f"{where}: tuning.key is {key!r}, which is not a key of a job{did_you_mean(key, known)}")
    value: Any = attrgetter(key)(job)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: tuning.key is {key!r}; must be a setting whose value is a number, not {value!r}")
    return value
