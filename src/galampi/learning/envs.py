"""The simulators: any gymnasium environment as one vector with the same rules.

Owns their creation, seeds, the check of actions and the record of what was chosen. Knows nothing of learning
beyond the fact that a lost life may end a return.

The rules: an episode's end is reported with its last observation; the step after it ignores its action and
resets (gymnasium's NEXT_STEP autoreset). Rewards are the game's own.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from galampi.errors import UserError
from galampi.job import Environment
from galampi.learning.memory import require_memory

gym.register_envs(ale_py)

ATARI_BYTES = 2 << 20
"""What one emulator takes, its frames included."""
MOST_SEED = 2**31 - 1
"""The emulator's seeds are 32-bit integers."""


class Step(NamedTuple):
    """What B simulators answer to their actions.

    Attributes:
        observations: [B, ...] of the single observation space's dtype; the array is not used again by the
            simulators.
        rewards: [B] float32, the game's own.
        terminated: [B] bool, the episode ended.
        truncated: [B] bool, the episode was cut.
        life_lost: [B] bool, a life was lost and the return shall end there; the game goes on.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray


class Simulators:
    """B simulators of one environment.

    Attributes:
        num_envs: B.
        single_observation_space: Of one simulator.
        single_action_space: Of one simulator.
        is_atari: Whether these are Atari games.
        description: What was chosen, for the record.
    """

    def __init__(
        self,
        vector: VectorEnv,
        *,
        seed: int,
        is_atari: bool,
        life_ends_return: bool,
        settings: Mapping[str, str | int | float],
    ) -> None:
        self._vector = vector
        self._seed = seed
        self.num_envs = vector.num_envs
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space
        self.is_atari = is_atari
        self._life_ends_return = life_ends_return
        self._lives = np.zeros(self.num_envs, np.int64)
        self.description: dict[str, str | int | float] = {
            **settings,
            "first_seed": seed,
            "life_loss_ends_return": int(life_ends_return),
        }

    def reset(self) -> np.ndarray:
        """Start every simulator anew; simulator i with seed + i.

        Returns:
            Observations [B, ...].
        """
        observations: np.ndarray
        observations, info = self._vector.reset(seed=self._seed)
        self._lives = self._lives_of(info)
        return observations

    def step(self, actions: np.ndarray) -> Step:
        """Advance every simulator by one action.

        Args:
            actions: [B] int64, or [B, k] float32, which is clipped to the bounds of the action space.

        Raises:
            ValueError: An action lies outside the action space.
        """
        observations, rewards, terminated, truncated, info = self._vector.step(self._checked(actions))
        lives = self._lives_of(info)
        # A life lost in the step that ends the episode is no second end; the row that resets only ever gains
        # lives.
        life_lost = (lives < self._lives) & ~terminated & ~truncated & self._life_ends_return
        self._lives = lives
        return Step(observations, rewards.astype(np.float32), terminated, truncated, life_lost)

    def close(self) -> None:
        """End the simulators and their threads."""
        self._vector.close()

    def _lives_of(self, info: Mapping[str, np.ndarray]) -> np.ndarray:
        lives: np.ndarray = info["lives"] if self.is_atari else self._lives
        return lives

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        space = self.single_action_space
        shape = (self.num_envs, *(space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"actions have shape {actions.shape}; must be {shape}")
        if isinstance(space, gym.spaces.Box):
            if not np.isfinite(actions).all():
                raise ValueError(f"actions hold numbers that are not finite: {actions}")
            clipped: np.ndarray = np.clip(actions, space.low, space.high)
            return clipped
        assert isinstance(space, gym.spaces.Discrete)
        # An action the emulator does not know would make it wait for ever.
        least, most = int(space.start), int(space.start + space.n - 1)
        if not np.issubdtype(actions.dtype, np.integer) or actions.min() < least or actions.max() > most:
            raise ValueError(f"actions are {actions}; must be whole numbers from {least} to {most}")
        return actions


def is_atari_game(environment_id: str) -> bool:
    """Whether an environment is a game of Atari.

    Raises:
        UserError: The id is unknown, or its package is missing.
    """
    return str(_spec(environment_id).entry_point).startswith("ale_py.")


def time_limit(environment: Environment) -> int | None:
    """Return the env steps after which an episode is truncated by the environment's own rule; None if it has none.

    Raises:
        UserError: The id is unknown, or its package is missing.
    """
    spec = _spec(environment.id)
    if is_atari_game(environment.id):
        return -(-environment.max_episode_frames // environment.frame_skip)
    return spec.max_episode_steps


def make_simulators(
    environment: Environment,
    *,
    seed: int,
    num_threads: int,
    life_ends_return: bool | Literal["auto"],
    num_ranks_on_node: int = 1,
) -> Simulators:
    """Create the simulators of one rank.

    Args:
        environment: What to simulate.
        seed: Seed of the first simulator; simulator i takes seed + i, so ranks need ranges apart.
        num_threads: Threads of the emulator; the calling thread waits meanwhile. Only Atari has any.
        life_ends_return: Whether to report lost lives; "auto" does for Atari. No other environment has lives.
        num_ranks_on_node: Ranks that do the same here and share this machine's memory.

    Raises:
        UserError: The id is unknown, its package is missing, or memory does not suffice.
    """
    spec = _spec(environment.id)
    if not 0 <= seed <= MOST_SEED - environment.num_envs:
        most = MOST_SEED - environment.num_envs
        raise UserError(f"seed: the first simulator's would be {seed}; must lie in [0, {most}]")
    is_atari = is_atari_game(environment.id)
    settings: dict[str, str | int | float] = {"id": environment.id}
    vector: VectorEnv
    if is_atari:
        if spec.namespace != "ALE":
            raise UserError(f"environment.id is {environment.id!r}; must be 'ALE/{_game(spec)}-v5' for this game")
        needed_bytes = num_ranks_on_node * environment.num_envs * ATARI_BYTES
        require_memory(needed_bytes, f"environment.num_envs is {environment.num_envs}")
        atari: dict[str, Any] = {
            "max_num_frames_per_episode": environment.max_episode_frames,
            "repeat_action_probability": environment.repeat_action_probability,
            "full_action_space": environment.full_action_space,
            "frameskip": environment.frame_skip,
            "noop_max": environment.max_noops,
            "num_threads": num_threads,
            "img_height": 84,
            "img_width": 84,
            "grayscale": True,
            "stack_num": 4,
            "maxpool": True,
            "use_fire_reset": True,
            "autoreset_mode": "NextStep",
            # Either flag for lives resets the whole game on a lost life; the learner clips rewards, if at
            # all.
            "episodic_life": False,
            "life_loss_info": False,
            "reward_clipping": False,
        }
        vector = AtariVectorEnv(spec.kwargs["game"], environment.num_envs, **atari)
        settings |= {"vector": "ale_py.vector_env.AtariVectorEnv"}
        settings |= {key: int(value) if isinstance(value, bool) else value for key, value in atari.items()}
    else:
        vector = _sync_vector(environment)
        settings |= {"vector": "gymnasium.vector.SyncVectorEnv", "autoreset_mode": "NextStep"}
    lives_count = is_atari if life_ends_return == "auto" else life_ends_return and is_atari
    return Simulators(vector, seed=seed, is_atari=is_atari, life_ends_return=lives_count, settings=settings)


def _spec(environment_id: str) -> gym.envs.registration.EnvSpec:
    # As in gymnasium, "module:id" imports the module that registers the environment.
    module, _, registered_id = environment_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(registered_id)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise UserError(f"environment.id is {environment_id!r}; {_hint(environment_id, error)}") from None


def _hint(environment_id: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"module {error.name!r} cannot be imported"
    # Case and version are what is mostly wrong; Atari's old ids are never meant.
    offered = [
        key
        for key, spec in gym.registry.items()
        if spec.namespace == "ALE" or not str(spec.entry_point).startswith("ale_py.")
    ]
    folded = {key.lower(): key for key in offered}
    near = [folded[key] for key in difflib.get_close_matches(environment_id.lower(), folded, n=3)]
    return f"no such environment; nearest: {', '.join(near)}" if near else "no such environment"


def _game(spec: gym.envs.registration.EnvSpec) -> str:
    """Return the game's name as the ALE namespace writes it: SpaceInvaders for space_invaders."""
    return "".join(word.capitalize() for word in spec.kwargs["game"].split("_"))


def _sync_vector(environment: Environment) -> VectorEnv:
    def make() -> gym.Env:
        return gym.make(environment.id, disable_env_checker=True)

    try:
        return SyncVectorEnv([make] * environment.num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"environment.id is {environment.id!r}, which cannot be made: {reason}") from None
