"""CartPole that takes its time until the job has been requeued, and then none."""

import os
import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

STEP_S = 0.0 if int(os.environ.get("SLURM_RESTART_COUNT", "0")) else 0.06


class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(STEP_S)
        return super().step(action)


gym.register("Slow-v0", entry_point=Slow, max_episode_steps=500)
