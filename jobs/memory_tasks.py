"""Two tasks that no policy without a memory can do: `cartpole-positions.toml` and `recall.toml` name them."""

from typing import Any

import gymnasium as gym
import numpy as np


class Positions(gym.ObservationWrapper[np.ndarray, Any, Any]):
    """CartPole that shows where cart and pole are, and not how fast they move."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Leave out the velocities."""
        return observation[[0, 2]]


class Recall(gym.Env[np.ndarray, Any]):
    """Shows one of two signs, then nothing for some steps; to name it at the end is worth 1."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, delay: int = 4) -> None:
        self.delay = delay

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a sign, and show it."""
        super().reset(**kwargs)
        self.sign, self.now = int(self.np_random.integers(2)), 0
        return np.eye(2, dtype=np.float32)[self.sign], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Show nothing, and end after the delay."""
        self.now += 1
        is_over = self.now > self.delay
        return np.zeros(2, np.float32), float(is_over and action == self.sign), is_over, False, {}
