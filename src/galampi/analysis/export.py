"""Results for other programs: TensorBoard's event files, and the scores that rliable compares."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from galampi.analysis.mirror.following import RunMirror
from galampi.analysis.mirror.tensorboard import TensorBoardPlace
from galampi.analysis.pooled import distinct, unfinished, unlike
from galampi.analysis.statistics import episodes, final_return
from galampi.errors import ResultsError, UserError
from galampi.job import Job, parse_job
from galampi.results.evaluation import EVALUATION_FILE_NAME, Actions, load_evaluation
from galampi.results.files import refuse_other_kind
from galampi.results.reader import Run

Scores = dict[str, list[list[float]]]
Score = Literal["training", "evaluation", "evaluation-greedy"]
"""Mean return of the last 100 episodes of training, or of episodes of `evaluation.h5`: those whose actions were drawn,
or those that took the most probable ones."""


def write_tensorboard(run: Run, folder: Path) -> int:
    """Write every row of `updates` and `episodes`, and the power used, as TensorBoard events; what is there stays.

    Each rank, also one that has left the job, becomes a TensorBoard run `RUN/rank-0000`; tags are `updates/entropy` and
    the like. A second run of the same name becomes `RUN-2`.

    Args:
        run: The run.
        folder: TensorBoard's log folder.

    Returns:
        Number of events written.

    Raises:
        UserError: tensorboardX is not installed, or the folder cannot be written, is being written by another
            process, or holds events of something else.
        ResultsError: A file of the run is damaged.
    """
    with RunMirror(run, [partial(TensorBoardPlace, folder=folder)]) as mirror:
        mirror.write_new()
        return mirror.num_events


def rliable_scores(runs: Sequence[Run], score: Score) -> tuple[Scores, list[str]]:
    """Collect scores as rliable takes them: {algorithm: [num_runs x num_games]}.

    An algorithm is a gossip method on a number of ranks, a game an environment id, a run a seed. Scores are the games'
    own; normalise them before they are averaged over games.

    Args:
        runs: The runs to compare; each algorithm needs the same number of runs of each of its games.
        score: Which; the same of every run.

    Returns:
        The scores, runs in order of their seeds, and the games in order of the columns.

    Raises:
        ResultsError: A run has no such score, or an algorithm lacks runs of a game.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run in runs:
        job = parse_job(run.job_toml, f"{run.path}/job.h5")
        algorithm = found.setdefault(_algorithm(job, run), {})
        algorithm.setdefault(job.environment.id, []).append((job.seed, _score(run, score)))
    games = sorted({game for by_game in found.values() for game in by_game})
    scores: Scores = {}
    for algorithm_name, by_game in found.items():
        counts = {game: len(by_game.get(game, [])) for game in games}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{game} {count}" for game, count in counts.items())
            raise ResultsError(f"{algorithm_name}: needs the same number of runs of each game; has: {listed}")
        columns = [[value for _, value in sorted(by_game[game])] for game in games]
        scores[algorithm_name] = [list(row) for row in zip(*columns, strict=True)]
    return scores, games


def write_rliable(runs: Sequence[Run], path: Path, score: Score) -> tuple[list[str], list[str]]:
    """Write `rliable_scores` as JSON; copies of a run count once.

    Returns:
        The games in order of the columns, and lines to tell: of runs that do not count, that are no seeds of one
        algorithm, or whose evaluation is of an earlier policy.
    """
    refuse_other_kind(path, ".json")
    kept, told = distinct(runs)
    scores, games = rliable_scores(kept, score)
    told += [line for pooled in _by_column(kept) for line in (*unlike(pooled), *unfinished(pooled))]
    told += _evaluated_before(kept) if score != "training" else ()
    try:
        path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return games, told


def _by_column(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that count as seeds of one algorithm in one game, for each."""
    columns: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        job = parse_job(run.job_toml, f"{run.path}/job.h5")
        columns.setdefault((_algorithm(job, run), job.environment.id), []).append(run)
    return list(columns.values())


def _evaluated_before(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each run whose evaluation is of fewer updates than all its ranks have made since."""
    for run in runs:
        path = run.path / EVALUATION_FILE_NAME
        evaluated = max(np.atleast_1d(load_evaluation(path).attributes.get("updates", 0)))
        trained = min((int(rank.updates["update"][-1]) for rank in run.ranks if rank.updates.num_rows), default=0)
        if evaluated < trained:
            yield f"{path}: of the policy after {evaluated:,} updates; the run has made {trained:,}"


def _algorithm(job: Job, run: Run) -> str:
    return f"{job.gossip.method}, {run.num_ranks} rank{'s' if run.num_ranks > 1 else ''}"


def _score(run: Run, score: Score) -> float:
    if score != "training":
        path = run.path / EVALUATION_FILE_NAME
        actions: Actions = "sample" if score == "evaluation" else "greedy"
        played = load_evaluation(path).episodes
        if actions not in played:
            raise ResultsError(
                f"{path}: holds no episodes of --score {score}, played with actions '{actions}', but of "
                f"'{next(iter(played))}'; python -m galampi evaluate plays both"
            )
        return float(played[actions]["return"].mean())
    final = final_return(episodes(run))
    if final is None:
        raise ResultsError(f"{run.path}: too few episodes have ended for a score")
    return final
