"""Fixtures of the tests of whole commands."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import SMALL_JOB, Command

# Tests that run under nohup would hand it on to what they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def galampi() -> Iterator[Callable[..., Command]]:
    """Start commands; those still running at the end are killed."""
    started: list[Command] = []

    def start(
        *arguments: object, ranks: int | None = 2, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> Command:
        command = Command([str(argument) for argument in arguments], ranks, env or {}, cwd)
        started.append(command)
        return command

    yield start
    for command in started:
        if command.process.poll() is None:
            command.kill()


@pytest.fixture
def small_job(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL_JOB)
    return path
