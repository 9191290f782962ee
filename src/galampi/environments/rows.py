"""Simulators side by side: in this process one after the other, or in several processes at once.

Owns the processes, and what they and this one say to each other. What is simulated is `simulator`'s to know.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from galampi.environments.making import seed_global_generators
from galampi.environments.simulator import Answer, Failure, Simulator
from galampi.errors import UserError
from galampi.job import Environment
from galampi.signals import STOP_SIGNALS, end_if_forked

_PATIENCE_S = 5.0
"""What a process is given to end by itself."""


class Answers(NamedTuple):
    """What K simulators answer; the fields of `Answer`, one row a simulator.

    Attributes:
        observations: [K, ...].
        rewards: [K] float64.
        terminated: [K] bool.
        truncated: [K] bool.
        lives: [K] int64.
        masks: [K, n] bool; None without masks.
        numbers: Of the last infos of the episodes that ended, by the simulator's index on the rank.
        failures: What was raised.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lives: np.ndarray
    masks: np.ndarray | None
    numbers: Mapping[int, Mapping[str, float]] = {}
    failures: Sequence[Failure] = ()

    def masks_of_each(self) -> Sequence[np.ndarray | None]:
        """Return the mask of each simulator, or None for each."""
        return [None] * len(self.rewards) if self.masks is None else list(self.masks)


class Row:
    """Simulators of this process, stepped one after the other.

    A simulator whose episode has ended is started anew by the next step, whose action it does not see.
    """

    def __init__(
        self,
        environment: Environment,
        indices: Sequence[int],
        first_number: int,
        first_seed: int,
        render_mode: str | None = None,
    ) -> None:
        """Make them.

        Args:
            environment: What to simulate.
            indices: Of the simulators, on this rank.
            first_number: Among those of all ranks, of the one with index 0.
            first_seed: Of the one with index 0.
            render_mode: How they draw themselves; None if they do not.

        Raises:
            UserError: One cannot be made, or is not like the others.
        """
        self._indices = indices
        self._simulators = [
            Simulator(
                environment,
                index=index,
                number=first_number + index,
                seed=first_seed + index,
                render_mode=render_mode,
            )
            for index in indices
        ]
        first = self._simulators[0]
        self.spaces = first.observation_space, first.action_space
        for index, simulator in zip(indices, self._simulators, strict=True):
            spaces = simulator.observation_space, simulator.action_space
            refuse_other_spaces(environment, first_number + index, spaces, self.spaces)
        self._last: list[Answer] = []
        self._resting: set[int] = set()

    def reset(self) -> Answers:
        """Start every simulator with its seed."""
        return self._together([simulator.start(reseed=True) for simulator in self._simulators])

    def step(self, actions: np.ndarray) -> Answers:
        """Take an action [K, ...] of the policy in every simulator that does not rest."""
        answers = []
        for index, simulator, last, action in zip(self._indices, self._simulators, self._last, actions, strict=True):
            if index in self._resting:
                answers.append(last._replace(reward=0.0, numbers={}, failure=None))
            elif last.terminated or last.truncated:
                answers.append(simulator.start())
            else:
                answers.append(simulator.step(action))
        return self._together(answers)

    def rest(self, index: int) -> None:
        """Let a simulator be: its answers stay as the last one was."""
        self._resting.add(index)

    def render(self) -> list[Any]:
        """Return what each of them draws."""
        return [simulator.render() for simulator in self._simulators]

    def close(self) -> None:
        """End the simulators."""
        for simulator in self._simulators:
            simulator.close()

    def _together(self, answers: Sequence[Answer]) -> Answers:
        self._last = list(answers)
        return Answers(
            np.stack([answer.observation for answer in answers]),
            np.array([answer.reward for answer in answers]),
            np.array([answer.terminated for answer in answers]),
            np.array([answer.truncated for answer in answers]),
            np.array([answer.lives for answer in answers]),
            _stacked([answer.mask for answer in answers]),
            {index: answer.numbers for index, answer in zip(self._indices, answers, strict=True) if answer.numbers},
            [answer.failure for answer in answers if answer.failure is not None],
        )


def refuse_other_spaces(
    environment: Environment,
    number: int,
    spaces: tuple[gym.Space[object], gym.Space[object]],
    first: tuple[gym.Space[object], gym.Space[object]],
) -> None:
    """Raise UserError unless a simulator's spaces, of observations and of actions, are those of the first one."""
    for name, space, of_first in zip(("observation_space", "action_space"), spaces, first, strict=True):
        if space != of_first:
            raise UserError(
                f"{environment.id}: {name} of simulator {number} is {space}; must be that of the others, {of_first}"
            )


class Processes:
    """Simulators in processes of their own, each of which has a row of them.

    They come from a server that is started for it, for a process that has started MPI must not be forked.
    """

    def __init__(
        self, environment: Environment, num_envs: int, first_number: int, first_seed: int, num_processes: int
    ) -> None:
        """Start the processes.

        Raises:
            UserError: As from `Row`.
        """
        context: BaseContext = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._rows = np.array_split(np.arange(num_envs), num_processes)
        self._environment_id = environment.id
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Before the interpreter waits for its children.
        self._end = Finalize(self, _end, (self._connections, self._processes), exitpriority=10)
        for indices in self._rows:
            ours, theirs = context.Pipe()
            # No daemon, which may have no processes of its own.
            process: BaseProcess = context.Process(  # type: ignore[attr-defined]
                target=_serve, args=(theirs, environment, indices.tolist(), first_number, first_seed), daemon=False
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        parts: list[tuple[gym.Space[object], gym.Space[object]]] = [(part[0], part[1]) for part in self._receive()]
        self.spaces = parts[0]
        for indices, spaces in zip(self._rows, parts, strict=True):
            refuse_other_spaces(environment, first_number + int(indices[0]), spaces, self.spaces)

    def reset(self) -> Answers:
        """Start every simulator with its seed."""
        return self._ask([None] * len(self._rows))

    def step(self, actions: np.ndarray) -> Answers:
        """Take an action [B, ...] of the policy in every simulator."""
        return self._ask([actions[indices] for indices in self._rows])

    def rest(self, index: int) -> None:
        """Let a simulator be, as `Row.rest` does."""
        for connection, indices in zip(self._connections, self._rows, strict=True):
            if index in indices:
                with suppress(OSError):  # What became of it is told by the next step.
                    connection.send(int(index))

    def close(self) -> None:
        """End the processes."""
        self._end()

    def _ask(self, questions: Sequence[np.ndarray | None]) -> Answers:
        for connection, question in zip(self._connections, questions, strict=True):
            try:
                connection.send(question)
            except OSError:
                # What became of it is told when its answer is awaited.
                continue
        parts = [Answers(*answer) for answer in self._receive()]
        observations, rewards, terminated, truncated, lives = (
            np.concatenate(arrays) for arrays in zip(*(part[:5] for part in parts), strict=True)
        )
        return Answers(
            observations,
            rewards,
            terminated,
            truncated,
            lives,
            _stacked([mask for part in parts for mask in part.masks_of_each()]),
            {index: numbers for part in parts for index, numbers in part.numbers.items()},
            [failure for part in parts for failure in part.failures],
        )

    def _receive(self) -> list[tuple[Any, ...]]:
        answers = []
        for connection, process, indices in zip(self._connections, self._processes, self._rows, strict=True):
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                process.join(_PATIENCE_S)
                raise UserError(
                    f"{self._environment_id}: the process of simulators {indices[0]} to {indices[-1]} of this rank has "
                    f"ended with code {process.exitcode}"
                ) from None
            if isinstance(answer, UserError):
                raise answer
            if isinstance(answer, str):
                raise RuntimeError(f"in a process of simulators:\n{answer}")
            answers.append(answer)
        return answers


def _stacked(masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return masks [K, n]; a simulator without one allows everything, and None is returned if all are."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    return np.stack([np.ones_like(given[0]) if mask is None else mask for mask in masks])


def _serve(
    connection: Connection, environment: Environment, indices: Sequence[int], first_number: int, first_seed: int
) -> None:
    """Answer what is asked, until the other end is closed; a mistake or a traceback is an answer too."""
    # Whether a job stops is its ranks' matter; with the rank that asks, this process ends too. If signals were ignored,
    # the programs that a simulator starts would ignore them as well, and it could not end them.
    handle = functools.partial(_leave_alone, os.getpid())
    for number in STOP_SIGNALS:
        signal.signal(number, handle)
    torch.set_num_threads(1)
    seed_global_generators(first_seed + indices[0])
    row = None
    try:
        row = Row(environment, indices, first_number, first_seed)
        connection.send(row.spaces)
        while True:
            asked = connection.recv()
            if isinstance(asked, int):
                row.rest(asked)
            else:
                connection.send(tuple(row.reset() if asked is None else row.step(asked)))
    except (EOFError, ConnectionError):
        if row is not None:
            row.close()
    except UserError as error:
        connection.send(error)
    except Exception:
        connection.send(traceback.format_exc())


def _leave_alone(process: int, number: int, frame: FrameType | None) -> None:
    end_if_forked(number, process)


def _end(connections: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
