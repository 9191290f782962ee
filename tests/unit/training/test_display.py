"""The progress of a job, as lines."""

import errno
import io
import os
import re
import sys
import time

import pytest

from galampi.job import Job
from galampi.training.display import Display, _launcher_terminal


@pytest.mark.parametrize(
    ("total", "left"), [(10, "00:00:00"), (1_010, "00:16:40"), (86_410, "24:00:00"), (2_527_210, "702:00:00")]
)
def test_hours_that_are_left_may_be_many(monkeypatch, capsys, total, left) -> None:
    monkeypatch.setenv("TERM", "dumb")
    display = Display(Job(total_env_steps=total), 0, 0.0)
    display.update(0, 1.0)
    start_s = time.monotonic()
    display._started_s = start_s
    monkeypatch.setattr(time, "monotonic", lambda: start_s + 10)
    display.update(10, 1.0)
    assert re.search(r"1 steps/s  return 1.0  left ([\d:]+)$", capsys.readouterr().out).group(1) == left


def test_progress_that_cannot_be_printed_ends_nothing(monkeypatch, caplog) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        with Display(Job(), 0, 0.0) as display:
            display.update(0, 1.0)
            display.update(10, 1.0)
            assert not display.due
        print("what comes after", flush=True)

        class Tee:
            def write(self, text):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(sys, "stdout", Tee())
        with Display(Job(), 0, 0.0) as display:
            display.update(0, 1.0)
            display.update(10, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "the progress cannot be printed (No space left on device), and is no more"
    ] * 2


def test_a_stream_in_memory_is_no_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert _launcher_terminal() is None


def test_a_terminal_that_does_not_know_how_wide_it_is_shows_the_progress(monkeypatch) -> None:
    monkeypatch.setattr("galampi.training.display._launcher_terminal", lambda: os.terminal_size((0, 0)))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with Display(Job(total_env_steps=100), 0, 0.0) as display:
        display.update(40, 1.0)
    assert "0 / 100 steps" in stream.getvalue()
