"""An environment that fails on rank 1 after some steps."""

import os

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Faulty(CartPoleEnv):
    def step(self, action):
        self.steps_left = getattr(self, "steps_left", 200) - 1
        rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
        if self.steps_left == 0 and rank == "1":
            raise ZeroDivisionError("the simulator broke")
        return super().step(action)


gym.register("Faulty-v0", entry_point=Faulty, max_episode_steps=500)
