"""Environments that are no good guests: one fails on rank 1 after some steps, one changes the current folder, one never
ends an episode, and one takes half a second for a step."""

import os
import tempfile
import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

from galampi.ranks.launched import launched_rank


class Faulty(CartPoleEnv):
    def step(self, action):
        self.steps_left = getattr(self, "steps_left", 200) - 1
        if self.steps_left == 0 and launched_rank() == 1:
            raise ZeroDivisionError("the simulator broke")
        return super().step(action)


class Wandering(CartPoleEnv):
    def __init__(self, render_mode=None):
        os.chdir(tempfile.mkdtemp(prefix="elsewhere-", dir="."))
        super().__init__(render_mode)


class Endless(CartPoleEnv):
    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


gym.register("Endless-v0", entry_point=Endless)
gym.register("Wandering-v0", entry_point=Wandering, max_episode_steps=500)
gym.register("Faulty-v0", entry_point=Faulty, max_episode_steps=500)


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(0.5)
        return super().step(action)


gym.register("Slow-v0", entry_point=Slow)
