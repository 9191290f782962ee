"""Spaces of actions: how a policy's action becomes what a simulator takes.

Owns the numbers a policy may choose, how those of a Box are scaled, and which spaces are refused. Knows neither
simulators nor networks.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from galampi.environments.spaces import says_something
from galampi.errors import UserError


class Actuation:
    """What a policy's action is to a simulator.

    A policy acts in numbers of one size, whatever the bounds of a Box. Where both bounds are finite,

        a = clip((high + low) / 2 + x (high - low) / 2, low, high)

    and where one is not, a = clip(x, low, high). Numbers out of several sets are counted from 0 by the policy.

    Attributes:
        shape: Of the policy's action: () or (k,).
        dtype: int64 or float32.
        least: Least number [*shape] it may choose; of a Box, any finite one will do.
        most: Greatest number [*shape].
        low, high: Bounds [k] of a Box.
        middle, half_range: Of a Box, what 0 becomes, and how much more 1 does.
        num_choices: Outputs of which one, or one of each number, is chosen; 0 for a Box.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        """Take a space of actions.

        Raises:
            UserError: It is not supported.
        """
        self._space = space
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.int64)
        self.least = self.most = np.zeros(0, np.int64)
        if isinstance(space, gym.spaces.Discrete):
            self.least = np.array(space.start, np.int64)
            self.most = self.least + int(space.n) - 1
        elif isinstance(space, gym.spaces.MultiDiscrete):
            self.shape = (space.nvec.size,)
            self.least, self.most = np.zeros(self.shape, np.int64), space.nvec.ravel().astype(np.int64) - 1
        elif isinstance(space, gym.spaces.MultiBinary):
            self.shape = (math.prod(space.shape),)
            self.least, self.most = np.zeros(self.shape, np.int64), np.ones(self.shape, np.int64)
        elif isinstance(space, gym.spaces.Box) and space.low.size:
            self.shape, self.dtype = (space.low.size,), np.dtype(np.float32)
            self.least = self.most = np.zeros(self.shape, np.float32)
            self.low, self.high = (bound.ravel().astype(np.float64) for bound in (space.low, space.high))
            is_bounded = says_something(space, space.low).ravel() & says_something(space, space.high).ravel()
            low, high = (np.where(is_bounded, bound, end) for bound, end in ((self.low, -1), (self.high, 1)))
            self.middle, self.half_range = (high + low) / 2, (high - low) / 2
        else:
            raise unsupported_actions(space)
        self.num_choices = 0 if self.dtype.kind == "f" else int((self.most - self.least + 1).sum())

    def check(self, actions: np.ndarray) -> None:
        """Refuse actions of B simulators that are none.

        Raises:
            ValueError: Their shape is not [B, *shape], or one lies outside the space.
            UserError: One is not finite.
        """
        if actions.shape[1:] != self.shape or not len(actions):
            raise ValueError(f"actions have shape {actions.shape}; must be {('B', *self.shape)}")
        if self.dtype.kind == "f":
            if not np.isfinite(actions).all():
                raise UserError(
                    "an action of the policy is not finite: training has diverged; the learning rate may be too high, "
                    "or rewards too large (learner.reward_scale, learner.normalize_returns)"
                )
        elif actions.dtype.kind not in "iu" or (actions < self.least).any() or (actions > self.most).any():
            raise ValueError(f"actions are {actions}; must be whole numbers from {self.least} to {self.most}")

    def example(self, mask: np.ndarray | None) -> np.ndarray:
        """Return an action [*shape] of the policy, the first that is allowed; of a Box the middle."""
        if mask is None:
            return np.zeros(self.shape, self.dtype) + self.least
        sizes = np.atleast_1d(self.most - self.least + 1)
        firsts = [int(part.argmax()) for part in np.split(mask, np.cumsum(sizes)[:-1])]
        return np.array(firsts, np.int64).reshape(self.shape) + self.least

    def __call__(self, action: np.ndarray) -> Any:
        """Return what a simulator takes for one action [*shape] of the policy."""
        space = self._space
        if isinstance(space, gym.spaces.Discrete):
            return np.asarray(action).astype(space.dtype)[()]
        if isinstance(space, gym.spaces.MultiDiscrete):
            return (action.reshape(space.shape) + space.start).astype(space.dtype)
        assert space.shape is not None
        if isinstance(space, gym.spaces.Box):
            action = np.clip(self.middle + self.half_range * action, self.low, self.high)
            if space.dtype is not None and space.dtype.kind in "iub":
                action = np.rint(action)
            # A bound that the type rounds away from it is not passed.
            return np.clip(action.reshape(space.shape).astype(space.dtype), space.low, space.high)
        return action.reshape(space.shape).astype(space.dtype)


def unsupported_actions(space: gym.Space[Any]) -> UserError:
    """Return the error that refuses a space of actions."""
    return UserError(
        f"environment.id: the action space is a {type(space).__name__}; must be Discrete, MultiDiscrete, MultiBinary "
        "or a Box"
    )
