"""Whether an evaluation is what it says: its actions, taken again in the same simulators, must give the same returns.

Knows no network: whose actions they were is not asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from galampi.environments import Simulators
from galampi.errors import ResultsError, UserError
from galampi.job import Environment, import_again, parse_job
from galampi.policies.play import MOST_SIMULATORS, Choose, Ended, play, simulators_of
from galampi.policies.played import Bounds, Progress
from galampi.results.evaluation import Actions, Evaluation, load_evaluation

_SIMULATED_BY = ("ale-py", "gymnasium", "numpy")


@dataclass(frozen=True)
class Replayed:
    """What came of an evaluation's actions.

    Attributes:
        actions: How the policy had been played.
        num_episodes: Episodes that were replayed.
        mean_return: Of these.
        mismatches: A line for each that did not go as the file says.
    """

    actions: Actions
    num_episodes: int
    mean_return: float
    mismatches: Sequence[str]


def verify(
    path: Path, tell: Callable[[str], None] = lambda line: None, modules_folder: Path | None = None
) -> list[Replayed]:
    """Replay an evaluation, each way in which the policy was played. Local.

    Args:
        path: Its file.
        tell: Called with a line now and then while no episode ends.
        modules_folder: Where the modules that its job names are; None for where they were.

    Raises:
        ResultsError: There is no such file, it is damaged, or it does not hold the actions.
        UserError: The environment is unknown or its package is missing; the text begins with the file.
    """
    evaluation = load_evaluation(path)
    if "job_toml" not in evaluation.attributes or not evaluation.taken:
        raise ResultsError(f"{path}: holds no actions, for an older galampi wrote it; evaluate the policy again")
    job = parse_job(str(evaluation.attributes["job_toml"]), str(path))
    if modules_folder is not None:
        job = job.model_copy(update={"modules_folder": str(modules_folder.resolve())})
    names = ("time_limit", "stuck_after", "max_episode_steps")
    bounds = Bounds(**{name: _steps(evaluation, name, path) for name in names})
    modules = evaluation.attributes.get("modules", [])
    if not isinstance(modules, list):
        raise ResultsError(f"{path}: damaged: modules is {modules!r}; must be a list")
    try:
        import_again(job, list(map(str, modules)), tell)
        return [_replay(evaluation, actions, job.environment, bounds, path, tell) for actions in evaluation.episodes]
    except ResultsError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _steps(evaluation: Evaluation, name: str, path: Path) -> int | None:
    """Return a number of env steps that an evaluation's attributes hold, or not."""
    value = evaluation.attributes.get(name)
    if value is not None and not isinstance(value, int):
        raise ResultsError(f"{path}: damaged: {name} is {value!r}; must be a whole number")
    return value


def other_versions(path: Path) -> str:
    """Say which packages that simulate have another version here than when an evaluation was played; '' if none has."""
    attributes = load_evaluation(path).attributes
    differing = []
    for package in _SIMULATED_BY:
        then = attributes.get(f"{package.replace('-', '_')}_version")
        try:
            now = version(package)
        except PackageNotFoundError:
            now = "missing"
        if then != now:
            differing.append(f"{package} {then} then, {now} here")
    return "; ".join(differing)


def _replay(
    evaluation: Evaluation,
    actions: Actions,
    environment: Environment,
    bounds: Bounds,
    path: Path,
    tell: Callable[[str], None],
) -> Replayed:
    claimed, taken = evaluation.episodes[actions], evaluation.taken[actions]
    seeds, num_episodes = claimed["seed"], len(claimed["seed"])
    if (np.diff(seeds) != 1).any() or claimed["length"].sum() != len(taken) or (claimed["length"] < 1).any():
        raise ResultsError(f"{path}: damaged: its {actions} episodes do not fit their {len(taken)} actions")
    by_episode = np.split(taken, np.cumsum(claimed["length"])[:-1])
    ended: dict[int, Ended] = {}
    for first in range(0, num_episodes, MOST_SIMULATORS):
        block = by_episode[first : first + MOST_SIMULATORS]
        # One step more than the longest: what has not ended by then does not end where the file says.
        longest = max(map(len, block)) + 1
        within = Bounds(bounds.time_limit, bounds.stuck_after, min(bounds.max_episode_steps or longest, longest))
        with closing(simulators_of(environment, first_seed=int(seeds[first]), num_envs=len(block))) as simulators:
            progress = Progress(tell, environment.id, actions, bounds)
            try:
                simulators.actuation.check(np.concatenate(block))
            except ValueError:
                raise ResultsError(f"{path}: damaged: {actions} actions that {environment.id} does not have") from None
            for simulator, how in play(simulators, _again(block, simulators), within, progress):
                ended[first + simulator] = how
    returns = [ended[i].episodic_return for i in range(num_episodes)]
    mismatches = [_mismatch(claimed, i, ended[i]) for i in range(num_episodes)]
    return Replayed(actions, num_episodes, float(np.mean(returns)), [line for line in mismatches if line])


def _again(block: Sequence[np.ndarray], simulators: Simulators) -> Choose:
    """Return what takes these actions again, and where there are no more any that is allowed."""
    steps = itertools.count()

    def choose(observations: np.ndarray, life_lost: np.ndarray) -> np.ndarray:
        t, masks = next(steps), simulators.masks
        actions = [
            taken[t] if t < len(taken) else simulators.actuation.example(None if masks is None else masks[i])
            for i, taken in enumerate(block)
        ]
        return np.array(actions, simulators.actuation.dtype)

    return choose


def _mismatch(claimed: dict[str, np.ndarray], i: int, ended: Ended) -> str:
    """Return what is not as claimed of an episode; '' if all is."""
    said = (float(claimed["return"][i]), int(claimed["length"][i]), str(claimed["end"][i]))
    seen = (ended.episodic_return, ended.length, ended.end)
    # Processors round differently, and a sum of rewards that are no whole numbers shows it.
    if abs(said[0] - seen[0]) <= 1e-6 * ended.magnitude and said[1:] == seen[1:]:
        return ""
    told = [f"return {value:.6g}, {length:,} env steps, {end}" for value, length, end in (said, seen)]
    return f"episode {int(claimed['episode'][i])}: the file says {told[0]}; replayed: {told[1]}"
