"""A game of Atari as one gymnasium environment, by the rules that ale-py's vector of games has.

For what that vector does not offer: other modes and difficulties, and wrappers.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np

from galampi.job import Environment

OWN_ARGUMENTS = {
    "frameskip": "environment.frame_skip",
    "repeat_action_probability": "environment.repeat_action_probability",
    "full_action_space": "environment.full_action_space",
    "max_num_frames_per_episode": "environment.max_episode_frames",
    "obs_type": "environment.grayscale",
}
"""Arguments of ale-py's games that are settings of a job, and what is said of a game goes by these."""


def most_frames(environment: Environment) -> int:
    """Return the frames after which a game is cut, by either of two settings."""
    most_steps = environment.max_episode_steps or environment.max_episode_frames
    return min(environment.max_episode_frames, most_steps * environment.frame_skip)


class Game(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Skips frames, takes the maximum of the last two, shrinks it and stacks what was seen.

    A game begins with FIRE where it has that button, and a number of no-ops that is drawn; FIRE counts as one of them,
    as in ale-py's vector.
    """

    def __init__(self, game: gym.Env[Any, Any], environment: Environment) -> None:
        super().__init__(game)
        self._ale: ale_py.ALEInterface = game.unwrapped.ale  # type: ignore[attr-defined]
        self._settings = environment
        self._most_frames = most_frames(environment)
        meanings: list[str] = game.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self._fire = meanings.index("FIRE") if "FIRE" in meanings else None
        side = environment.image_size
        shape = (side, side) if environment.grayscale else (side, side, 3)
        self._seen: deque[np.ndarray] = deque(maxlen=environment.frame_stack)
        self._num_frames = 0
        self.observation_space = gym.spaces.Box(0, 255, (environment.frame_stack, *shape), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        """Start a game."""
        _, info = self.env.reset(seed=seed, options=options)
        if self._fire is not None:
            self.env.step(self._fire)
        if self._settings.max_noops:
            num_noops = self.unwrapped.np_random.integers(self._settings.max_noops) - (self._fire is not None)
            for _ in range(num_noops):
                self.env.step(0)
        self._num_frames = 0
        first = self._shrunk(self._screen())
        self._seen.extend([np.zeros_like(first)] * (self._settings.frame_stack - 1))
        self._seen.append(first)
        return np.stack(self._seen), {**info, "lives": self._ale.lives()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, Any]:
        """Hold an action for some frames."""
        total, terminated = 0.0, False
        screens: deque[np.ndarray] = deque(maxlen=2)
        for frame in range(self._settings.frame_skip):
            _, reward, terminated, _, info = self.env.step(action)
            total += float(reward)
            self._num_frames += 1
            if terminated or frame >= self._settings.frame_skip - 2:
                screens.append(self._screen())
            if terminated:
                break
        self._seen.append(self._shrunk(np.maximum(screens[0], screens[-1])))
        truncated = not terminated and self._num_frames >= self._most_frames
        return np.stack(self._seen), total, terminated, truncated, {**info, "lives": self._ale.lives()}

    def _screen(self) -> np.ndarray:
        screen: np.ndarray = self._ale.getScreenGrayscale() if self._settings.grayscale else self._ale.getScreenRGB()
        return screen

    def _shrunk(self, screen: np.ndarray) -> np.ndarray:
        """Return the screen with every pixel the mean of the area that it covers."""
        side = self._settings.image_size
        rows = _averaged(screen.astype(np.float64), side)
        shrunk: np.ndarray = np.rint(_averaged(rows.swapaxes(0, 1), side).swapaxes(0, 1)).astype(np.uint8)
        return shrunk


def _averaged(values: np.ndarray, new_size: int) -> np.ndarray:
    """Return [new_size, ...] means over equal stretches of the first axis of values [size, ...]."""
    size = len(values)
    edges = np.arange(new_size + 1) * size / new_size
    before = np.minimum(edges.astype(np.int64), size - 1)
    part = (edges - before).reshape(-1, *[1] * (values.ndim - 1))
    sums = values.cumsum(axis=0) - values
    means: np.ndarray = np.diff(sums[before] + part * values[before], axis=0) * (new_size / size)
    return means
