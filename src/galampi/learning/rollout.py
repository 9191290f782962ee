"""What a rollout is: T steps of B simulators under one policy, and the episodes that ended meanwhile.

Knows neither who collects it nor who learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from galampi.learning.recurrence import Memory


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        episodic_return: The game's own score: neither clipped nor scaled, over all lives.
        length: Env steps.
        simulator: Index of the simulator on this rank.
        numbers: What its last info held of numbers.
    """

    episodic_return: float
    length: int
    simulator: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """T steps of B simulators. The arrays are the collector's own, and hold until it collects again.

    Attributes:
        activations: Network input [T+1, B, ...], then the output of every layer of the trunk. Their last row
            is of the observation after the last step.
        actions: [T, B] or [T, B, k] int64, or [T, B, k] float32.
        rewards: [T, B] float32, scaled and clipped as the learner wants them.
        values: [T+1, B] float32.
        terminated: [T, B] bool; the return ends: the episode did, or a life was lost.
        truncated: [T, B] bool; the episode was cut.
        valid: [T, B] bool; False for a row that only reset a simulator.
        parameters_version: Version of the parameters that computed the activations and values.
        masks: [T, B, outputs] bool, the choices that were allowed; None where all were.
        memory: Of a policy that has one: the state before the first observation, and for all T+1 whether it goes on.
    """

    activations: list[torch.Tensor]
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    parameters_version: int
    masks: np.ndarray | None = None
    memory: Memory | None = None

    @property
    def num_valid(self) -> int:
        """Number of env steps."""
        return int(np.count_nonzero(self.valid))
