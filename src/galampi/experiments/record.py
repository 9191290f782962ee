"""What is kept of a run: some fifteen kilobytes from which every number of an experiment can be computed again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.statistics import (
    FEWEST_EPISODES,
    WINDOW_EPISODES,
    Episodes,
    effective_step,
    learning_curve,
)
from galampi.analysis.summary import RunReport
from galampi.errors import ResultsError, UserError
from galampi.experiments.faults import read_suffered
from galampi.job import Job, dump_job
from galampi.policies.stored import checkpoint_path, kept_updates
from galampi.results import Sketch, load_checkpoint
from galampi.results.files import reading, replace_text, replacing

FORMAT = "galampi recorded run"
SUMS = "SHA256SUMS"
NUM_MOMENTS = 200
"""Moments of a learning curve; they divide the budget equally."""
_MOST_DISTANCES = 100
_ALWAYS_KEPT = ("job_toml", "num_ranks", "effective_step", "processor", "date")
_KEPT = (
    "galampi_version",
    "torch_version",
    "numpy_version",
    "gymnasium_version",
    "ale_py_version",
    "mpi_library",
    "git_commit",
    "precision",
    "device",
    "num_parameters",
    "num_restarts",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What is kept of a run.

    Attributes:
        about: The job, the machine, versions, and what can be said in a number.
        curve_at: [M] env steps of all ranks.
        curve: [M] mean return of the last 100 episodes at those moments; NaN before the tenth.
        last_returns: Returns of the last 100 episodes.
        distance_at_s: [K] job time at which the ranks were sketched.
        distance: [K] norm of the differences of all ranks to their mean, stacked.
        norm: [K] norm of a rank's parameters, mean over the ranks.
        bound_at_s: [L] job time of the moments at which the bound was computed.
        bound: [L] the bound of the paper's Proposition 1 on `distance`.
        bounded_distance: [L] the distance at those moments.
        exact_distance: [C x N] distance of each rank to the mean of all at the C checkpoints that were kept of all,
            computed from all parameters.
        sketched_distance: [C x N] the same by sketches of those parameters.
    """

    about: dict[str, Any]
    curve_at: Floats
    curve: Floats
    last_returns: Floats
    distance_at_s: Floats
    distance: Floats
    norm: Floats
    bound_at_s: Floats
    bound: Floats
    bounded_distance: Floats
    exact_distance: Floats
    sketched_distance: Floats

    @property
    def share_done(self) -> float:
        """Env steps that were done over those that were to be; 1 where that is not known."""
        return min(1.0, float(self.about.get("env_steps", self.curve_at[-1])) / float(self.curve_at[-1]))

    @property
    def area(self) -> float:
        """Mean of the learning curve over the budget, from the tenth episode on."""
        return float(np.nanmean(self.curve)) if np.isfinite(self.curve).any() else float("nan")

    @property
    def final_return(self) -> float:
        """Mean return of the last 100 episodes; NaN if fewer than 10 ended."""
        return float(self.last_returns.mean()) if len(self.last_returns) >= FEWEST_EPISODES else float("nan")

    def steps_to(self, threshold: float) -> float:
        """Return the env steps until the mean return of 100 episodes first was a threshold; NaN if it never was."""
        reached = np.flatnonzero(are_at_least(self.curve, threshold))
        return float(self.curve_at[reached[0]]) if len(reached) else float("nan")

    @property
    def relative_distance(self) -> float:
        """Distance over the norm of the ranks' parameters, sqrt(N) times a rank's: the median over time."""
        return float(np.median(self.distance / self._all_norms)) if len(self.distance) else float("nan")

    @property
    def relative_bound(self) -> float:
        """The bound over the same norm, the median over time; NaN where there is none."""
        if not len(self.bound):
            return float("nan")
        return float(np.median(self.bound / np.interp(self.bound_at_s, self.distance_at_s, self._all_norms)))

    @property
    def _all_norms(self) -> Floats:
        return np.asarray(self.norm * np.sqrt(float(self.about["num_ranks"])))

    def is_within(self, other: RecordedRun) -> bool:
        """Whether its ranks end no farther apart than the greatest bound on those of another run, which has one."""
        return bool(self.distance[-1] <= other.bound.max())

    @property
    def sketch_errors(self) -> Floats:
        """Relative errors of the sketched distances."""
        return np.asarray(self.sketched_distance / self.exact_distance - 1)

    @property
    def share_inside(self) -> float:
        """Share of the moments at which the ranks were within the bound; NaN where there is none."""
        return float((self.bounded_distance <= self.bound).mean()) if len(self.bound) else float("nan")


def are_at_least(returns: Floats, threshold: float) -> NDArray[np.bool_]:
    """Whether each of some mean returns is a threshold or more, to the seven digits with which they are kept."""
    return np.asarray(returns.astype(np.float32) >= np.float32(threshold))


_ARRAYS = tuple(name for name in RecordedRun.__dataclass_fields__ if name != "about")


def record(run: Path, path: Path, facts: dict[str, str]) -> None:
    """Keep of a run what the numbers need.

    Args:
        run: Folder of the run.
        path: File to write.
        facts: About the machine.

    Raises:
        ResultsError: The run cannot be read, or a rank's file is missing.
    """
    report = RunReport(run)
    if missing := report.run.missing_ranks:
        raise ResultsError(f"{run}: the file of rank {missing[0]} is missing; what is left is not the run")
    arrays = _learned(report.episodes, report.job.total_env_steps)
    distance = report.distance
    if not isinstance(distance, str):
        stacked = np.linalg.norm(distance.to_mean, axis=1)
        few = np.unique(np.linspace(0, len(stacked) - 1, min(_MOST_DISTANCES, len(stacked))).astype(int))
        arrays["distance_at_s"], arrays["distance"] = distance.times_s[few], stacked[few]
        arrays["norm"] = distance.norm.mean(axis=1)[few]
        if not isinstance(report.bound, str):
            moments = report.bound.moments
            arrays["bound_at_s"] = distance.times_s[moments]
            arrays["bound"], arrays["bounded_distance"] = report.bound.values, stacked[moments]
    arrays["exact_distance"], arrays["sketched_distance"] = _at_checkpoints(report)
    attributes = report.run.attributes
    step = effective_step(report.run)
    suffered = read_suffered(run)
    about = {
        # Where modules lay is of no use elsewhere.
        "job_toml": dump_job(report.job.model_copy(update={"modules_folder": ""})),
        "status": report.run.status,
        "num_ranks": report.run.num_ranks,
        "env_steps": report.env_steps,
        "duration_s": report.duration_s,
        "effective_step": float("nan") if step is None else step,
        **{name: attributes[name] for name in _KEPT if name in attributes},
        **(asdict(suffered) if suffered is not None else {}),
        **facts,
    }
    _write(path, about, arrays)


def record_outside(finished: Episodes, job: Job, path: Path, about: dict[str, Any]) -> None:
    """Keep what was learned outside of this package.

    Args:
        finished: The episodes.
        job: What was learned.
        path: File to write.
        about: About the program and the machine.
    """
    known = {"job_toml": dump_job(job), "num_ranks": 1, "effective_step": float("nan")}
    _write(path, {**known, **about}, _learned(finished, job.total_env_steps))


def _at_checkpoints(report: RunReport) -> tuple[Floats, Floats]:
    """Return each rank's distance to the mean at the checkpoints kept of all, [C x N]: exact, and by sketches."""
    exact: list[float] = []
    sketched: list[float] = []
    for update in kept_updates(report.run.path):
        paths = [checkpoint_path(report.run.path, rank, update) for rank in range(report.run.num_ranks)]
        if not all(path.exists() for path in paths):
            continue
        z = np.stack([load_checkpoint(path)["learner"]["z"].astype(np.float64) for path in paths])
        sketch = Sketch(report.job.record.sketch_size, z.shape[1])
        sketches = np.stack([sketch(each) for each in z])
        for found, values in ((exact, z), (sketched, sketches)):
            found.extend(np.linalg.norm(values - values.mean(axis=0), axis=1).tolist())
    return np.array(exact), np.array(sketched)


def _learned(finished: Episodes, budget: int) -> dict[str, Floats]:
    """Return the arrays of a record, of which those about the ranks are empty."""
    nothing: Floats = np.zeros(0)
    at = np.linspace(0, budget, NUM_MOMENTS + 1)[1:]
    learned = {
        "curve_at": at,
        "curve": learning_curve(finished, "env_steps", at),
        "last_returns": finished.returns[-WINDOW_EPISODES:],
    }
    return dict.fromkeys(_ARRAYS, nothing) | learned


def _write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Floats]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, FORMAT) as file:
        for name, value in about.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            file.create_dataset(name, data=array.astype(np.float32), compression="gzip", shuffle=True)


def read_record(path: Path) -> RecordedRun:
    """Read what `record` has written.

    Raises:
        FileNotFoundError: There is no such file.
        ResultsError: It is damaged.
    """
    with reading(path, FORMAT) as file:
        about = {name: value for name, value in file.attrs.items() if name not in ("format", "schema_version")}
        if lacking := [name for name in _ALWAYS_KEPT if name not in about]:
            raise KeyError(f"no attribute {lacking[0]}")
        # Files of an earlier galampi have no distances at checkpoints.
        arrays = {name: file[name][()] if name in file else np.zeros(0) for name in _ARRAYS}
        kept = RecordedRun(about=about, **{name: array.astype(np.float64) for name, array in arrays.items()})
        if not len(kept.curve) == len(kept.curve_at) == NUM_MOMENTS:
            raise ValueError(f"a learning curve of {len(kept.curve)} of {NUM_MOMENTS} moments")
        return kept


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of everything that is kept in a folder, as `sha256sum -c` takes them."""
    kept = sorted([*folder.glob("*.h5"), *folder.glob("*.json")])
    replace_text(folder / SUMS, "".join(f"{_digest(path)}  {path.name}\n" for path in kept))


def make_writable(folder: Path) -> None:
    """Make the folder in which something is to be kept, before hours go into it.

    Raises:
        UserError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that was kept in a folder, by its name; of one that has none that was cut off."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_sum(path: Path, sums: Mapping[str, str]) -> None:
    """See that a file is what was kept, by what `read_sums` returns of its folder.

    Raises:
        ResultsError: It is not, or keeping it was cut off.
    """
    digest = sums.get(path.name)
    if digest is None:
        raise ResultsError(f"{path}: is not listed in {SUMS} beside it, as what was kept is")
    if digest != _digest(path):
        raise ResultsError(f"{path}: is not what was kept, by {SUMS} beside it")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
