"""What is asked of runs most often, in a call each: learning curves and final returns, with intervals over runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from galampi.analysis import statistics
from galampi.analysis.pooled import distinct, unfinished, unlike
from galampi.analysis.statistics import Floats, Interval, duration_s, episodes, learning_curve, over_runs, total
from galampi.errors import ResultsError, UserError, one_of
from galampi.results.reader import Run, open_run

Place = str | Path
Along = Literal["env_steps", "time_s"]


@dataclass(frozen=True, eq=False)
class Curve(Interval):
    """A learning curve: the mean return of the last 100 episodes, as interquartile mean over runs.

    Attributes:
        at: [M] moments, in env steps of all ranks or in s of job time.
    """

    at: Floats


def curve(
    runs: Run | Place | Sequence[Run | Place],
    along: Along = "env_steps",
    num_moments: int = 200,
) -> Curve:
    """Return the learning curve of a run, or of several that are one job with different seeds.

    Args:
        runs: Or their folders. One, whose curve is `iqm` and has no interval; or several, with a 95 % bootstrap
            interval (scipy). Copies of a run count once; of them, and of runs that are no seeds of one job, a warning
            tells.
        along: What the moments count.
        num_moments: M; they divide what every run has equally. NaN where a run had ended fewer than 10 episodes.

    Raises:
        UserError: No run is given, one cannot be read, or `along` is neither.
    """
    one_of("along", along, get_args(Along))
    runs = _opened(runs)
    ends = [total(run, "env_steps") if along == "env_steps" else duration_s(run) for run in runs]
    at = np.linspace(0, min(ends), num_moments + 1)[1:]
    over = over_runs(np.stack([learning_curve(episodes(run), along, at) for run in runs]))
    return Curve(over.iqm, over.low, over.high, at)


def final_return(runs: Run | Place | Sequence[Run | Place]) -> tuple[float, float, float]:
    """Return the mean return of the last 100 episodes of each run, as `curve` puts them together, and its interval.

    Of runs that have not finished it is that of their own ends, of which a warning tells.

    Raises:
        ResultsError: Fewer than 10 episodes of a run have ended.
        UserError: No run is given, or one cannot be read.
    """
    runs = _opened(runs)
    for line in unfinished(runs):
        warnings.warn(line, stacklevel=2)
    finals = [statistics.final_return(episodes(run)) for run in runs]
    for run, final in zip(runs, finals, strict=True):
        if final is None:
            raise ResultsError(f"{run.path}: too few episodes have ended for a return")
    over = over_runs(np.array(finals, np.float64)[:, None])
    return float(over.iqm[0]), float(over.low[0]), float(over.high[0])


def _opened(runs: Run | Place | Sequence[Run | Place]) -> list[Run]:
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    if not given:
        raise UserError("a run is wanted, or several; none is given")
    kept, told = distinct([each if isinstance(each, Run) else open_run(each) for each in given])
    for line in (*told, *unlike(kept)):
        warnings.warn(line, stacklevel=3)
    return kept
