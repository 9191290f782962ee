"""Episodes in simulators, by actions that come from anywhere: a network, or a file.

Owns when an episode ends and what is counted of it. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from galampi.environments import Simulators, make_simulators
from galampi.environments.making import seed_global_generators
from galampi.errors import UserError
from galampi.job import Environment
from galampi.policies.played import Bounds, Progress
from galampi.ranks.launched import num_cores

MOST_SIMULATORS = 16
"""Episodes played at once."""

Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns actions [B] or [B, k] for observations [B, ...], given which simulators have just lost a life [B]."""


class Filmed(NamedTuple):
    """A step of the episode that may be filmed: the action and what the simulator answered."""

    action: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


@dataclass(frozen=True, eq=False)
class Ended:
    """How an episode went.

    Attributes:
        episodic_return: Sum of its raw rewards.
        length: Env steps.
        end: What ended it.
        taken: Actions it took, [length] or [length, k].
        magnitude: Sum of the absolute values of its rewards, by which the return may be off by rounding.
    """

    episodic_return: float
    length: int
    end: str
    taken: np.ndarray
    magnitude: float


def simulators_of(environment: Environment, *, first_seed: int, num_envs: int) -> Simulators:
    """Create the simulators of some episodes with consecutive seeds.

    Raises:
        UserError: The environment is unknown or its package is missing.
    """
    seed_global_generators(first_seed)
    return make_simulators(
        environment.model_copy(update={"num_envs": num_envs}),
        seed=first_seed,
        num_threads=min(num_envs, num_cores()),
        life_ends_return=True,
    )


def play(
    simulators: Simulators, choose: Choose, bounds: Bounds, progress: Progress, filmed: list[Filmed] | None = None
) -> Iterator[tuple[int, Ended]]:
    """Play one episode in every simulator, and yield each with its simulator when it ends.

    A simulator whose episode has ended rests until the last has.

    Args:
        simulators: B of them.
        choose: What to do.
        bounds: What ends an episode that does not end by itself.
        progress: Told after each step.
        filmed: Takes the steps of the first episode.

    Raises:
        UserError: A simulator raises an exception before its episode has ended, or does not keep to what gymnasium
            wants.
    """
    num_envs = simulators.num_envs
    # Scores are sums of up to 100,000 rewards: float32 would lose single points.
    returns, magnitudes = np.zeros((2, num_envs))
    idle = np.zeros(num_envs, np.int64)
    playing = np.ones(num_envs, np.bool_)
    life_lost = np.zeros(num_envs, np.bool_)
    taken: list[np.ndarray] = []
    # Again: what chooses may have drawn from them since the simulators were made.
    seed_global_generators(int(simulators.description["first_seed"]), 1)
    observations = simulators.reset()
    while playing.any():
        actions = choose(observations, life_lost)
        step = simulators.step(actions)
        for failure in step.failures:
            if playing[failure.simulator]:
                raise UserError(failure.error)
        observations, rewards, terminated, truncated, life_lost = step[:5]
        if filmed is not None and playing[0]:
            filmed.append(Filmed(actions[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0])))
        taken.append(actions)
        length = len(taken)
        returns += rewards
        magnitudes += np.abs(rewards)
        idle = np.where((rewards != 0) | life_lost, 0, idle + 1)
        stuck = idle >= (bounds.stuck_after or np.inf)
        ended = playing & (terminated | truncated | stuck | (length >= (bounds.max_episode_steps or np.inf)))
        for i in np.flatnonzero(ended):
            end = "terminated" if terminated[i] else "truncated" if truncated[i] else "stuck" if stuck[i] else "cut"
            actions_taken = np.stack([step[i] for step in taken])
            yield int(i), Ended(float(returns[i]), length, end, actions_taken, float(magnitudes[i]))
            simulators.rest(int(i))
        playing &= ~ended
        progress.after(length, num_playing=int(playing.sum()), any_ended=not playing.all())
