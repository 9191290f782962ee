"""Program: Stable-Baselines3's A2C learns a problem to its end.

Runs in an environment that has Stable-Baselines3 and need not have galampi: `python sb3_learn.py SETTINGS`, SETTINGS
being JSON as `outside.settings` makes it. Prints one line of JSON: the env steps at which episodes ended, their
returns, the seconds it took and the version.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import A2C, __version__
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv


class Episodes(BaseCallback):
    """Notes at how many env steps episodes end, and their returns."""

    def __init__(self) -> None:
        super().__init__()
        self.env_steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.env_steps += [self.num_timesteps] * len(ended)
        self.returns += [float(each) for each in ended]
        return True


def main() -> None:
    """Train."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(1)

    def simulator() -> gym.Env[Any, Any]:
        # Returns are told as they are, whatever is learned from.
        environment = Monitor(gym.make(settings["environment"]))
        return gym.wrappers.TransformReward(environment, lambda reward: settings["reward_scale"] * float(reward))

    first_rate = settings["learning_rate"]
    falling: Callable[[float], float] = lambda left: first_rate * left  # noqa: E731
    model = A2C(
        "MlpPolicy",
        DummyVecEnv([simulator] * settings["num_envs"]),
        learning_rate=falling if settings["is_rate_falling"] else first_rate,
        policy_kwargs={"net_arch": settings["hidden_sizes"]},
        device="cpu",
        seed=settings["seed"],
        **settings["a2c"],
    )
    episodes = Episodes()
    begins_s = time.monotonic()
    model.learn(settings["total_env_steps"], callback=episodes)
    found = {"env_steps": episodes.env_steps, "returns": episodes.returns, "version": __version__}
    print(json.dumps({**found, "duration_s": time.monotonic() - begins_s}), flush=True)


if __name__ == "__main__":
    main()
