"""What an evaluation has played, and how it is told.

Owns what ends an episode that does not end by itself. Knows neither simulators nor networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from galampi.digits import returned, score_of
from galampi.environments import is_atari_game, time_limit
from galampi.errors import UserError
from galampi.job import Environment
from galampi.policies.stored import StoredPolicy
from galampi.results.evaluation import Actions, EvaluatedEpisode

STUCK_AFTER = 3000
"""Env steps without reward or lost life after which an Atari game is stuck: 200 s of play at frame skip 4, longer
than any that ends by the clock."""
MOST_STEPS = 100_000
"""Env steps after which an episode is cut where the environment has no time limit."""
_PROGRESS_PERIOD_S = 10.0
_PLAYED: dict[Actions, str] = {
    "sample": "actions drawn, as in training",
    "greedy": "the most probable actions, as in the paper",
}


@dataclass(frozen=True)
class Bounds:
    """What ends an episode that does not end by itself, in env steps; None where nothing does.

    Attributes:
        time_limit: The environment's own limit; where it falls together with another one, it counts.
        stuck_after: Steps without reward or lost life.
        max_episode_steps: Length.
    """

    time_limit: int | None
    stuck_after: int | None
    max_episode_steps: int | None


def bounds_of(environment: Environment, stuck_after: int | None, max_episode_steps: int | None) -> Bounds:
    """Return what ends the episodes of an environment.

    Raises:
        UserError: The environment is unknown, or has no rule that is asked for.
    """
    limit = time_limit(environment)
    if is_atari_game(environment.id):
        stuck_after = stuck_after or STUCK_AFTER
    elif stuck_after is not None:
        raise UserError(
            f"--stuck-after is {stuck_after} for {environment.id}; only games of Atari get stuck, "
            "--max-episode-steps ends any episode"
        )
    if max_episode_steps is None and limit is None:
        max_episode_steps = MOST_STEPS
    return Bounds(limit, stuck_after, max_episode_steps)


@dataclass(frozen=True)
class Played:
    """What was played.

    Attributes:
        episodes: By how the policy was played, in order of their number.
        bounds: What would have ended an episode.
    """

    episodes: Mapping[Actions, Sequence[EvaluatedEpisode]]
    bounds: Bounds

    def returns(self, actions: Actions) -> np.ndarray:
        """Return the episodic returns of a way to play."""
        return np.array([episode.episodic_return for episode in self.episodes[actions]])

    @property
    def better(self) -> Actions:
        """The way to play that had the greater mean return; the first if they are alike."""
        return max(self.episodes, key=lambda actions: float(self.returns(actions).mean()))


class Progress:
    """Tells now and then how far episodes are that do not end."""

    def __init__(self, tell: Callable[[str], None], environment_id: str, actions: Actions, bounds: Bounds) -> None:
        self._tell = tell
        self._environment_id = environment_id
        self._actions = actions
        self._bounds = bounds
        self._any_ended = False
        self._told_s = time.monotonic()

    def after(self, length: int, *, num_playing: int, any_ended: bool) -> None:
        """Tell it, if it is time.

        Args:
            length: Env steps that every episode has taken that goes on.
            num_playing: Number of those.
            any_ended: Whether one that began with them has ended.
        """
        self._any_ended |= any_ended
        if time.monotonic() < self._told_s + _PROGRESS_PERIOD_S:
            return
        self._told_s = time.monotonic()
        line = f"{self._actions:6}  {_count(num_playing)} playing, after {length:,} env steps"
        if not self._any_ended:
            line += "; none has ended yet, "
            if self._bounds.time_limit is not None:
                line += f"the time limit is {self._bounds.time_limit:,}"
            else:
                line += f"{self._environment_id} has no time limit"
            if self._bounds.max_episode_steps is not None:
                line += f", cut after {self._bounds.max_episode_steps:,} (--max-episode-steps)"
        self._tell(line)


def summary(stored: StoredPolicy, played: Played) -> str:
    """Say in a few lines what an evaluation came to; first what training shows, where that was played."""
    first, *others = played.episodes
    score = score_of(in_wrappers=bool(stored.job.environment.wrappers))
    lines = [
        f"policy    {_whose(stored)}, after {stored.env_steps:,} env steps",
        f"return    {_told(played.returns(first))}, {score}; {_PLAYED[first]}",
        *(f"{actions:10}{_told(played.returns(actions))}; {_PLAYED[actions]}" for actions in others),
    ]
    if others and _differ_widely(played.returns(first), played.returns(others[0])):
        lines.append(
            "          the two differ widely: this policy still acts by chance, and its most probable actions alone "
            "are another one"
        )
    return "\n".join([*lines, *_unnatural_ends(stored.job.environment.id, played)])


def _whose(stored: StoredPolicy) -> str:
    num_ranks = len(stored.updates)
    return f"mean of {num_ranks} ranks" if stored.source == "mean" and num_ranks > 1 else stored.source


def _told(returns: np.ndarray) -> str:
    deviation = f" +- {returned(returns.std(ddof=1))} (standard deviation)" if len(returns) > 1 else ""
    return (
        f"mean {returned(returns.mean())}{deviation}, median {returned(float(np.median(returns)))}, from "
        f"{returned(returns.min())} to {returned(returns.max())}; {_count(len(returns))}"
    )


def _count(number: int) -> str:
    return f"{number} episode{'s' * (number > 1)}"


def _differ_widely(sampled: np.ndarray, greedy: np.ndarray) -> bool:
    """Whether the means are further apart than both standard deviations reach."""
    if len(sampled) < 2:
        return False
    return bool(abs(sampled.mean() - greedy.mean()) > sampled.std(ddof=1) + greedy.std(ddof=1))


def _unnatural_ends(environment_id: str, played: Played) -> Iterator[str]:
    """Yield a line for each way in which an evaluation may end an episode."""
    bounds = played.bounds
    ends = [episode.end for episodes in played.episodes.values() for episode in episodes]
    if bounds.stuck_after is not None:
        yield (
            f"stuck     {ends.count('stuck')} of {_count(len(ends))} "
            f"({bounds.stuck_after:,} env steps without reward or lost life)"
        )
    if cut := ends.count("cut"):
        line = f"cut       {cut} of {_count(len(ends))} ({bounds.max_episode_steps:,} env steps, --max-episode-steps)"
        if cut == len(ends):
            line += ": no episode has ended by itself"
        if bounds.time_limit is None:
            line += f"; {environment_id} has no time limit"
        yield line
