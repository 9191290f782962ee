"""One simulator: made as a job asks for it, and watched, for it may be anybody's.

Owns what a simulator is given and what it must answer. What breaks the contract of gymnasium ends the job in one line
that says how; what is raised in the middle of an episode ends that episode, and the simulator is made anew.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Environment, Wrapper, did_you_mean, import_module
from galampi.job.modules import one_line
from galampi.learning.actuation import Actuation
from galampi.learning.atari import Game
from galampi.learning.spaces import Encoding, UnfitError

gym.register_envs(ale_py)

NUMBER = "{simulator}"
"""What stands for the simulator's number in `environment.kwargs`."""
_GREATEST = float(np.finfo(np.float32).max)
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
            _check_reset(answer)
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
            _check_step(answer)
        except UnfitError as error:
            raise self._fault(str(error)) from None
        except USERS_FAILURES as error:
            return self._failed(error)
        observation, reward, terminated, truncated, info = answer
        if not _is_number(reward):
            raise self._fault(f"the reward is {_told(reward)}; must be a number")
        if not abs(reward := _as_float(reward)) <= _GREATEST:
            raise self._fault(f"the reward is {reward}; must be finite, in 32 bits too")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_, numbers.Integral)) and not _is_scalar_array(flag, "b"):
                raise self._fault(f"{name} is {_told(flag)}; must be true or false")
        return self._answer(observation, info, reward, bool(terminated), bool(truncated))

    def render(self) -> Any:
        """Return what the environment draws."""
        return self._env.render()

    def close(self) -> None:
        """End it."""
        self._env.close()

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
                raise self._fault(f"the observation has no {self._mask_key!r}: {_told(observation)}")
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
            int(info["lives"]) if self._settings.is_atari else 0,
            self._mask(mask) if self.has_mask else None,
            {str(key): _as_float(value) for key, value in info.items() if _is_number(value)} if is_end else {},
            None,
        )

    def _mask(self, mask: Any) -> np.ndarray:
        """Return a mask as it lies beside the outputs of a policy: those of several numbers one after the other."""
        num_choices = self.actuation.num_choices
        if mask is None:
            return np.ones(num_choices, np.bool_)
        try:
            flat = np.asarray(mask).ravel()
        except ValueError:
            # Parts of unlike length.
            try:
                flat = np.concatenate([np.asarray(part).ravel() for part in mask])
            except ValueError:
                flat = np.zeros(0)
        if flat.shape != (num_choices,) or flat.dtype.kind not in "biuf":
            raise self._fault(f"the action mask is {_told(mask)}; must say of {num_choices} choices which are allowed")
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
        with suppress(Exception):
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


def spec_of(environment_id: str) -> EnvSpec:
    """Return what gymnasium knows of an environment, or of a class that a module holds.

    Raises:
        UserError: There is none of this id, or its package is missing.
    """
    module, _, name = environment_id.rpartition(":")
    if module:
        import_module(module, f"environment.id is {environment_id!r}; module {module!r}")
        if name not in gym.registry:
            _register_plugins(module)
        if name not in gym.registry and callable(getattr(sys.modules[module], name, None)):
            return EnvSpec(name, entry_point=environment_id)
    try:
        return gym.spec(name)
    except (gym.error.Error, ModuleNotFoundError) as error:
        if module:
            held = [key for key, value in vars(sys.modules[module]).items() if isinstance(value, type)]
            near = did_you_mean(name, held) or f"; {_hint(name, error)}"
            raise UserError(
                f"environment.id is {environment_id!r}; module {module!r} has no class {name!r} and registers no such "
                f"environment{near}"
            ) from None
        raise UserError(f"environment.id is {environment_id!r}; {_hint(environment_id, error)}") from None


def _register_plugins(module: str) -> None:
    """Let a package register the environments that it offers as plugins of gymnasium, which loads none by itself."""
    for plugin in entry_points(group="gymnasium.envs"):
        if plugin.module.partition(".")[0] == module.partition(".")[0]:
            plugin.load()()


def make_environment(environment: Environment, number: int = 0, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make one environment as a job asks for it.

    Args:
        environment: What to make.
        number: Of the simulator, for its arguments.
        render_mode: How it draws itself; None if it does not.

    Raises:
        UserError: It cannot be made.
    """
    spec = spec_of(environment.id)
    kwargs = _filled(environment.kwargs, number)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if environment.is_atari:
        kwargs = {
            "frameskip": 1,
            "repeat_action_probability": environment.repeat_action_probability,
            "full_action_space": environment.full_action_space,
            **kwargs,
        }
    name = f"environment.id is {environment.id!r}"
    try:
        made: gym.Env[Any, Any] = gym.make(
            spec, max_episode_steps=environment.max_episode_steps or None, disable_env_checker=True, **kwargs
        )
    except (gym.error.Error, ImportError) as error:
        raise UserError(f"{name}, which cannot be made: {' '.join(str(error).split())}") from None
    except USERS_FAILURES as error:
        hint = ""
        if "daemonic processes" in str(error):
            hint = "; it has processes of its own, for which environment.vectorization must be 'sync'"
        raise UserError(f"{name}, which cannot be made: {one_line(error)}{hint}") from error
    if environment.is_atari:
        made = Game(made, environment)
    else:
        _watch(made.unwrapped)
    for entry in environment.wrappers:
        reference, arguments = (entry.wrapper, entry.kwargs) if isinstance(entry, Wrapper) else (entry, {})
        module, _, wrapper = reference.partition(":")
        subject = f"environment.wrappers names {reference!r}"
        import_module(module, f"{subject}; module {module!r}")
        if not callable(cls := getattr(sys.modules[module], wrapper, None)):
            raise UserError(f"{subject}; module {module!r} has no such wrapper")
        try:
            made = cls(made, **_filled(arguments, number))
        except USERS_FAILURES as error:
            raise UserError(f"{subject}, which cannot be put around {environment.id}: {one_line(error)}") from error
    return made


def render_modes(environment: Environment) -> tuple[list[str], float]:
    """Return how an environment can draw itself, and pictures a second.

    Raises:
        UserError: It cannot be made.
    """
    with closing(make_environment(environment)) as undrawn:
        return undrawn.metadata.get("render_modes", []), undrawn.metadata.get("render_fps", 30)


def _watch(environment: gym.Env[Any, Any]) -> None:
    """Check what an environment itself returns, before a wrapper takes it apart and raises what says nothing of it."""

    def checked(method: Callable[..., Any], check: Callable[[Any], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **settings: Any) -> Any:
            answer = method(*arguments, **settings)
            check(answer)
            return answer

        return call

    environment.reset = checked(environment.reset, _check_reset)  # type: ignore[method-assign]
    environment.step = checked(environment.step, _check_step)  # type: ignore[method-assign]


def _check_reset(answer: Any) -> None:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise UnfitError(f"reset returned {_told(answer)}; gymnasium wants (observation, info)")
    _check_info("reset", answer[1])


def _check_step(answer: Any) -> None:
    if not isinstance(answer, tuple) or len(answer) != 5:
        wanted = "(observation, reward, terminated, truncated, info)"
        raise UnfitError(f"step returned {_told(answer)}; gymnasium wants {wanted}")
    _check_info("step", answer[4])


def _check_info(method: str, info: Any) -> None:
    if not isinstance(info, Mapping):
        raise UnfitError(f"the info that {method} returned is {_told(info)}; must be a dict")


def _filled(value: Any, number: int) -> Any:
    """Return arguments with the simulator's number in place of what stands for it, and lists as TOML has them."""
    if isinstance(value, dict):
        return {key: _filled(each, number) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_filled(each, number) for each in value]
    if value == NUMBER:
        return number
    return value.replace(NUMBER, str(number)) if isinstance(value, str) else value


def _hint(environment_id: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"module {error.name!r} cannot be imported"
    # Case and version are what is mostly wrong; Atari's old ids are never meant.
    offered = [
        key
        for key, spec in gym.registry.items()
        if spec.namespace == "ALE" or not str(spec.entry_point).startswith("ale_py.")
    ]
    folded = {key.lower(): key for key in offered}
    near = [folded[key] for key in difflib.get_close_matches(environment_id.lower(), folded, n=3)]
    return f"no such environment; nearest: {', '.join(near)}" if near else "no such environment"


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) or _is_scalar_array(value, "biuf")


def _is_scalar_array(value: Any, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in kinds


def _as_float(number: Any) -> float:
    """Return a number; one that is too large for any float as infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
