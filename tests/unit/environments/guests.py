"""Environments as users bring them, each with a habit of its own."""

import multiprocessing
import os
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import torch

CALLS: list = []


class Guest(gym.Env):
    """Shows [number, step] and ends after 5 steps; at step 3 of the episodes asked for it does what `habit` says."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, number=0, habit="", episodes=(1,), step_s=0.0):
        self.number, self.habit, self.episodes, self.step_s = number, habit, episodes, step_s
        self.episode = 0
        if habit == "no constructor":
            raise RuntimeError("the license\nserver is down")

    def _shown(self):
        return np.array([self.number, self.now], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.now = self.episode + 1, 0
        if self.habit == "reset raises":
            raise RuntimeError("no ground")
        return self._shown() if self.habit == "reset without info" else (self._shown(), {})

    def step(self, action):
        time.sleep(self.step_s)
        self.now += 1
        answer = [self._shown(), 1.0, self.now == 5, False, {"level": self.now, "name": "x", "won": True}]
        if self.now == 3 and self.episode in self.episodes:
            match self.habit:
                case "four values":
                    return self._shown(), 1.0, False, {}
                case "raises":
                    raise ZeroDivisionError("the simulator broke")
                case "exits":
                    sys.exit()
                case "dies":
                    os._exit(9)
                case "wrong shape":
                    answer[0] = np.zeros(3)
                case "nan observation":
                    answer[0] = np.array([0, np.nan])
                case "nan reward":
                    answer[1] = float("nan")
                case "no reward":
                    answer[1] = None
                case "no info":
                    answer[4] = None
                case "info for end":
                    answer[2] = {}
                case "ragged info":
                    answer[4] = {"path": [[1], [2, 3]], self.now: None, "big": np.zeros(3)}
        return tuple(answer)


class Masked(Guest):
    """Allows but one action, another at each step; any other raises."""

    action_space = gym.spaces.MultiDiscrete([2, 3])

    def __init__(self, where="info"):
        super().__init__()
        self.where = where
        if where == "observation":
            part = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
            self.observation_space = gym.spaces.Dict(allowed=gym.spaces.MultiBinary(5), shown=part)

    def _with_mask(self, answer):
        observation, *rest, info = answer
        self.allowed = (self.now % 2, self.now % 3)
        mask = tuple(np.eye(size, dtype=np.int8)[one] for size, one in zip((2, 3), self.allowed, strict=True))
        if self.where == "info":
            return observation, *rest, {**info, "action_mask": mask}
        return {"allowed": np.concatenate(mask), "shown": observation}, *rest, info

    def reset(self, **settings):
        return self._with_mask(super().reset(**settings))

    def step(self, action):
        assert tuple(action) == self.allowed, (action, self.allowed)
        return self._with_mask(super().step(action))


class Scaled(gym.ObservationWrapper):
    def __init__(self, env, by=2.0):
        super().__init__(env)
        self.by = by

    def observation(self, observation):
        return observation * np.float32(self.by)


class Negated(Scaled):
    def __init__(self, env):
        super().__init__(env, -1)


class NoWrapper:
    pass


class Fuse(gym.Wrapper):
    """Lets only simulator 1 have its habit."""

    def __init__(self, env):
        super().__init__(env)
        guest = env.unwrapped
        if guest.number != 1 or CALLS.count("fuse"):
            guest.habit = ""
        elif guest.number == 1:
            CALLS.append("fuse")


class Foreman(Guest):
    """Has a process forked and a program started, and ends them by a signal when it is closed."""

    def __init__(self):
        super().__init__()
        self.helpers = []
        self.helpers.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)))
        self.helpers[0].start()
        self.helpers.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))

    def close(self):
        for helper in self.helpers:
            helper.terminate()
        self.helpers[0].join()
        self.helpers[1].wait()


class Slow(Guest):
    """Takes its time to start, and none to go on."""

    def reset(self, **settings):
        time.sleep(0.15)
        return super().reset(**settings)


class Gambler(Guest):
    def step(self, action):
        import random

        random.random()
        np.random.random()
        torch.rand(1)
        return super().step(action)


class Worn(gym.Env):
    """Ends later with each simulator, and shows what is no number once it goes on."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, number):
        self.length, self.now = 3 + 20 * number, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.now += 1
        shown = np.full(2, 0.0 if self.now <= self.length else np.nan, np.float32)
        return shown, 1.0, self.now == self.length, False, {}


class MaskedBox(Guest):
    observation_space = gym.spaces.Dict(allowed=gym.spaces.MultiBinary(3), x=gym.spaces.Box(-1, 1, (2,)))
    action_space = gym.spaces.Box(-1, 1, (2,))


class Growing(Guest):
    def __init__(self, size):
        super().__init__()
        self.action_space = gym.spaces.Discrete(2 + size)


class Unclosable(gym.Wrapper):
    """Ends as environments do that close a window they never opened."""

    def close(self):
        raise AttributeError("no viewer")


class Silent(gym.Wrapper):
    """Tells nothing of what the environment told."""

    def reset(self, **settings):
        return self.env.reset(**settings)[0], {}

    def step(self, action):
        return *self.env.step(action)[:4], {}
