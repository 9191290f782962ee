"""Programs that a benchmark starts: what they print, how they fail, and that none is left behind."""

import sys

import psutil
import pytest

from galampi.bench import program
from galampi.bench.program import Program
from galampi.errors import UserError

# A child in a session of its own, as launchers start ranks.
WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code, "settings"]


def test_lines_of_json_are_what_it_measured() -> None:
    code = "print('ready', flush=True); told = input(); print('chatter'); print('{\"told\": ' + told + '}')"
    with Program(python(code)) as running:
        running.wait_for("ready")
        assert running.finish(1.0, "7\n") == [{"told": 7}]


def test_a_failure_says_what_the_program_said_last() -> None:
    code = "import sys; print('first', file=sys.stderr); print('why not', file=sys.stderr); sys.exit(3)"
    with pytest.raises(UserError, match=r"ended with 3: why not$"), Program(python(code)) as running:
        running.finish(1.0)


def test_what_cannot_be_started_is_one_line() -> None:
    with pytest.raises(UserError, match="/no/such/program: cannot be started: No such file"):
        Program(["/no/such/program", "settings"])


def test_a_program_that_hangs_is_ended_with_what_it_started(monkeypatch) -> None:
    monkeypatch.setattr(program, "_PATIENCE_S", 0.0)
    with Program(python(WITH_CHILD)) as running:
        assert running._process.stdout is not None
        child = psutil.Process(int(running._process.stdout.readline()))
        with pytest.raises(UserError, match="has not ended after 0 s"):
            running.finish(0.1)
        assert child.is_running()
    assert running._process.poll() is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
