"""One simulator: made as a job asks for it, and watched, for it may be anybody's.

Owns what a simulator is given and what it must answer. What breaks the contract of gymnasium ends the job in one line
that says how; what is raised in the middle of an episode ends that episode, and the simulator is made anew.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from galampi.environments.actuation import Actuation
from galampi.environments.contract import as_flag, as_float, as_reward, check_reset, check_step, is_number, told
from galampi.environments.making import make_environment
from galampi.environments.spaces import Encoding, UnfitError
from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Environment
from galampi.job.modules import one_line

log = logging.getLogger(__name__)

ACTION_MASK = "action_mask"


class Failure(NamedTuple):
    """What a simulator raised.

    Attributes:
        simulator: Its index on this rank.
        episode: Number of its episode, from 1.
        error: In one line.
        traceback: All of it.
    """

    simulator: int
    episode: int
    error: str
    traceback: str


class Answer(NamedTuple):
    """What a simulator answers to one action, or to being started.

    Attributes:
        observation: Encoded.
        reward: The environment's own.
        terminated: The episode ended.
        truncated: It was cut, or the simulator failed.
        lives: Of a game of Atari; else 0.
        mask: [n] bool, which choices are allowed; None without a mask.
        numbers: Of the last info of an episode.
        failure: What it raised, if it did.
    """

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    lives: int
    mask: np.ndarray | None
    numbers: Mapping[str, float]
    failure: Failure | None


class Simulator:
    """One simulator.

    Attributes:
        observation_space: What is learnt from: without a mask that lies among the observations.
        action_space: Of the environment.
        encoding: Of observations.
        actuation: Of actions.
        has_mask: Whether it says which actions are allowed; known when it was started.
    """

    def __init__(
        self, environment: Environment, *, index: int, number: int, seed: int, render_mode: str | None = None
    ) -> None:
        """Make it.

        Args:
            environment: What to simulate.
            index: Among those of this rank.
            number: Among those of all ranks.
            seed: Of its first episode.
            render_mode: How it draws itself; None if it does not.

        Raises:
            UserError: It cannot be made, or has spaces that are not supported.
        """
        self._settings, self._index, self._number, self._seed = environment, index, number, seed
        self._is_broken = False
        self._num_failures = self._episode = self._step = 0
        self._env = make_environment(environment, number, render_mode)
        self._render_mode = render_mode
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(self._env, name, None), gym.Space):
                raise self._fault(f"has no {name} that is a space of gymnasium")
        space = self._env.observation_space
        self._mask_key = environment.action_mask
        if self._mask_key:
            if not isinstance(space, gym.spaces.Dict) or self._mask_key not in space.spaces:
                raise UserError(
                    f"environment.action_mask is {self._mask_key!r}; must be a key of what {environment.id} shows"
                )
            space = gym.spaces.Dict({key: part for key, part in space.spaces.items() if key != self._mask_key})
        self.observation_space: gym.Space[Any] = space
        self.action_space = self._env.action_space
        self.encoding = Encoding(space)
        self.actuation = Actuation(self.action_space)
        if self._mask_key and not self.actuation.num_choices:
            raise UserError(
                f"environment.action_mask does nothing: the actions of {environment.id} are a Box, of which no mask "
                "leaves any out"
            )
        self.has_mask: bool | None = None
        self._last = np.zeros(self.encoding.shape, self.encoding.dtype)

    def start(self, *, reseed: bool = False) -> Answer:
        """Start an episode: with the seed if that is asked for, and with one of its own after each failure.

        Raises:
            UserError: What comes is no observation, or the very first start fails.
        """
        seed = self._seed if reseed else None
        self._episode, self._step = self._episode + 1, 0
        try:
            if self._is_broken:
                self._env = make_environment(self._settings, self._number, self._render_mode)
                # The same seed would bring about the same failure.
                words = np.random.SeedSequence([self._seed, self._num_failures]).generate_state(1)
                seed = int(words[0]) >> 1
            answer = self._env.reset(seed=seed)
            check_reset(answer)
            self._is_broken = False
        except UnfitError as error:
            raise self._fault(str(error)) from None
        except USERS_FAILURES as error:
            if self._episode == 1:
                raise self._fault(f"its reset raises {one_line(error)}") from error
            return self._failed(error)
        return self._answer(*answer)

    def step(self, action: np.ndarray) -> Answer:
        """Take one action of a policy.

        Raises:
            UserError: What comes is not what gymnasium wants.
        """
        self._step += 1
        try:
            answer = self._env.step(self.actuation(action))
            check_step(answer)
        except UnfitError as error:
            raise self._fault(str(error)) from None
        except USERS_FAILURES as error:
            return self._failed(error)
        observation, reward, terminated, truncated, info = answer
        try:
            return self._answer(
                observation,
                info,
                as_reward(reward),
                as_flag("terminated", terminated),
                as_flag("truncated", truncated),
            )
        except UnfitError as error:
            raise self._fault(str(error)) from None

    def render(self) -> Any:
        """Return what the environment draws."""
        return self._env.render()

    def close(self) -> None:
        """End it; what it raises then harms nothing."""
        try:
            self._env.close()
        except USERS_FAILURES as error:
            log.warning("closing a simulator of %s: %s", self._settings.id, one_line(error))

    def _answer(
        self,
        observation: Any,
        info: Mapping[str, Any],
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
    ) -> Answer:
        mask = info.get(ACTION_MASK)
        if self._mask_key:
            if not isinstance(observation, Mapping) or self._mask_key not in observation:
                raise self._fault(f"the observation has no {self._mask_key!r}: {told(observation)}")
            mask = observation[self._mask_key]
        is_masked = mask is not None and self.actuation.num_choices > 0
        if self.has_mask is None:
            self.has_mask = is_masked
        elif is_masked and not self.has_mask:
            raise self._fault("an action mask comes, and none came with the first reset; each must give one")
        try:
            row = self.encoding(observation)
        except UnfitError as error:
            raise self._fault(f"the observation {error}") from None
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise self._fault(f"the observation holds {self._not_finite(row)}; must be finite")
        self._last = row
        is_end = terminated or truncated
        return Answer(
            row,
            reward,
            terminated,
            truncated,
            # Not of the info, which a wrapper may have dropped.
            int(self._env.unwrapped.ale.lives()) if self._settings.is_atari else 0,  # type: ignore[attr-defined]
            self._mask(mask) if self.has_mask else None,
            {str(key): as_float(value) for key, value in info.items() if is_number(value)} if is_end else {},
            None,
        )

    def _mask(self, mask: Any) -> np.ndarray:
        """Return a mask as it lies beside the outputs of a policy: those of several numbers one after the other."""
        num_choices = self.actuation.num_choices
        if mask is None:
            return np.ones(num_choices, np.bool_)
        try:
            flat = np.asarray(mask).ravel()
        except Exception:
            # Parts of unlike length, or what no number can be read of.
            try:
                flat = np.concatenate([np.asarray(part).ravel() for part in mask])
            except Exception:
                flat = np.zeros(0)
        if flat.shape != (num_choices,) or flat.dtype.kind not in "biuf":
            raise self._fault(f"the action mask is {told(mask)}; must say of {num_choices} choices which are allowed")
        return flat.astype(np.bool_)

    def _not_finite(self, row: np.ndarray) -> str:
        for part in self.encoding.parts:
            values = row.ravel()[part.columns]
            if len(bad := values[~np.isfinite(values)]):
                return f"{bad[0]}" + (f" in {part.name!r}" if part.name != "observation" else "")
        raise AssertionError

    def _failed(self, error: Exception | SystemExit) -> Answer:
        self._num_failures += 1
        self._is_broken = True
        with suppress(*USERS_FAILURES):
            self._env.close()
        where = f"{self._where()}: {one_line(error)}"
        text = "".join(traceback.format_exception(error))
        failure = Failure(self._index, self._episode, where, text)
        mask = np.ones(self.actuation.num_choices, np.bool_) if self.has_mask else None
        return Answer(self._last, 0.0, False, True, 0, mask, {}, failure)

    def _fault(self, text: str) -> UserError:
        return UserError(f"{self._where()}: {text}")

    def _where(self) -> str:
        where = f"{self._settings.id}, simulator {self._number}"
        return f"{where}, step {self._step} of episode {self._episode}" if self._step else where
