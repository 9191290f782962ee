"""The simulators of a rank: any gymnasium environment as one vector with the same rules.

Owns their seeds, the check of actions and the record of what was chosen. Knows nothing of learning beyond the fact that
a lost life may end a return.

The rules: an episode's end is reported with its last observation; the step after it ignores its action and
resets (gymnasium's NEXT_STEP autoreset). Rewards are the game's own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import EnvSpec

from galampi.environments.actuation import Actuation
from galampi.environments.atari import most_frames
from galampi.environments.making import spec_of
from galampi.environments.rows import Answers, Processes, Row
from galampi.environments.simulator import Failure, Simulator
from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Environment
from galampi.memory import require_memory

ATARI_BYTES = 2 << 20
"""What one emulator takes, its frames included."""
MOST_SEED = 2**31 - 1
"""The emulator's seeds are 32-bit integers."""
_SLOW_STEP_S = 1e-3
"""A step of one simulator from which on processes of their own pay: a question and its answer take a tenth of it."""
_SLOW_RESET_S = 0.1
"""A reset from which on they do: it comes once in an episode, of a hundred steps or more mostly."""
_NUM_TIMED = 3

Description = dict[str, str | int | float]


class Step(NamedTuple):
    """What B simulators answer to their actions.

    Attributes:
        observations: [B, ...] as the encoding has them; the array is not used again by the simulators.
        rewards: [B] float32, the game's own.
        terminated: [B] bool, the episode ended.
        truncated: [B] bool, the episode was cut.
        life_lost: [B] bool, a life was lost and the return shall end there; the game goes on.
        numbers: Of the last infos of episodes that ended, by simulator.
        failures: What simulators raised; their episodes are truncated and count for nothing.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray
    numbers: Mapping[int, Mapping[str, float]] = {}
    failures: Sequence[Failure] = ()


class _Vector(Protocol):
    """Simulators side by side; `spaces` are those of one's observations and actions."""

    spaces: tuple[Any, Any]

    def reset(self) -> Answers:
        """Start every simulator with its seed."""

    def step(self, actions: np.ndarray) -> Answers:
        """Take an action in every simulator, or start it anew."""

    def rest(self, index: int) -> None:
        """Let a simulator be: what it would answer from now on does not matter."""

    def close(self) -> None:
        """End the simulators."""


class Simulators:
    """B simulators of one environment.

    Attributes:
        num_envs: B.
        single_observation_space: What is learnt from, of one simulator.
        single_action_space: Of one simulator.
        encoding: How observations become arrays.
        actuation: How a policy's actions become those of a simulator.
        is_atari: Whether these are Atari games.
        masks: [B, n] bool, which choices are allowed next; None where all always are.
        description: What was chosen, for the record.
    """

    def __init__(
        self,
        vector: _Vector,
        num_envs: int,
        *,
        is_atari: bool,
        life_ends_return: bool,
        settings: Mapping[str, str | int | float],
    ) -> None:
        self._vector = vector
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = vector.spaces
        self.encoding = Encoding(self.single_observation_space)
        self.actuation = Actuation(self.single_action_space)
        self.is_atari = is_atari
        self.masks: np.ndarray | None = None
        self._life_ends_return = life_ends_return
        self._lives = np.zeros(self.num_envs, np.int64)
        self.description: Description = {**settings, "life_loss_ends_return": int(life_ends_return)}

    def reset(self) -> np.ndarray:
        """Start every simulator anew; simulator i with seed + i.

        Returns:
            Observations [B, ...].
        """
        answers = self._vector.reset()
        self._lives, self.masks = answers.lives, answers.masks
        return answers.observations

    def step(self, actions: np.ndarray) -> Step:
        """Advance every simulator by one action.

        Args:
            actions: [B, *shape] as the policy has them, see `Actuation`.

        Raises:
            ValueError: An action lies outside the action space.
            UserError: A simulator does not keep to what gymnasium wants.
        """
        if len(actions) != self.num_envs:
            raise ValueError(f"actions are {len(actions)}; must be {self.num_envs}")
        # An action the emulator does not know would make it wait for ever.
        self.actuation.check(actions)
        answers = self._vector.step(actions)
        self.masks = answers.masks
        # A life lost in the step that ends the episode is no second end; the row that resets only ever gains
        # lives.
        life_lost = (answers.lives < self._lives) & ~answers.terminated & ~answers.truncated & self._life_ends_return
        self._lives = answers.lives
        return Step(
            answers.observations,
            answers.rewards.astype(np.float32),
            answers.terminated,
            answers.truncated,
            life_lost,
            answers.numbers,
            answers.failures,
        )

    def rest(self, index: int) -> None:
        """Let a simulator be: what it would answer from now on does not matter."""
        self._vector.rest(index)

    def close(self) -> None:
        """End the simulators, and their threads or processes."""
        self._vector.close()


class Games:
    """Games of Atari, in the threads of ale-py's vector of them.

    Attributes:
        games: That vector.
    """

    def __init__(self, games: AtariVectorEnv, seed: int) -> None:
        self.games = games
        self._seed = seed
        self.spaces = games.single_observation_space, games.single_action_space
        self._encoding = Encoding(games.single_observation_space)

    def reset(self) -> Answers:
        """Start every game; game i with seed + i."""
        observations, info = self.games.reset(seed=self._seed)
        none = np.zeros(len(observations), np.bool_)
        return Answers(self._encoding.batch(observations), np.zeros(len(observations)), none, none, info["lives"], None)

    def step(self, actions: np.ndarray) -> Answers:
        """Take an action [B] in every game."""
        observations, rewards, terminated, truncated, info = self.games.step(actions)
        return Answers(self._encoding.batch(observations), rewards, terminated, truncated, info["lives"], None)

    def rest(self, index: int) -> None:
        """Let a game be: it goes on all the same, in its thread, for that costs nothing and breaks nothing."""

    def close(self) -> None:
        """End the games and their threads."""
        self.games.close()


def is_atari_game(environment_id: str) -> bool:
    """Whether an environment is a game of Atari.

    Raises:
        UserError: The id is unknown, or its package is missing.
    """
    return str(spec_of(environment_id).entry_point).startswith("ale_py.")


def time_limit(environment: Environment) -> int | None:
    """Return the env steps after which an episode is truncated by the environment's own rule; None if it has none.

    Raises:
        UserError: The id is unknown, or its package is missing.
    """
    spec = spec_of(environment.id)
    if is_atari_game(environment.id):
        return -(-most_frames(environment) // environment.frame_skip)
    return environment.max_episode_steps or spec.max_episode_steps


def make_simulators(
    environment: Environment,
    *,
    seed: int,
    num_threads: int,
    life_ends_return: bool | Literal["auto"],
    first_number: int = 0,
    num_ranks_on_node: int = 1,
) -> Simulators:
    """Create the simulators of one rank.

    Args:
        environment: What to simulate.
        seed: Seed of the first simulator; simulator i takes seed + i, so ranks need ranges apart.
        num_threads: Threads of the emulator, or processes of other simulators; the calling thread waits meanwhile.
        life_ends_return: Whether to report lost lives, see `life_loss_ends_return`.
        first_number: Number of the first simulator among those of all ranks.
        num_ranks_on_node: Ranks that do the same here and share this machine's memory.

    Raises:
        UserError: The id is unknown, its package is missing, or memory does not suffice.
    """
    spec = spec_of(environment.id)
    num_envs = environment.num_envs
    if not 0 <= seed <= MOST_SEED - num_envs:
        raise UserError(f"seed: the first simulator's would be {seed}; must lie in [0, {MOST_SEED - num_envs}]")
    is_atari = is_atari_game(environment.id)
    if is_atari and spec.namespace != "ALE":
        raise UserError(f"environment.id is {environment.id!r}; must be 'ALE/{_game(spec)}-v5' for this game")
    settings: Description = {"id": environment.id, "first_seed": seed, "autoreset_mode": "NextStep"}
    vector: _Vector
    if is_atari:
        needed_bytes = num_ranks_on_node * num_envs * ATARI_BYTES
        require_memory(needed_bytes, f"environment.num_envs is {num_envs}")
    if is_atari and not (environment.kwargs or environment.wrappers):
        atari = atari_settings(environment, num_threads)
        vector = Games(AtariVectorEnv(spec.kwargs["game"], num_envs, **atari), seed)
        settings |= {"vector": "ale_py.vector_env.AtariVectorEnv"}
        settings |= {key: int(value) if isinstance(value, bool) else value for key, value in atari.items()}
    else:
        num_processes = _num_processes(environment, num_threads, first_number, seed)
        if num_processes > 1:
            vector = Processes(environment, num_envs, first_number, seed, num_processes)
        else:
            vector = Row(environment, range(num_envs), first_number, seed)
        settings |= {"vector": "galampi", "num_processes": num_processes}
    ends = life_loss_ends_return(environment, life_ends_return)
    return Simulators(vector, num_envs, is_atari=is_atari, life_ends_return=ends, settings=settings)


def life_loss_ends_return(environment: Environment, setting: bool | Literal["auto"]) -> bool:
    """Tell whether a lost life is reported; "auto" does for Atari but in its preset machado.

    No other environment has lives.
    """
    wanted = environment.preset != "machado" if setting == "auto" else setting
    return wanted and is_atari_game(environment.id)


def atari_settings(environment: Environment, num_threads: int) -> dict[str, Any]:
    """Return the arguments of ale-py's vector for what a job asks for."""
    return {
        "max_num_frames_per_episode": most_frames(environment),
        "repeat_action_probability": environment.repeat_action_probability,
        "full_action_space": environment.full_action_space,
        "frameskip": environment.frame_skip,
        "noop_max": environment.max_noops,
        "num_threads": num_threads,
        "img_height": environment.image_size,
        "img_width": environment.image_size,
        "grayscale": environment.grayscale,
        "stack_num": environment.frame_stack,
        "maxpool": True,
        "use_fire_reset": True,
        "autoreset_mode": "NextStep",
        # Either flag for lives resets the whole game on a lost life; the learner clips rewards, if at all.
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
    }


def _num_processes(environment: Environment, num_threads: int, first_number: int, seed: int) -> int:
    """Return into how many processes simulators go; 1 for this one."""
    most = min(num_threads, environment.num_envs)
    if environment.vectorization == "sync" or most == 1:
        return 1
    if environment.vectorization == "async":
        return most
    # A simulator may draw from these, and must find them as they were.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        return most if _is_slow(environment, first_number, seed) else 1
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _is_slow(environment: Environment, number: int, seed: int) -> bool:
    """Tell whether a simulator is, by a reset and a few steps of one that is made for it."""
    least_s = float("inf")
    with closing(Simulator(environment, index=0, number=number, seed=seed)) as simulator:
        # What is done once, at the very first, does not count.
        simulator.start(reseed=True)
        start_s = time.perf_counter()
        answer = simulator.start()
        if time.perf_counter() - start_s >= _SLOW_RESET_S:
            return True
        for _ in range(_NUM_TIMED):
            if answer.terminated or answer.truncated:
                answer = simulator.start()
            start_s = time.perf_counter()
            answer = simulator.step(simulator.actuation.example(answer.mask))
            least_s = min(least_s, time.perf_counter() - start_s)
    return least_s >= _SLOW_STEP_S


def _game(spec: EnvSpec) -> str:
    """Return the game's name as the ALE namespace writes it: SpaceInvaders for space_invaders."""
    return "".join(word.capitalize() for word in spec.kwargs["game"].split("_"))
