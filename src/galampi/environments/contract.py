"""What gymnasium wants of an environment's answers, and how one that is none is told."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from galampi.environments.spaces import UnfitError

_GREATEST = float(np.finfo(np.float32).max)


def watch(environment: gym.Env[Any, Any]) -> None:
    """Check what an environment itself returns, before a wrapper takes it apart and raises what says nothing of it."""

    def checked(method: Callable[..., Any], check: Callable[[Any], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **settings: Any) -> Any:
            answer = method(*arguments, **settings)
            check(answer)
            return answer

        return call

    environment.reset = checked(environment.reset, check_reset)  # type: ignore[method-assign]
    environment.step = checked(environment.step, check_step)  # type: ignore[method-assign]


def check_reset(answer: Any) -> None:
    """Check what a reset returned.

    Raises:
        UnfitError: It is not (observation, info).
    """
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise UnfitError(f"reset returned {told(answer)}; gymnasium wants (observation, info)")
    _check_info("reset", answer[1])


def check_step(answer: Any) -> None:
    """Check what a step returned, but for what lies in it.

    Raises:
        UnfitError: It is not (observation, reward, terminated, truncated, info).
    """
    if not isinstance(answer, tuple) or len(answer) != 5:
        wanted = "(observation, reward, terminated, truncated, info)"
        raise UnfitError(f"step returned {told(answer)}; gymnasium wants {wanted}")
    _check_info("step", answer[4])


def as_reward(value: Any) -> float:
    """Return the reward of a step.

    Raises:
        UnfitError: It is no number that 32 bits can hold.
    """
    if not is_number(value):
        raise UnfitError(f"the reward is {told(value)}; must be a number")
    if not abs(reward := as_float(value)) <= _GREATEST:
        raise UnfitError(f"the reward is {reward}; must be finite, in 32 bits too")
    return reward


def as_flag(name: str, value: Any) -> bool:
    """Return whether an episode has ended, `name`d terminated or truncated.

    Raises:
        UnfitError: It is neither true nor false.
    """
    if not isinstance(value, (bool, np.bool_, numbers.Integral)) and not _is_scalar_array(value, "b"):
        raise UnfitError(f"{name} is {told(value)}; must be true or false")
    return bool(value)


def is_number(value: Any) -> bool:
    """Whether a value is one real number."""
    return isinstance(value, (numbers.Real, np.bool_)) or _is_scalar_array(value, "biuf")


def as_float(number: Any) -> float:
    """Return a number; one that is too large for any float as infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def told(value: Any) -> str:
    """Return a value as a line of at most 80 characters shows it."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_info(method: str, info: Any) -> None:
    if not isinstance(info, Mapping):
        raise UnfitError(f"the info that {method} returned is {told(info)}; must be a dict")


def _is_scalar_array(value: Any, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in kinds
