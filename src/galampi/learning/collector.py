"""Who collects rollouts, from simulators and under a learner's policy.

Owns the store of frames and activations, the masks and the running episodes. Knows no losses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch

from galampi.environments.simulator import Failure
from galampi.environments.vector import Simulators, Step
from galampi.job import Job
from galampi.learning.a2c import Learner
from galampi.learning.actions import masked
from galampi.learning.recurrence import Memory
from galampi.learning.rollout import Episode, Rollout
from galampi.memory import require_memory


class RolloutCollector:
    """Collects rollouts from simulators that go on where the last one ended.

    Attributes:
        env_s: Seconds the last `collect` spent in the simulators.
        act_s: Seconds it spent in the network, drawing actions included.
        failures: What simulators raised in it; the episodes that ended so are none.
    """

    def __init__(self, job: Job, simulators: Simulators, learner: Learner, *, num_ranks_on_node: int = 1) -> None:
        self._simulators = simulators
        self._learner = learner
        settings = job.learner
        clip = settings.clip_rewards
        self._clip_rewards = simulators.is_atari if clip == "auto" else clip
        self._reward_scale = np.float32(settings.reward_scale)
        self._gamma = settings.gamma
        shape = (settings.rollout_length, simulators.num_envs)
        values_shape = (shape[0] + 1, shape[1])
        # The backward pass takes as much again: the gradient of every activation.
        require_memory(
            num_ranks_on_node * 2 * math.prod(values_shape) * learner.policy.trunk.row_bytes,
            f"learner.rollout_length is {shape[0]} and environment.num_envs is {shape[1]}",
        )
        self._activations = learner.policy.trunk.new_activations(*values_shape)
        actuation = simulators.actuation
        self._actions = np.zeros((*shape, *actuation.shape), actuation.dtype)
        self._rewards = np.zeros(shape, np.float32)
        self._values = np.zeros(values_shape, np.float32)
        self._terminated, self._truncated, self._valid = (np.zeros(shape, np.bool_) for _ in range(3))
        # Scores are sums of up to 100,000 rewards: float32 would lose single points.
        self._returns = np.zeros(shape[1])
        self._lengths = np.zeros(shape[1], np.int64)
        self._resets_next = np.zeros(shape[1], np.bool_)
        self.env_s = self.act_s = 0.0
        recurrence = learner.policy.recurrence
        self._memory = recurrence.new_memory(shape[1]) if recurrence is not None else None
        # Of the observations before each step and after the last: whether what is remembered goes on into it.
        self._keeps = np.ones(values_shape, np.bool_)
        self.failures: list[Failure] = []
        # Before the next rollout: what was seen last, and of each simulator its running return.
        self._seen = simulators.reset()
        self._running_returns = np.zeros(shape[1])
        normalization = learner.normalization
        if not normalization.has_begun:
            normalization.begin(self._seen)
        self._normalizes = normalization.observations is not None
        learner.encode(self._seen, self._activations[0][-1])
        num_masked = actuation.num_choices if simulators.masks is not None else 0
        self._masks = np.ones((*shape, num_masked), np.bool_) if num_masked else None

    def collect(self) -> tuple[Rollout, list[Episode]]:
        """Take T steps in every simulator.

        Returns:
            The rollout, which the next call overwrites, and the episodes that ended in it.
        """
        policy = self._learner.policy
        inputs = self._activations[0]
        episodes: list[Episode] = []
        start_s = time.perf_counter()
        self.env_s = 0.0
        self.failures = []
        if self._normalizes:
            # By the moments of now.
            self._learner.encode(self._seen, inputs[0])
        else:
            inputs[0].copy_(inputs[-1])
        self._keeps[0] = self._keeps[-1]
        memory = Memory(self._memory.state, torch.from_numpy(self._keeps)) if self._memory is not None else None
        for t in range(len(self._rewards)):
            outputs, values = policy.forward([layer[t] for layer in self._activations], self._memory_for(t))
            if self._masks is not None and self._simulators.masks is not None:
                self._masks[t] = self._simulators.masks
                outputs = masked(outputs, torch.from_numpy(self._masks[t]))
            self._actions[t] = policy.sample(outputs, self._learner.generator)
            self._values[t] = values.numpy()
            before_s = time.perf_counter()
            step = self._simulators.step(self._actions[t])
            observations, rewards, terminated, truncated, life_lost = step[:5]
            self.env_s += time.perf_counter() - before_s
            self._valid[t] = ~self._resets_next
            self._returns += rewards
            self._lengths += self._valid[t]
            self._resets_next = terminated | truncated
            self.failures += step.failures
            episodes += self._ended(step)
            self._terminated[t] = terminated | life_lost
            self._truncated[t] = truncated
            self._rewards[t] = self._learnt_rewards(rewards, t)
            # An episode that was cut is remembered into its last observation; what follows that is a new one.
            self._keeps[t + 1] = self._valid[t] & ~self._terminated[t]
            if self._normalizes:
                self._seen = observations
                self._learner.normalization.count(observations)
            self._learner.encode(observations, inputs[t + 1])
        # The next rollout begins with this observation, and then remembers it.
        last = self._memory_for(len(self._rewards))
        _, values = policy.forward([layer[-1] for layer in self._activations], last.copy(1) if last else None)
        self._values[-1] = values.numpy()
        self.act_s = time.perf_counter() - start_s - self.env_s
        rollout = Rollout(
            self._activations,
            self._actions,
            self._rewards,
            self._values,
            self._terminated,
            self._truncated,
            self._valid,
            policy.parameters.version,
            self._masks,
            memory,
        )
        return rollout, episodes

    def _learnt_rewards(self, rewards: np.ndarray, t: int) -> np.ndarray:
        """Return the rewards [B] of a step of the rollout as the learner sees them."""
        rewards = rewards * self._reward_scale
        if self._clip_rewards:
            rewards = np.clip(rewards, -1, 1)
        moments = self._learner.normalization.returns
        if moments is None:
            return rewards
        self._running_returns = self._gamma * self._running_returns + rewards
        moments.count(self._running_returns[self._valid[t], None])
        self._running_returns[self._terminated[t] | self._truncated[t]] = 0
        return moments.scaled(rewards)

    def _ended(self, step: Step) -> Iterator[Episode]:
        """Yield the episodes that a step has ended, but for those that a failure has, and begin new ones."""
        failed = {failure.simulator for failure in step.failures}
        for simulator in np.flatnonzero(step.terminated | step.truncated).tolist():
            if simulator not in failed:
                numbers = step.numbers.get(simulator, {})
                length = int(self._lengths[simulator])
                yield Episode(float(self._returns[simulator]), length, simulator, numbers)
            self._returns[simulator] = self._lengths[simulator] = 0

    def _memory_for(self, t: int) -> Memory | None:
        """Return what is remembered by each simulator before the observation t of the rollout."""
        if self._memory is not None:
            self._memory.keeps = torch.from_numpy(self._keeps[t : t + 1])
        return self._memory
