"""The numbers of a report: what is computed of one run, and of the runs of one job.

Owns the layout of summary.json. Knows neither figures nor the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.ball import Bound, bound
from galampi.analysis.statistics import (
    PHASES,
    Episodes,
    Interval,
    absent_s,
    duration_s,
    effective_step,
    episodes,
    final_return,
    last_numbers,
    learning_curve,
    num_updates,
    over_runs,
    since_start,
    total,
    total_env_steps,
)
from galampi.errors import ResultsError
from galampi.job import Job, parse_job
from galampi.results.distance import ConsensusDistance
from galampi.results.reader import Run, open_run
from galampi.results.schema import JOB_FILE_NAME

Floats = NDArray[np.float64]

SUMMARY_VERSION = 2
"""Version of the layout of summary.json, which docs/report.md states."""
_JOULES_A_KWH = 3.6e6
_NUM_MOMENTS = 300
ENERGY_SCOPE = (
    "Whole nodes: processor packages and their dram by RAPL, GPUs by NVML; not disks, network, fans and power "
    "supplies. Other jobs on the same nodes are counted too."
)


@dataclass(frozen=True, eq=False)
class Energy:
    """Energy a run used, by source.

    Attributes:
        series: Host, source, job times in s, ascending, and kWh since the start of the job.
        unread: What could not be read, with the reasons.
        covered_s: Job time up to which every node that the job runs on was read; None if none was.
    """

    series: list[tuple[str, str, Floats, Floats]]
    unread: list[str]
    covered_s: float | None = None

    @property
    def kwh(self) -> float | None:
        """Sum of all sources that were read; None if none was."""
        return sum(float(kwh[-1]) for *_, kwh in self.series) if self.series else None

    @property
    def reason(self) -> str | None:
        """Why there is no sum, or why it is not whole."""
        return "; ".join(self.unread) or None


def has_rows(run: Run) -> bool:
    """Whether a run has made an update, as far as its files tell."""
    return any(rank.updates.num_rows for rank in run.ranks)


def has_begun(path: Path) -> bool:
    """Whether there is a run in a folder; not in one that may not be looked into, as yet."""
    try:
        return (path / JOB_FILE_NAME).exists()
    except OSError:
        return False


class RunReport:
    """One run, and what is computed of it."""

    def __init__(self, path: Path) -> None:
        """Open the run at `path`.

        Raises:
            ResultsError: There is no run, or it holds no update yet, or a file is damaged.
        """
        self.run = open_run(path)
        self.path = path
        source = f"{path / 'job.h5' if path.name != 'job.h5' else path}"
        self.job: Job = parse_job(self.run.job_toml, source)
        self.duration_s = duration_s(self.run)
        if not has_rows(self.run):
            raise ResultsError(f"{path}: holds no update yet; nothing to report")
        self.env_steps = total(self.run, "env_steps")

    @cached_property
    def episodes(self) -> Episodes:
        """Episodes of all ranks."""
        return episodes(self.run)

    @cached_property
    def last_numbers(self) -> dict[str, float]:
        """Means of what the environment told of the last episodes."""
        return last_numbers(self.run)

    @property
    def num_failures(self) -> int:
        """Times a simulator raised an exception."""
        return sum(rank.failures.num_rows for rank in self.run.all_ranks)

    @cached_property
    def distance(self) -> ConsensusDistance | str:
        """Distances between the ranks, or the reason why there are none."""
        if self.run.num_ranks == 1:
            return "there is one rank"
        try:
            # With allreduce ranks are in step, and alike after the same update.
            align: Literal["time", "update"] = "update" if self.job.gossip.method == "allreduce" else "time"
            distance = self.run.consensus_distance(align)
        except ResultsError as error:
            return str(error)
        return distance if len(distance.at) else f"{self.path}: no moment at which every rank had been sketched"

    @cached_property
    def bound(self) -> Bound | str:
        """The bound on the distances, or the reason why there is none."""
        return self.distance if isinstance(self.distance, str) else bound(self.run, self.job, self.distance)

    @cached_property
    def energy(self) -> Energy:
        """Energy used, also by ranks that have left the job, and on nodes that it no longer runs on."""
        series: list[tuple[str, str, Floats, Floats]] = []
        unread: list[str] = []
        read_until_s: list[float] = []
        known = [rank for rank in self.run.all_ranks if "energy_unread" in rank.attributes]
        if not known:
            unread.append("the run is of a galampi that did not record energy")
        for rank in known:
            newest_host = str(rank.attributes.get("hostname", f"node of rank {rank.rank}"))
            rows = rank.energy.read("time_s", "host", "source", "energy_j")
            hosts = np.where(rows["host"] == "", newest_host, rows["host"])
            # Rows past the checkpoint of a restart stay, and job time went back to it.
            time_s = np.minimum.accumulate(rows["time_s"][::-1])[::-1]
            for host, source in dict.fromkeys(zip(hosts, rows["source"], strict=True)):
                mine = (hosts == host) & (rows["source"] == source)
                kwh = since_start(rows["energy_j"][mine]) / _JOULES_A_KWH
                series.append((str(host), str(source), time_s[mine], kwh))
            reasons = str(rank.attributes["energy_unread"]).splitlines()
            if rank.rank < self.run.num_ranks and rank.attributes.get("rank_on_node") == 0:
                if len(time_s):
                    read_until_s.append(float(time_s[-1]))
                    reasons += _lost_sources(time_s, rows)
                elif not reasons:
                    reasons.append("no reading yet")
            unread.extend(f"{newest_host}: {reason}" for reason in reasons)
        return Energy(series, unread, min(read_until_s, default=None))

    @cached_property
    def shares(self) -> Floats:
        """Share of each rank's phases and of the rest in the time for which it was part of the job, [N, 6]."""
        shares = np.zeros((self.run.num_ranks, len(PHASES) + 1))
        for rank in self.run.ranks:
            if not rank.updates.num_rows:
                continue
            rows = rank.updates.read("time_s", *(column for column, _ in PHASES))
            # With thinning a row stands for several updates.
            every = int(rank.attributes.get("thinning", 1))
            spent = np.array([np.nansum(rows[column]) * every for column, _ in PHASES])
            spent /= max(float(rows["time_s"][-1]) - absent_s(rank), float(spent.sum()))
            shares[rank.rank] = [*spent, 1 - spent.sum()]
        return shares

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the run."""
        updates = [rank.updates.read("weight", "message_age_s") for rank in self.run.ranks]
        ages = np.concatenate([rows["message_age_s"] for rows in updates])
        ages = ages[np.isfinite(ages)]
        weights = np.concatenate([rows["weight"] for rows in updates])
        return {
            "path": str(self.path),
            "status": self.run.status,
            "seed": self.job.seed,
            "env_steps": self.env_steps,
            "duration_s": self.duration_s,
            "env_steps_per_s": self.env_steps / self.duration_s if self.duration_s else None,
            "num_updates": sum(num_updates(rank) for rank in self.run.all_ranks),
            "num_episodes": len(self.episodes.returns),
            "final_return": final_return(self.episodes),
            "last_numbers": self.last_numbers,
            "num_failures": self.num_failures,
            "effective_step": effective_step(self.run),
            "messages": {key: total(self.run, key) for key in ("sent", "received", "skipped")},
            "message_age_s": {"median": _percentile(ages, 50), "p95": _percentile(ages, 95)},
            "weight": {"min": float(weights.min()), "max": float(weights.max())},
            "distance": self._distance_summary(),
            "phase_shares": self._phase_summary(),
            "energy": self._energy_summary(),
        }

    def _distance_summary(self) -> dict[str, Any]:
        if isinstance(self.distance, str):
            return {"max": None, "reason": self.distance}
        of_all = self.distance.to_mean
        summary: dict[str, Any] = {
            "max": float(of_all.max()),
            "mean": float(of_all.mean()),
            "last_max": float(of_all[-1].max()),
            "relative_max": float(self.distance.relative.max()),
            "relative_error": self.distance.relative_error,
            "apart_s": float(np.median(self.distance.apart_s)),
        }
        if isinstance(self.bound, str):
            return {**summary, "bound": None, "reason": self.bound}
        stacked = np.linalg.norm(of_all[self.bound.moments], axis=1)
        return {
            **summary,
            "bound": {
                "alpha": self.bound.alpha,
                "beta": self.bound.beta,
                "last": float(self.bound.values[-1]),
                "share_of_moments_within": float((stacked <= self.bound.values).mean()),
                "sharp_last": float(self.bound.sharp[-1]),
                "share_of_moments_within_sharp": float((stacked <= self.bound.sharp).mean()),
                "moments": len(stacked),
            },
        }

    def _phase_summary(self) -> dict[str, float]:
        names = [column.removesuffix("_s") for column, _ in PHASES] + ["rest"]
        return dict(zip(names, self.shares.mean(axis=0).tolist(), strict=True))

    def _energy_summary(self) -> dict[str, Any]:
        kwh, covered_s = self.energy.kwh, self.energy.covered_s
        per_million = None
        if kwh is not None and covered_s is not None:
            steps = float(total_env_steps(self.run, np.array([covered_s]))[0])
            per_million = kwh / steps * 1e6 if steps else None
        return {
            "kwh": kwh,
            "kwh_per_million_env_steps": per_million,
            "covered_s": covered_s,
            "scope": ENERGY_SCOPE,
            "reason": self.energy.reason,
            "sources": [
                {"host": host, "source": source, "kwh": float(series[-1])}
                for host, source, _, series in self.energy.series
            ],
        }


@dataclass(frozen=True, eq=False)
class JobReport:
    """Runs of one job that differ in nothing but the seed."""

    label: str
    runs: list[RunReport]

    @property
    def num_ranks(self) -> int:
        """Ranks of each run."""
        return self.runs[0].run.num_ranks

    def final(self) -> Interval | None:
        """Interquartile mean of the runs' final returns; None if a run has too few episodes."""
        finals = [final_return(run.episodes) for run in self.runs]
        known = [value for value in finals if value is not None]
        return over_runs(np.array(known)[:, None]) if len(known) == len(finals) else None

    def curve(self, along: Literal["env_steps", "time_s"]) -> tuple[Floats, Interval]:
        """Return moments and the learning curve there, as far as every run goes."""
        ends = [run.env_steps if along == "env_steps" else run.duration_s for run in self.runs]
        at = np.linspace(0, min(ends), _NUM_MOMENTS + 1)[1:]
        return at, over_runs(np.stack([learning_curve(run.episodes, along, at) for run in self.runs]))

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the job."""
        runs = [run.summary() for run in self.runs]
        final = self.final()
        per_million = [run["energy"]["kwh_per_million_env_steps"] for run in runs]
        return {
            "label": self.label,
            "name": self.runs[0].job.name,
            "num_ranks": self.num_ranks,
            "seeds": [run.job.seed for run in self.runs],
            "env_steps_per_s": float(np.mean([run["env_steps_per_s"] or 0 for run in runs])),
            "final_return": {
                "iqm": None if final is None else float(final.iqm[0]),
                "low": None if final is None else _or_none(final.low[0]),
                "high": None if final is None else _or_none(final.high[0]),
                "interval": 0.95,
                "num_runs": len(runs),
            },
            "kwh_per_million_env_steps": None if None in per_million else float(np.mean(per_million)),
            "runs": runs,
        }


def _lost_sources(time_s: Floats, rows: dict[str, NDArray[Any]]) -> list[str]:
    """Name the sources of a rank's last start that were read no more at its last reading.

    Args:
        time_s: [R] job times, ascending.
        rows: Columns `source` and `energy_j` of its readings, [R] each. Each start begins with a reading of zeros.
    """
    is_zero = rows["energy_j"] == 0
    starts = np.flatnonzero(is_zero & ~np.append(False, is_zero[:-1]))
    sources = rows["source"][starts[-1] if len(starts) else 0 :]
    ends_s = {source: float(time_s[rows["source"] == source][-1]) for source in dict.fromkeys(sources)}
    return [f"{source}: no reading after {end_s:.0f} s" for source, end_s in ends_s.items() if end_s < time_s[-1]]


def _percentile(values: Floats, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
