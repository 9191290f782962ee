"""A contestant's program: started, waited for, and ended with every process that it started itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import psutil

from galampi.errors import UserError

_PATIENCE_S = 120.0


class Program:
    """A running program that speaks JSON, a line at a time. Ends with the block it is used in."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            command: Its last word, the settings, is not repeated in errors.
            environment: Variables over those of this process.

        Raises:
            UserError: It cannot be started.
        """
        self._name = " ".join(command[:-1])
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # More ranks than cores: a rank that waits in Open MPI must let the others run.
                env={**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1", **(environment or {})},
            )
        except OSError as error:
            raise UserError(f"{command[0]}: cannot be started: {error.strerror}") from None

    def wait_for(self, line: str) -> None:
        """Wait until it prints a line, or ends."""
        assert self._process.stdout is not None
        for printed in self._process.stdout:
            if printed.strip() == line:
                return

    def finish(self, seconds: float, told: str = "") -> list[dict[str, Any]]:
        """Tell it something and wait for its end.

        Args:
            seconds: Time it measures; it is given three times that, and two minutes.
            told: Goes to its standard input.

        Returns:
            What it measured.

        Raises:
            UserError: It failed, measured nothing, or has not ended in time.
        """
        timeout_s = 3 * seconds + _PATIENCE_S
        try:
            output, errors = self._process.communicate(told, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise UserError(f"{self._name} has not ended after {timeout_s:.0f} s: is this machine busy?") from None
        if self._process.returncode != 0:
            said = (errors.strip() or "it said nothing").splitlines()[-1]
            raise UserError(f"{self._name} ended with {self._process.returncode}: {said}")
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and the ranks and workers below it, if it still runs."""
        if self._process.poll() is None:
            # Launchers put ranks into sessions of their own, so that no process group holds them all.
            below = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for process in below:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(below, timeout=20)
        self._process.communicate()
