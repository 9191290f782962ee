"""Program: Stable-Baselines3's A2C on the same game.

With its own defaults and the two coefficients that RL Baselines3 Zoo has for Atari (entropy 0.01, value 0.25). Runs in
an environment that has Stable-Baselines3 and need not have galampi: `python sb3_a2c.py SETTINGS`, SETTINGS being JSON:
`num_envs`, `subprocesses` (whether simulators are processes), `warm_up_s` and `seconds`. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import ale_py
import gymnasium as gym
from stable_baselines3 import A2C, __version__
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack


class Stopwatch(BaseCallback):
    """Counts env steps between the end of the warm-up and the end of the time."""

    def __init__(self, warm_up_s: float, seconds: float) -> None:
        super().__init__()
        self.warm_up_s, self.seconds = warm_up_s, seconds
        self.begun: tuple[float, int] | None = None
        self.steps_per_s = 0.0

    def _on_training_start(self) -> None:
        self.starts_s = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # A rollout starts when the update before it has ended.
        now_s = time.monotonic()
        if self.begun is None and now_s - self.starts_s > self.warm_up_s:
            self.begun = now_s, self.num_timesteps
        elif self.begun is not None and now_s - self.begun[0] > self.seconds:
            self.steps_per_s = (self.num_timesteps - self.begun[1]) / (now_s - self.begun[0])
            raise TimeIsOverError


class TimeIsOverError(Exception):
    """Ends the training."""


def main() -> None:
    """Train for a while."""
    settings = json.loads(sys.argv[1])
    gym.register_envs(ale_py)
    games = make_atari_env(
        "ALE/Pong-v5",
        n_envs=settings["num_envs"],
        seed=1,
        env_kwargs={"frameskip": 1, "repeat_action_probability": 0.0},
        vec_env_cls=SubprocVecEnv if settings["subprocesses"] else DummyVecEnv,
    )
    model = A2C("CnnPolicy", VecFrameStack(games, n_stack=4), ent_coef=0.01, vf_coef=0.25, device="cpu")
    stopwatch = Stopwatch(settings["warm_up_s"], settings["seconds"])
    try:
        model.learn(10**9, callback=stopwatch)
    except TimeIsOverError:
        print(json.dumps({"steps_per_s": stopwatch.steps_per_s, "version": __version__}), flush=True)
    games.close()


if __name__ == "__main__":
    main()
