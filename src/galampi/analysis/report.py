"""`report`: figures, a page and a summary of one or several runs.

Owns which runs belong together, where each figure stands, and the files that are written.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galampi.analysis import page, published
from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.analysis.pooled import distinct, unfinished
from galampi.analysis.shown import shown
from galampi.analysis.statistics import settings_changed
from galampi.analysis.summary import ENERGY_SCOPE, SUMMARY_VERSION, Energy, JobReport, RunReport, has_begun, has_rows
from galampi.errors import ResultsError, UserError
from galampi.job import are_equal, by_key
from galampi.results.files import replace_text
from galampi.results.reader import Run, open_run
from galampi.results.sole import sole_writer

Floats = NDArray[np.float64]

FOLLOW_PERIOD_S = 30.0
"""Between two reports of runs that are followed."""
_GIVE_UP_AFTER_S = 60.0
_MOST_ENERGY_LINES = 6
_OUT_OF_SEVERAL = Path("report")
_TITLE = "\u2013 galampi report"


def follow(
    paths: Sequence[Path],
    out: Path | None,
    *,
    mixed: bool = False,
    tell: Callable[[str], None] = print,
    to_come: Sequence[Path] = (),
) -> str:
    """Write the report of runs again and again until all are finished or Ctrl-C comes; the page loads itself anew.

    Args:
        paths: As `report` has them. While none of them has made an update, there is no page yet.
        out: Likewise.
        mixed: Likewise.
        tell: Called with a line when it has been written.
        to_come: Folders of runs that are in it as soon as they have begun.

    Returns:
        What to print.

    Raises:
        UserError: As from `report`; but once a report was written what hinders the next may pass within a minute, and
            a run whose files cannot be read is taken for one whose resume replaces them.
    """
    failing_since_s: float | None = None
    has_written = False
    for path in paths:
        open_run(path)  # What is not there at the beginning is a mistake, and no resume.
    if out is None and len(paths) + len(to_come) > 1:
        out = _OUT_OF_SEVERAL  # Where it stays while runs begin.
    with terminated_as_interrupted():
        try:
            while True:
                try:
                    begun = [*paths, *(path for path in to_come if has_begun(path))]
                    runs = [open_run(path) for path in begun]
                    # Before the report: rows that were there when a run had finished are in it.
                    are_finished = len(begun) == len(paths) + len(to_come) and _are_finished(runs)
                    if are_finished or any(map(has_rows, runs)):
                        told = report(begun, out, mixed=mixed, refresh_s=None if are_finished else FOLLOW_PERIOD_S)
                        if are_finished:
                            return told
                        has_written = True
                        tell(f"{time.strftime('%F %T')}  wrote {told.splitlines()[-1]}")
                    else:
                        tell(f"{time.strftime('%F %T')}  no update yet")
                    failing_since_s = None
                except UserError as error:
                    # What is wrong with the runs themselves is told at once; what hinders it on the way may pass.
                    if failing_since_s is None and not has_written and not isinstance(error, ResultsError):
                        raise
                    failing_since_s = failing_since_s or time.monotonic()
                    if time.monotonic() - failing_since_s > _GIVE_UP_AFTER_S:
                        raise
                time.sleep(FOLLOW_PERIOD_S)
        except KeyboardInterrupt:
            return "left; the page stays as it was written last"


def report(
    paths: Sequence[Path], out: Path | None = None, *, mixed: bool = False, refresh_s: float | None = None
) -> str:
    """Write the report of one or several runs.

    Args:
        paths: The folders of the runs.
        out: Folder to write to; None for `report` in the folder of a single run, or in the current one.
        mixed: Compare runs though their environments or units differ.
        refresh_s: Seconds after which the page loads itself anew; None if it does not.

    Returns:
        What to print.

    Raises:
        UserError: A run cannot be read, the runs do not compare, or `out` cannot be written or is being written.
    """
    kept, told = distinct([open_run(path) for path in paths])
    told += [line for run in kept if (line := _of_missing_ranks(run))]
    begun = [run for run in kept if has_rows(run)]
    if begun:
        told += [f"{run.path}: holds no update yet; the report is of the others" for run in kept if run not in begun]
    runs = [RunReport(run.path) for run in begun or kept]
    if not mixed:
        _refuse_mixture(runs)
    jobs = _by_job(runs)
    told += [line for job in jobs for line in _of_equal_seeds(job)]
    told += [f"{job.label}: {line}" for job in jobs for line in unfinished([run.run for run in job.runs])]
    summary = _summary(jobs)
    if out is None:
        first = runs[0].run.path
        out = first / "report" if len(runs) == 1 else _OUT_OF_SEVERAL
    before = _figures_before(out)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with sole_writer(out):
            sections = _figures(jobs)
            for name in before - {figure.name for _, made in sections for figure in made}:
                for suffix in ("png", "svg"):
                    (out / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
            body = _body(jobs, summary, sections, out, told)
            # In one step each: a browser may be reading.
            replace_text(out / "index.html", page.page(f"{_title(jobs)} {_TITLE}", body, refresh_s))
            replace_text(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    return "\n".join([*told, _terminal_table(summary), "", str(out / "index.html")])


def _are_finished(runs: Sequence[Run]) -> bool:
    return all(run.status == "finished" for run in runs)


def _figures_before(out: Path) -> set[str]:
    """Return the names of the figures of an earlier report there.

    Raises:
        UserError: Files of the names of a report's are there, and are no report's.
    """
    texts = []
    for name, mark in (("index.html", f"{_TITLE}</title>"), ("summary.json", '"summary_version"')):
        try:
            text = (out / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""  # It is not there, or writing it says why not.
        if text and mark not in text:
            raise UserError(f"{out / name}: is there, and no report's; choose another --out")
        texts.append(text)
    return set(re.findall(r'<figure id="([\w-]+)"', texts[0]))


def _of_missing_ranks(run: Run) -> str:
    """Say that a run has lost files of its ranks; '' if it has not, or may not have written them yet."""
    missing = run.missing_ranks
    if not missing or run.status in ("running", "unknown"):
        return ""
    which = f"rank {missing[0]}" if len(missing) == 1 else f"{len(missing)} of {run.num_ranks} ranks"
    return f"{run.path}: the file of {which} is missing; steps, speed and returns are those of the others alone"


def _of_equal_seeds(job: JobReport) -> list[str]:
    """Say which seeds a job has more than once."""
    return [
        f"{job.label}: {num_runs} runs have seed {seed}; each counts, though they are no seeds apart"
        for seed, num_runs in sorted(Counter(run.job.seed for run in job.runs).items())
        if num_runs > 1
    ]


def _refuse_mixture(runs: Sequence[RunReport]) -> None:
    """Raise UserError unless the runs' returns and env steps mean the same."""

    def settings(run: RunReport) -> dict[str, Any]:
        return {key: value for key, value in run.job.environment.model_dump().items() if key != "num_envs"}

    first = runs[0]
    for other in runs[1:]:
        for key, value in settings(first).items():
            if not are_equal(theirs := settings(other)[key], value):
                raise UserError(
                    f"environment.{key} is {shown(value)} in {first.path} and {shown(theirs)} in {other.path}: their "
                    "returns or env steps do not mean the same; add --mixed to compare them all the same"
                )


def _by_job(runs: Sequence[RunReport]) -> list[JobReport]:
    """Put runs together that differ in nothing but the seed, and name each group by what sets it apart."""
    groups: dict[str, list[RunReport]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = {**by_key(run.job), "ranks": run.run.num_ranks}
        # A run that was half another job's is one of its own kind.
        flat["on the way"] = "; ".join(text for _, text in settings_changed(run.run))
        # Nor where the user's own modules lay: copies of a project train one job.
        del flat["seed"], flat["modules_folder"]
        key = json.dumps(flat, sort_keys=True)
        groups.setdefault(key, []).append(run)
        settings[key] = flat
    # One may have a table's setting that another has not.
    keys = dict.fromkeys(key for flat in settings.values() for key in flat)
    differing = [key for key in keys if len({str(flat.get(key)) for flat in settings.values()}) > 1]
    names = [group[0].job.name for group in groups.values()]
    jobs = []
    for key, group in groups.items():
        name = group[0].job.name
        if names.count(name) > 1:
            words = [word for each in differing if (word := _setting(each, settings[key].get(each)))]
            name = ": ".join(filter(None, (name, ", ".join(words))))
        jobs.append(JobReport(shown(name), sorted(group, key=lambda run: run.job.seed)))
    return jobs


def _setting(key: str, value: object) -> str:
    """Say in few words what sets a job apart; '' if it is that the job has no such setting."""
    if value is None:
        return ""
    if key == "ranks":
        return f"{value} ranks"
    if key == "on the way":
        return f"later {value}" if value else ""
    if key == "total_env_steps":
        return f"{value:,} steps"
    return str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"


def _summary(jobs: Sequence[JobReport]) -> dict[str, Any]:
    return {
        "summary_version": SUMMARY_VERSION,
        "galampi": version("galampi"),
        # Of arguments of its own, which may be infinite.
        "environment": _finite(jobs[0].runs[0].job.environment.model_dump(mode="json")),
        "jobs": [job.summary() for job in jobs],
    }


def _finite(tree: Any) -> Any:
    """Return values as JSON has them: numbers that are not finite as text."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def _figures(jobs: Sequence[JobReport]) -> list[tuple[str, list[Any]]]:
    """Make the figures: headings, each with what stands under it."""
    from galampi.analysis import figures

    sections: list[tuple[str, list[Any]]] = [("Learning", [])]
    for along in ("env_steps", "time_s"):
        curves = []
        for job in jobs:
            at, interval = job.curve(along)
            if np.isfinite(interval.iqm).any():
                alone = figures.dots(job.runs[0].episodes, along) if len(job.runs) == 1 else None
                curves.append(figures.JobCurve(job.label, at, interval, len(job.runs), alone))
        if curves:
            end = max(float(curve.at[-1]) for curve in curves)
            behind, note = _published(jobs, end) if along == "env_steps" else (None, "")
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
            made.append(figures.energy(name, _energy_lines(first.energy), ENERGY_SCOPE))
        sections.append((job.label, made))
    return sections


def _energy_lines(energy: Energy) -> list[tuple[str, Floats, Floats]]:
    """Return label, times and kWh of each source; of each node, or of all, if those are too many lines."""
    by_source: dict[str, list[tuple[Floats, Floats]]] = {}
    by_node: dict[str, list[tuple[Floats, Floats]]] = {}
    for host, source, time_s, kwh in energy.series:
        by_source.setdefault(shown(f"{host} {source}"), []).append((time_s, kwh))
        by_node.setdefault(shown(host), []).append((time_s, kwh))
    everything = {f"{len(by_node)} nodes": [(time_s, kwh) for _, _, time_s, kwh in energy.series]}
    groups = next(
        each for each in (by_source, by_node, everything) if len(each) <= _MOST_ENERGY_LINES or each is everything
    )
    lines = []
    for label, members in groups.items():
        # Nodes read at moments of their own, and a restart may leave some and begin on others.
        at_s = np.unique(np.concatenate([time_s for time_s, _ in members]))
        total = sum(np.interp(at_s, np.append(0.0, time_s), np.append(0.0, kwh)) for time_s, kwh in members)
        lines.append((label, at_s, np.asarray(total)))
    return lines


def _published(jobs: Sequence[JobReport], end: float) -> tuple[published.Curve | None, str]:
    """Return the published curve of the game and what the caption says of it.

    Args:
        jobs: Those that are compared; there is no curve unless all play its game in its units.
        end: Env steps at which the longest of their curves ends.
    """
    environments = [job.runs[0].job.environment for job in jobs]
    curve = published.A2C_CURVES.get(environments[0].id.rpartition(":")[2])
    same = {(each.id, each.frame_skip) for each in environments} == {(environments[0].id, published.FRAME_SKIP)}
    if curve is None or not same:
        return None, ""
    if end < curve.env_steps[0]:
        return (
            None,
            f"A published A2C curve of this game begins at {curve.env_steps[0]:,.0f} env steps, beyond what is shown.",
        )
    sticky = sorted({each.repeat_action_probability for each in environments})
    words = " or ".join(f"{each:g}" for each in sticky)
    unlike = f" Unlike there, actions are sticky here with probability {words}." if any(sticky) else ""
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
    jobs: Sequence[JobReport],
    summary: dict[str, Any],
    sections: Sequence[tuple[str, list[Any]]],
    out: Path,
    told: Sequence[str],
) -> list[str]:
    """Write the figures' files and return the parts of the page."""
    environment = summary["environment"]
    frames = (
        f", {environment['frame_skip']} emulator frames an env step" if jobs[0].runs[0].job.environment.is_atari else ""
    )
    body = [
        page.heading(1, _title(jobs)),
        page.paragraph(f"{environment['id']}{frames}", faint=True),
        *(page.paragraph(shown(line)) for line in told),
        page.table(_COLUMNS, [[*_cells(job)] for job in summary["jobs"]]),
        page.paragraph(
            "Return: mean of the last 100 episodes of all ranks, raw score of full games, or what the environment's "
            "wrappers make of it; over several runs the interquartile mean with its 95 % bootstrap interval. Step: the "
            "effective step, how far the ensemble moved over what its ranks' optimizer steps asked for; mean over "
            "runs. Distance: greatest distance of a rank to the mean of all, in percent of the parameters' norm. "
            "Energy: of what could be read; see below.",
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
    if gossip.message != "full":
        exchange += f", messages of {gossip.message}"
    if gossip.delay_updates:
        exchange += f", delayed by {gossip.delay_updates} updates"
    if gossip.method in ("none", "allreduce"):
        exchange = {"none": "no exchange", "allreduce": "gradients averaged by allreduce"}[gossip.method]
    which = f"The figures show seed {first.job.seed} of {len(job.runs)} runs." if len(job.runs) > 1 else ""
    kwh = first.energy.kwh
    used = f"{kwh:.3g} kWh." if kwh is not None else "not known."
    why = f" Not read: {first.energy.reason}." if first.energy.reason else ""
    distance = "" if not isinstance(first.distance, str) else f" No distances between ranks: {first.distance}."
    num_left = len(first.run.all_ranks) - job.num_ranks
    left = f" Until it was resumed on fewer there were {num_left} more, who count in all sums." if num_left else ""
    told = ", ".join(f"{shown(name)} {value:.4g}" for name, value in first.last_numbers.items())
    numbers = f" Means of what the environment tells of an episode, over the last 100: {told}." if told else ""
    count = first.num_failures
    failures = f" Simulators raised exceptions {count} times, see /failures." if count else ""
    changes = "".join(
        f" From update {update:,} of rank 0 on: {shown(text)}." for update, text in settings_changed(first.run)
    )
    return (
        f"{job.num_ranks} ranks of {first.job.environment.num_envs} simulators, {exchange}; {first.run.status}.{left}"
        f"{changes} {which}{numbers}{failures} Energy: {used}{why}{distance}"
    )


_COLUMNS = ("job", "ranks", "runs", "env steps", "steps/s", "return", "step", "distance", "kWh / M steps")


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table, from the summary of a job."""
    final = job["final_return"]
    returned = "-" if final["iqm"] is None else f"{final['iqm']:.4g}"
    if final["low"] is not None:
        returned += f" [{final['low']:.4g}, {final['high']:.4g}]"
    relative = [run["distance"].get("relative_max") for run in job["runs"]]
    known = [value for value in relative if value is not None]
    per_million = job["kwh_per_million_env_steps"]
    steps = [run["effective_step"] for run in job["runs"]]
    return (
        job["label"],
        str(job["num_ranks"]),
        str(len(job["runs"])),
        f"{np.mean([run['env_steps'] for run in job['runs']]):,.0f}",
        f"{job['env_steps_per_s']:,.0f}",
        returned,
        "-" if None in steps else f"{np.mean(steps):.3f}",
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
