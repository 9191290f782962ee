"""How one environment is made as a job asks for it: found, given its arguments, and wrapped."""

from __future__ import annotations

import difflib
import random
import sys
from contextlib import closing
from importlib.metadata import entry_points
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from galampi.environments.atari import OWN_ARGUMENTS, Game
from galampi.environments.contract import is_number, watch
from galampi.errors import USERS_FAILURES, UserError
from galampi.job import Environment, did_you_mean, import_module
from galampi.job.modules import one_line

gym.register_envs(ale_py)

NUMBER = "{simulator}"
"""What stands for the simulator's number in `environment.kwargs`."""


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
            try:
                plugin.load()()
            except USERS_FAILURES as error:
                raise UserError(
                    f"environment.id: module {module!r} offers environments by {plugin.value!r}, which raises "
                    f"{one_line(error)}"
                ) from error


def seed_global_generators(*entropy: int) -> None:
    """Seed the generators that environments of others may draw from: Python's, numpy's and torch's own."""
    words = np.random.SeedSequence(entropy).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


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
    most_steps = environment.max_episode_steps or None
    if "max_episode_steps" in kwargs:
        raise UserError("environment.kwargs.max_episode_steps is for environment.max_episode_steps to say")
    if environment.is_atari:
        if kwargs.get("continuous"):
            raise UserError("environment.kwargs.continuous is true; games of Atari have discrete actions here")
        for key in OWN_ARGUMENTS.keys() & kwargs.keys():
            raise UserError(f"environment.kwargs.{key} is for {OWN_ARGUMENTS[key]} to say")
        # A step here is a frame, so `Game` counts the steps.
        most_steps = None
        kwargs |= {
            "frameskip": 1,
            "max_num_frames_per_episode": 0,  # `Game` counts; the emulator's own limit stands still there.
            "repeat_action_probability": environment.repeat_action_probability,
            "full_action_space": environment.full_action_space,
        }
    name = f"environment.id is {environment.id!r}"
    try:
        made: gym.Env[Any, Any] = gym.make(spec, max_episode_steps=most_steps, disable_env_checker=True, **kwargs)
    except (gym.error.Error, ImportError) as error:
        raise UserError(f"{name}, which cannot be made: {' '.join(str(error).split())}") from None
    except USERS_FAILURES as error:
        raise UserError(f"{name}, which cannot be made: {one_line(error)}") from error
    if environment.is_atari:
        made = Game(made, environment)
    else:
        watch(made.unwrapped)
    for entry in environment.wrappers_and_kwargs:
        module, _, wrapper = entry.wrapper.partition(":")
        subject = f"environment.wrappers names {entry.wrapper!r}"
        import_module(module, f"{subject}; module {module!r}")
        if not callable(cls := getattr(sys.modules[module], wrapper, None)):
            raise UserError(f"{subject}; module {module!r} has no such wrapper")
        try:
            made = cls(made, **_filled(entry.kwargs, number))
        except USERS_FAILURES as error:
            raise UserError(f"{subject}, which cannot be put around {environment.id}: {one_line(error)}") from error
    return made


def render_modes(environment: Environment) -> tuple[list[str], float]:
    """Return how an environment can draw itself, and pictures a second.

    Raises:
        UserError: It cannot be made.
    """
    with closing(make_environment(environment)) as undrawn:
        rate: Any = undrawn.metadata.get("render_fps")
        return undrawn.metadata.get("render_modes") or [], float(rate) if is_number(rate) and rate > 0 else 30.0


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
