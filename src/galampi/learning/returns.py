"""Returns and advantages of a rollout, as pure functions of arrays.

Every array is `[T, B]`: T steps of B simulators. `terminated[t]` says that the return ends with reward t.
`truncated[t]` says that the episode was cut after reward t although it could have gone on: its return
continues with the value of the observation it was cut at, `values[t + 1]`. Rows that are no step at all (the
one that resets a simulator after an episode) need no mask here: nothing flows past an end, and what is
computed for them is not used.
"""

from __future__ import annotations

import numpy as np


def n_step_returns(
    rewards: np.ndarray, values: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, gamma: float
) -> np.ndarray:
    """Compute returns that bootstrap at the rollout's end (A3C, Mnih et al. 2016, Algorithm S3).

        R_t = r_t + gamma * (0 if terminated_t; V_{t+1} if truncated_t or t = T-1; R_{t+1} otherwise)

    Args:
        rewards: [T, B] float32.
        values: [T+1, B] float32, of the observations before each step and after the last.
        terminated: [T, B] bool.
        truncated: [T, B] bool.
        gamma: Discount of one step.

    Returns:
        [T, B] float32.
    """
    returns = np.empty_like(rewards)
    following = values[-1]
    for t in reversed(range(len(rewards))):
        following = np.where(truncated[t], values[t + 1], following)
        following = rewards[t] + np.float32(gamma) * np.where(terminated[t], np.float32(0), following)
        returns[t] = following
    return returns


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    gamma: float,
    lambda_: float,
) -> np.ndarray:
    """Compute generalised advantage estimates (Schulman et al. 2016, equation 16).

        delta_t = r_t + gamma (1 - terminated_t) V_{t+1} - V_t
        A_t = delta_t + gamma lambda (1 - terminated_t) (1 - truncated_t) A_{t+1},  A_T = 0

    With lambda = 1 this is `n_step_returns` less V_t.

    Args:
        rewards: [T, B] float32.
        values: [T+1, B] float32, of the observations before each step and after the last.
        terminated: [T, B] bool.
        truncated: [T, B] bool.
        gamma: Discount of one step.
        lambda_: Decay of the weight of later deltas.

    Returns:
        [T, B] float32.
    """
    deltas = rewards + np.float32(gamma) * np.where(terminated, np.float32(0), values[1:]) - values[:-1]
    decay = np.where(terminated | truncated, np.float32(0), np.float32(gamma * lambda_))
    advantages = np.empty_like(rewards)
    following = np.zeros_like(values[-1])
    for t in reversed(range(len(rewards))):
        following = deltas[t] + decay[t] * following
        advantages[t] = following
    return advantages
