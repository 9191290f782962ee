"""`report`: figures, a page and a summary of one or several runs.

Owns which runs belong together, what is said of each, and the files that are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from galampi.errors import ResultsError, UserError
from galampi.job import Job, parse_job
from galampi.results import page, published
from galampi.results.ball import Bound, bound
from galampi.results.reader import ConsensusDistance, open_run
from galampi.results.shown import shown
from galampi.results.statistics import (
    Episodes,
    Interval,
    duration_s,
    episodes,
    final_return,
    last,
    learning_curve,
    over_runs,
    since_start,
    total_env_steps,
)

Floats = NDArray[np.float64]

SUMMARY_VERSION = 2
"""Version of the layout of summary.json, which docs/report.md states."""
_JOULES_A_KWH = 3.6e6
_NUM_MOMENTS = 300
_MOST_ENERGY_LINES = 6
_SCOPE = (
    "Whole nodes: processor packages and their dram by RAPL, GPUs by NVML; not disks, network, fans and power "
    "supplies. Other jobs on the same nodes are counted too."
)


@dataclass(frozen=True, eq=False)
class Energy:
    """Energy a run used, by source.

    Attributes:
        series: Host, source, job times in s and kWh since the start of the job.
        unread: What could not be read, with the reasons.
    """

    series: list[tuple[str, str, Floats, Floats]]
    unread: list[str]

    @property
    def kwh(self) -> float | None:
        """Sum of all sources that were read; None if none was."""
        return sum(float(kwh[-1]) for *_, kwh in self.series) if self.series else None

    @property
    def reason(self) -> str | None:
        """Why there is no sum, or why it is not whole."""
        return "; ".join(self.unread) or None


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
        if not any(rank.updates.num_rows for rank in self.run.ranks):
            raise ResultsError(f"{path}: holds no update yet; nothing to report")
        self.env_steps = sum(int(last(r.updates, "env_steps")) for r in self.run.ranks if r.updates.num_rows)

    @cached_property
    def episodes(self) -> Episodes:
        """Episodes of all ranks."""
        return episodes(self.run)

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
        """Energy used."""
        found = Energy([], [])
        known = [rank for rank in self.run.ranks if "energy_unread" in rank.attributes]
        if not known:
            found.unread.append("the run is of a galampi that did not record energy")
        for rank in known:
            host = str(rank.attributes.get("hostname", f"node of rank {rank.rank}"))
            found.unread.extend(f"{host}: {line}" for line in str(rank.attributes["energy_unread"]).splitlines())
            rows = rank.energy.read("time_s", "source", "energy_j")
            for source in dict.fromkeys(rows["source"]):
                mine = rows["source"] == source
                kwh = since_start(rows["energy_j"][mine]) / _JOULES_A_KWH
                found.series.append((host, str(source), rows["time_s"][mine], kwh))
        return found

    @cached_property
    def shares(self) -> Floats:
        """Share of job time of each rank's phases and of the rest, [N, 6]."""
        from galampi.results.figures import PHASES

        shares = np.zeros((self.run.num_ranks, len(PHASES) + 1))
        for rank in self.run.ranks:
            if not rank.updates.num_rows:
                continue
            rows = rank.updates.read("time_s", *(column for column, _ in PHASES))
            # With thinning a row stands for several updates.
            every = int(rank.attributes.get("thinning", 1))
            spent = np.array([np.nansum(rows[column]) * every for column, _ in PHASES])
            spent /= max(float(rows["time_s"][-1]), float(spent.sum()))
            shares[rank.rank] = [*spent, 1 - spent.sum()]
        return shares

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the run."""
        updates = [rank.updates.read("update", "weight", "message_age_s") for rank in self.run.ranks]
        ages = np.concatenate([rows["message_age_s"] for rows in updates])
        ages = ages[np.isfinite(ages)]
        weights = np.concatenate([rows["weight"] for rows in updates])
        counts = {
            key: sum(int(last(rank.updates, key)) for rank in self.run.ranks if rank.updates.num_rows)
            for key in ("sent", "received", "skipped")
        }
        return {
            "path": str(self.path),
            "status": self.run.status,
            "seed": self.job.seed,
            "env_steps": self.env_steps,
            "duration_s": self.duration_s,
            "env_steps_per_s": self.env_steps / self.duration_s if self.duration_s else None,
            "num_updates": sum(int(rows["update"][-1]) for rows in updates if len(rows["update"])),
            "num_episodes": len(self.episodes.returns),
            "final_return": final_return(self.episodes),
            "messages": counts,
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
        from galampi.results.figures import PHASES

        names = [column.removesuffix("_s") for column, _ in PHASES] + ["rest"]
        return dict(zip(names, self.shares.mean(axis=0).tolist(), strict=True))

    def _energy_summary(self) -> dict[str, Any]:
        kwh = self.energy.kwh
        covered_s = min((float(time_s[-1]) for _, _, time_s, _ in self.energy.series), default=None)
        per_million = None
        if kwh is not None and covered_s is not None:
            steps = float(total_env_steps(self.run, np.array([covered_s]))[0])
            per_million = kwh / steps * 1e6 if steps else None
        return {
            "kwh": kwh,
            "kwh_per_million_env_steps": per_million,
            "covered_s": covered_s,
            "scope": _SCOPE,
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


def report(paths: Sequence[Path], out: Path | None = None, *, mixed: bool = False) -> str:
    """Write the report of one or several runs.

    Args:
        paths: The folders of the runs.
        out: Folder to write to; None for `report` in the folder of a single run, or in the current one.
        mixed: Compare runs though their environments or units differ.

    Returns:
        What to print.

    Raises:
        UserError: A run cannot be read, the runs do not compare, or `out` cannot be written.
    """
    unique = {path.resolve(): path for path in paths}
    runs = [RunReport(path) for path in unique.values()]
    if not mixed:
        _refuse_mixture(runs)
    jobs = _by_job(runs)
    summary = _summary(jobs)
    if out is None:
        first = runs[0].run.path
        out = first / "report" if len(runs) == 1 else Path("report")
    pictures = _figures(jobs)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        body = _body(jobs, summary, pictures, out)
        (out / "index.html").write_text(page.page(f"{_title(jobs)} \u2013 galampi report", body), encoding="utf-8")
        (out / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    return f"{_terminal_table(summary)}\n\n{out / 'index.html'}"


def _refuse_mixture(runs: Sequence[RunReport]) -> None:
    """Raise UserError unless the runs' returns and env steps mean the same."""

    def settings(run: RunReport) -> dict[str, Any]:
        return {key: value for key, value in run.job.environment.model_dump().items() if key != "num_envs"}

    first = runs[0]
    for other in runs[1:]:
        for key, value in settings(first).items():
            if (theirs := settings(other)[key]) != value:
                raise UserError(
                    f"environment.{key} is {shown(value)} in {first.path} and {shown(theirs)} in {other.path}: their "
                    "returns or env steps do not mean the same; add --mixed to compare them all the same"
                )


def _by_job(runs: Sequence[RunReport]) -> list[JobReport]:
    """Put runs together that differ in nothing but the seed, and name each group by what sets it apart."""
    groups: dict[str, list[RunReport]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = _flat({**run.job.model_dump(mode="json"), "ranks": run.run.num_ranks})
        del flat["seed"]
        key = json.dumps(flat, sort_keys=True)
        groups.setdefault(key, []).append(run)
        settings[key] = flat
    differing = [key for key in next(iter(settings.values())) if len({str(s.get(key)) for s in settings.values()}) > 1]
    names = [group[0].job.name for group in groups.values()]
    jobs = []
    for key, group in groups.items():
        name = group[0].job.name
        if names.count(name) > 1:
            name = f"{name}: {', '.join(_setting(each, settings[key][each]) for each in differing)}"
        jobs.append(JobReport(shown(name), sorted(group, key=lambda run: run.job.seed)))
    return jobs


def _setting(key: str, value: object) -> str:
    """Say in few words what sets a job apart."""
    if key == "ranks":
        return f"{value} ranks"
    if key == "total_env_steps":
        return f"{value:,} steps"
    return str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _summary(jobs: Sequence[JobReport]) -> dict[str, Any]:
    return {
        "summary_version": SUMMARY_VERSION,
        "galampi": version("galampi"),
        "environment": jobs[0].runs[0].job.environment.model_dump(mode="json"),
        "jobs": [job.summary() for job in jobs],
    }


def _figures(jobs: Sequence[JobReport]) -> list[tuple[str, list[Any]]]:
    """Make the figures: headings, each with what stands under it."""
    from galampi.results import figures

    sections: list[tuple[str, list[Any]]] = [("Learning", [])]
    for along in ("env_steps", "time_s"):
        curves = []
        for job in jobs:
            at, interval = job.curve(along)
            if np.isfinite(interval.iqm).any():
                alone = figures.dots(job.runs[0].episodes, along) if len(job.runs) == 1 else None
                curves.append(figures.JobCurve(job.label, at, interval, len(job.runs), alone))
        if curves:
            behind, note = _published(jobs, curves[0].at) if along == "env_steps" else (None, "")
            name = f"return-{'steps' if along == 'env_steps' else 'time'}"
            note = f"{_runs_note(jobs)} {note}".strip()
            figure = figures.learning_curves(curves, along=along, published=behind, name=name, note=note)
            sections[0][1].append(figure)
    for number, job in enumerate(jobs, 1):
        first = job.runs[0]
        name = f"job{number}"
        made: list[Any] = []
        if not isinstance(first.distance, str):
            made += figures.distances(name, first.distance, first.bound)
            made.append(figures.pairs(name, first.distance))
        if first.run.num_ranks > 1 and first.job.gossip.method not in ("none", "allreduce"):
            made += [figures.weights(name, first.run), figures.message_age(name, first.run)]
            made.append(figures.messages(name, first.run))
        made += [figures.phases(name, first.shares), figures.speed(name, first.run)]
        made += figures.training(name, first.run)
        if first.energy.series:
            made.append(figures.energy(name, _energy_lines(first.energy), _SCOPE))
        sections.append((job.label, made))
    return sections


def _energy_lines(energy: Energy) -> list[tuple[str, Floats, Floats]]:
    """Return label, times and kWh of each source; of each node, or of all, if those are too many lines."""
    by_source = {f"{host} {source}": [(time_s, kwh)] for host, source, time_s, kwh in energy.series}
    by_node: dict[str, list[tuple[Floats, Floats]]] = {}
    for host, _, time_s, kwh in energy.series:
        by_node.setdefault(host, []).append((time_s, kwh))
    everything = {f"{len(by_node)} nodes": [(time_s, kwh) for _, _, time_s, kwh in energy.series]}
    groups = next(
        each for each in (by_source, by_node, everything) if len(each) <= _MOST_ENERGY_LINES or each is everything
    )
    lines = []
    for label, members in groups.items():
        # Nodes read at moments of their own.
        at_s = members[0][0]
        total = sum(np.interp(at_s, np.append(0.0, time_s), np.append(0.0, kwh)) for time_s, kwh in members)
        lines.append((label, at_s, np.asarray(total)))
    return lines


def _published(jobs: Sequence[JobReport], at: Floats) -> tuple[published.Curve | None, str]:
    """Return the published curve of the game and what the caption says of it."""
    environment = jobs[0].runs[0].job.environment
    curve = published.A2C_CURVES.get(environment.id)
    if curve is None or environment.frame_skip != published.FRAME_SKIP:
        return None, ""
    if at[-1] < curve.env_steps[0]:
        return (
            None,
            f"A published A2C curve of this game begins at {curve.env_steps[0]:,.0f} env steps, beyond this run.",
        )
    sticky = environment.repeat_action_probability
    unlike = f" Unlike there, actions are sticky here with probability {sticky:g}." if sticky else ""
    return curve, f"Dashed, published: {curve.source}.{unlike}"


def _runs_note(jobs: Sequence[JobReport]) -> str:
    counts = {len(job.runs) for job in jobs}
    if counts == {1}:
        return "One run, so there is no interval." if len(jobs) == 1 else "One run of each job: no intervals."
    number = f"{counts.pop()} runs (seeds)" if len(counts) == 1 else "the runs (seeds)"
    return (
        f"Lines: interquartile mean over {number} of a job (of fewer than four runs it leaves none out); bands: 95 % "
        "percentile bootstrap over runs, 5000 resamples. A line ends where the shortest run of its job does."
    )


def _body(
    jobs: Sequence[JobReport], summary: dict[str, Any], sections: Sequence[tuple[str, list[Any]]], out: Path
) -> list[str]:
    """Write the figures' files and return the parts of the page."""
    environment = summary["environment"]
    frames = (
        f", {environment['frame_skip']} emulator frames an env step" if environment["id"].startswith("ALE/") else ""
    )
    body = [
        page.heading(1, _title(jobs)),
        page.paragraph(f"{environment['id']}{frames}", faint=True),
        page.table(_COLUMNS, [[*_cells(job)] for job in summary["jobs"]]),
        page.paragraph(
            "Return: mean of the last 100 episodes of all ranks, raw score of full games; over several runs the "
            "interquartile mean with its 95 % bootstrap interval. Distance: greatest distance of a rank to the mean of "
            "all, in percent of the parameters' norm. Energy: of what could be read; see below.",
            faint=True,
        ),
    ]
    for number, (heading, made) in enumerate(sections):
        body.append(page.heading(2, heading))
        if number:
            job = jobs[number - 1]
            body.append(page.paragraph(_about(job), faint=True))
        pictures = []
        for figure in made:
            png, svg = figure.render()
            (out / "figures" / f"{figure.name}.png").write_bytes(png)
            (out / "figures" / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
            pictures.append((figure.name, figure.title, figure.caption, svg))
        body.append(page.figures(pictures))
        if number:
            first = jobs[number - 1].runs[0]
            lines = [f"{key} = {value}" for key, value in sorted(first.run.attributes.items()) if key != "job_toml"]
            body.append(
                page.folded("The job and where it ran", {"Job": first.run.job_toml, "Record": "\n".join(lines)})
            )
    body.append(
        page.paragraph(
            f"Made by galampi {summary['galampi']}. The figures lie beside this page as PNG and SVG in figures/, the "
            "numbers in summary.json.",
            faint=True,
        )
    )
    return body


def _title(jobs: Sequence[JobReport]) -> str:
    return ", ".join(dict.fromkeys(job.runs[0].job.name for job in jobs))


def _about(job: JobReport) -> str:
    first = job.runs[0]
    gossip = first.job.gossip
    exchange = f"{gossip.method} over the {gossip.topology} graph"
    if gossip.method in ("none", "allreduce"):
        exchange = {"none": "no exchange", "allreduce": "gradients averaged by allreduce"}[gossip.method]
    which = f"The figures show seed {first.job.seed} of {len(job.runs)} runs." if len(job.runs) > 1 else ""
    kwh = first.energy.kwh
    used = f"{kwh:.3g} kWh." if kwh is not None else "not known."
    why = f" Not read: {first.energy.reason}." if first.energy.reason else ""
    distance = "" if not isinstance(first.distance, str) else f" No distances between ranks: {first.distance}."
    return (
        f"{job.num_ranks} ranks of {first.job.environment.num_envs} simulators, {exchange}; {first.run.status}. "
        f"{which} Energy: {used}{why}{distance}"
    )


_COLUMNS = ("job", "ranks", "runs", "env steps", "steps/s", "return", "distance", "kWh / M steps")


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table, from the summary of a job."""
    final = job["final_return"]
    returned = "-" if final["iqm"] is None else f"{final['iqm']:.4g}"
    if final["low"] is not None:
        returned += f" [{final['low']:.4g}, {final['high']:.4g}]"
    relative = [run["distance"].get("relative_max") for run in job["runs"]]
    known = [value for value in relative if value is not None]
    per_million = job["kwh_per_million_env_steps"]
    return (
        job["label"],
        str(job["num_ranks"]),
        str(len(job["runs"])),
        f"{np.mean([run['env_steps'] for run in job['runs']]):,.0f}",
        f"{job['env_steps_per_s']:,.0f}",
        returned,
        f"{max(known):.2%}" if known else "-",
        "-" if per_million is None else f"{per_million:.3g}",
    )


def _terminal_table(summary: dict[str, Any]) -> str:
    rows = [_COLUMNS, *(_cells(job) for job in summary["jobs"])]
    rows = [(row[0] if len(row[0]) <= 32 else f"{row[0][:31]}\u2026", *row[1:]) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _percentile(values: Floats, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
