"""The outcome of an experiment as text: which numbers are shown, and how they are said."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.comparison import difference, interquartile_mean, probability_of_improvement, share
from galampi.experiments.outcome import Arm, Outcome, growth, relative
from galampi.experiments.plan import Plan
from galampi.job import parse_job
from galampi.results.sketch import relative_error

WIDTH = 110
_LEGENDS = {
    "return": "final return: mean of the last 100 episodes; area: mean of the learning curve from the tenth episode "
    "on; both as interquartile means over runs; factor: on the tuned setting; in the ball: runs within the bound of "
    "Proposition 1 whenever they were seen; differences: paired, mean over the seeds of both; intervals of 95 %",
    "steps": "env steps to it: of all ranks, until the mean return of 100 episodes first is the threshold, to a 200th "
    "of the budget; of the runs that get there the median, least and greatest; final return: mean of the last 100 "
    "episodes, as interquartile mean over runs; differences: paired, mean over the seeds of both that get there; "
    "intervals of 95 %",
    "distance": "distance: of all ranks to their mean, over the norm of their parameters, and the bound of Proposition "
    "1 on it, medians over time; final return: mean of the last 100 episodes; all as interquartile means over runs; in "
    "the ball: runs within the bound whenever they were seen, of runs that average no messages those that end within "
    "the greatest bound of the baseline's run of their seed; intervals of 95 %",
    "sketch": "distances: of each rank to the mean of all at each checkpoint that was kept; exact: from all "
    "parameters, median; error: of the same distance by sketches of that size, root of the mean square and greatest; "
    "stated: 1 / sqrt(2 size)",
    "faults": "faults: of each run, mean; env steps lost: done and done again, a run, mean; time lost: under way for "
    "longer than the baseline's run of the same seed, mean; final return: mean of the last 100 episodes; area: mean of "
    "the learning curve from the tenth episode on; both as interquartile means over runs; differences: paired, mean "
    "over the seeds of both; intervals of 95 %",
}


def table(outcome: Outcome) -> str:
    """Write what an experiment comes to, with the claim and what would refute it, as lines of text."""
    plan = outcome.plan
    dates = sorted({str(run.about["date"]) for run in outcome.runs})
    processors = ", ".join(sorted({str(run.about["processor"]) for run in outcome.runs}))
    planned = len(plan.arms) * len(plan.seeds)
    lines = [
        *textwrap.wrap(f"claim: {plan.claim}", WIDTH),
        *textwrap.wrap(f"refuted if: {plan.refuted_if}", WIDTH),
        "",
        f"{len(outcome.runs)} of {planned} runs, {plan.num_ranks} ranks each; {processors}; "
        f"{dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}",
    ]
    lines += textwrap.wrap(_LEGENDS[plan.statistic], WIDTH)
    for group, arms in outcome.groups.items():
        there = [arm for arm in arms if arm.runs]
        lines += ["", group or "all runs"]
        if there:
            lines += [*_TABLES[plan.statistic](outcome, there), *_notes(there)]
        if lacking := [arm.value for arm in arms if not arm.runs]:
            lines.append(f"  no runs yet: {', '.join(lacking)}")
    return "\n".join(lines)


def _notes(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield what a reader must know of the runs of a group that are not like the others."""
    for arm in arms:
        if without := len(arm.runs) - len(arm.with_returns):
            yield f"  {arm.value}: {_runs(without)} had too few episodes for a return; no success, and in no mean"
        ended = [run for run in arm.runs.values() if run.share_done < 1]
        if ended:
            least = min(run.share_done for run in ended)
            yield f"  {arm.value}: {_runs(len(ended))} ended before the env steps were done, the first at {least:.1%}"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def seeds_text(count: int) -> str:
    """Say how many seeds there are."""
    return f"{count} seed{'s' * (count != 1)}"


def _rows(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the lines of a group: a table of its arms, and of each but the baseline how it compares with that."""
    plan = outcome.plan
    rows: list[tuple[str, ...]] = [
        ("", "runs", "factor", f"return >= {plan.threshold:g}", "final return", "area", "effective step", "in the ball")
    ]
    for arm in arms:
        runs = list(arm.runs.values())
        inside = [run.share_inside for run in runs if np.isfinite(run.share_inside)]
        rows.append(
            (
                arm.value,
                str(len(runs)),
                "-" if arm.factor is None else f"{arm.factor:g}",
                f"{share(arm.num_successes(plan.threshold), len(runs)):.2f}",
                *_returns(outcome, arm.finals, arm.areas),
                _mean([float(run.about["effective_step"]) for run in runs]),
                f"{sum(each == 1 for each in inside)} of {len(inside)}" if inside else "-",
            )
        )
    yield from aligned(rows)
    yield from _comparisons(outcome, arms)


def _steps(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the lines of a group: how soon each arm reaches the threshold; and by how much the others are sooner."""
    threshold = outcome.plan.threshold
    took = {arm.value: {seed: run.steps_to(threshold) for seed, run in arm.runs.items()} for arm in arms}
    rows: list[tuple[str, ...]] = [
        ("", "runs", f"reach {threshold:g}", "env steps to it", "least", "greatest", "final return")
    ]
    for arm in arms:
        steps = np.array(list(took[arm.value].values()))
        reached = steps[np.isfinite(steps)]
        of_steps = [f"{each(reached):,.0f}" if len(reached) else "-" for each in (np.median, np.min, np.max)]
        reach = f"{share(len(reached), len(steps)):.2f}"
        rows.append((arm.value, str(len(steps)), reach, *of_steps, *_returns(outcome, arm.finals)))
    yield from aligned(rows)
    baseline = outcome.plan.baseline
    theirs = took.get(baseline, {})
    for value, own in took.items():
        seeds = [seed for seed in own if np.isfinite(own[seed]) and np.isfinite(theirs.get(seed, np.nan))]
        if value != baseline and seeds:
            more = difference(*(np.array([each[seed] for seed in seeds]) for each in (own, theirs)))
            yield f"  {value} less {baseline} over {seeds_text(len(seeds))}: env steps to it {more:+,.0f}"


def _percent(values: NDArray[np.float64]) -> str:
    """Write the interquartile mean of a number of each run; a dash if one has none."""
    return f"{interquartile_mean(values):.2f}" if np.isfinite(values).all() else "-"


def _returns(outcome: Outcome, *values: NDArray[np.float64]) -> Iterator[str]:
    """Write the interquartile means of some returns over runs; a dash where there are none."""
    for each in values:
        yield f"{interquartile_mean(each):.{outcome.decimals}f}" if len(each) else "-"


def _mean(values: Sequence[float]) -> str:
    """Write the mean of numbers; a dash where there are none."""
    return f"{np.mean(values):.3f}" if np.isfinite(values).all() else "-"


def _comparisons(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield how each arm but the baseline compares with that."""
    baseline = _baseline(outcome.plan, arms)
    for arm in arms:
        if baseline is None or arm is baseline:
            continue
        seeds = [seed for seed in arm.with_returns if seed in baseline.with_returns]
        if seeds:
            yield f"  {arm.value} less {baseline.value} over {seeds_text(len(seeds))}:"
            yield from _beside(arm, baseline, seeds, outcome.decimals)


def _baseline(plan: Plan, arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that the others are compared with; None while it has no runs."""
    return next((arm for arm in arms if arm.value == plan.baseline), None)


def _distances(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the lines of a group: how far apart the ranks of each arm are; and how that grows with what is compared."""
    plan = outcome.plan
    baseline = _baseline(plan, arms)
    rows: list[tuple[str, ...]] = [
        ("", "runs", "distance, %", "bound, %", "in the ball", f"return >= {plan.threshold:g}", "final return")
    ]
    for arm in arms:
        runs, distances, bounds = arm.runs, relative(arm, "distance"), relative(arm, "bound")
        if any(len(run.bound) for run in runs.values()):
            inside = [run.share_inside == 1 for run in runs.values() if np.isfinite(run.share_inside)]
        else:
            theirs = baseline.runs if baseline is not None else {}
            bounded = {seed: run for seed, run in theirs.items() if len(run.bound)}
            inside = [
                run.is_within(bounded[seed]) for seed, run in runs.items() if seed in bounded and len(run.distance)
            ]
        rows.append(
            (
                arm.value,
                str(len(runs)),
                *(_percent(each) for each in (distances, bounds)),
                f"{sum(inside)} of {len(inside)}" if inside else "-",
                f"{share(arm.num_successes(plan.threshold), len(runs)):.2f}",
                *_returns(outcome, arm.finals),
            )
        )
    yield from aligned(rows)
    numbers = [arm for arm in arms if (arm.number or 0.0) > 0]
    distance, bound = (growth(numbers, what) for what in ("distance", "bound"))
    if distance is not None and bound is not None:
        yield f"  exponent of their growth with {plan.compared} above 0: distance {distance:.2f}, bound {bound:.2f}"


def _costs(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the lines of a group: what faults cost; and how the returns compare with those of the baseline."""
    baseline = _baseline(outcome.plan, arms)
    rows: list[tuple[str, ...]] = [("", "runs", "faults", "env steps lost", "time lost, s", "final return", "area")]
    for arm in arms:
        runs = list(arm.runs.values())
        lost_s = "-"
        seeds = [seed for seed in arm.runs if seed in baseline.runs] if baseline is not None else []
        if baseline is not None and arm is not baseline and seeds:
            took = [np.array([each.runs[seed].about["wall_s"] for seed in seeds]) for each in (arm, baseline)]
            lost_s = f"{difference(*took):+.1f}"
        rows.append(
            (
                arm.value,
                str(len(runs)),
                f"{np.mean([run.about['num_faults'] for run in runs]):.1f}",
                f"{np.mean([run.about['lost_env_steps'] for run in runs]):,.0f}",
                lost_s,
                *_returns(outcome, arm.finals, arm.areas),
            )
        )
    yield from aligned(rows)
    yield from _comparisons(outcome, arms)


def _sketches(outcome: Outcome, arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the lines of a group: how far distances by sketches are off those computed from all parameters."""
    rows = [("", "runs", "distances", "exact", "error, %", "greatest, %", "stated, %")]
    for arm in arms:
        runs = list(arm.runs.values())
        errors = 100 * np.concatenate([run.sketch_errors for run in runs])
        exact = np.concatenate([run.exact_distance for run in runs])
        if not len(exact):
            # Of which checkpoint.keep_every_updates keeps none there is nothing to compare.
            rows.append((arm.value, str(len(runs)), "0", "-", "-", "-", "-"))
            continue
        sizes = {int(parse_job(str(run.about["job_toml"]), "kept").record.sketch_size) for run in runs}
        rows.append(
            (
                arm.value,
                str(len(runs)),
                str(len(errors)),
                f"{np.median(exact):.3g}",
                f"{np.sqrt(np.mean(errors**2)):.2f}",
                f"{np.abs(errors).max():.2f}",
                ", ".join(f"{100 * relative_error(size):.2f}" for size in sorted(sizes)),
            )
        )
    yield from aligned(rows)


_TABLES = {"return": _rows, "steps": _steps, "distance": _distances, "faults": _costs, "sketch": _sketches}


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(["", *(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))]).rstrip()


def _beside(arm: Arm, baseline: Arm, seeds: Sequence[int], decimals: int) -> Iterator[str]:
    """Yield how an arm compares with the baseline over the seeds of both."""
    for name, attribute in (("final return", "final_return"), ("area", "area")):
        own, theirs = (np.array([getattr(each.runs[seed], attribute) for seed in seeds]) for each in (arm, baseline))
        yield (
            f"    {name} {difference(own, theirs):+.{decimals}f}, better with probability "
            f"{probability_of_improvement(own, theirs):.2f}"
        )
