"""What a run that goes on may be asked to do otherwise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from galampi.errors import UserError
from galampi.job import load_job
from galampi.training import train
from galampi.training.resuming import _changes

BEFORE = load_job(None, {"environment.id": "CartPole-v1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gossip.method", "allreduce"),
        ("environment.id", "Acrobot-v1"),
        ("network.hidden_sizes", "[8]"),
        ("learner.gamma", "0.5"),
        ("seed", "7"),
    ],
)
def test_what_the_numbers_mean_stays(key, value) -> None:
    now = load_job(None, {"environment.id": "CartPole-v1", key: value})
    with pytest.raises(UserError, match=rf"^run: {re.escape(key)} was .* start a new run with another --out$"):
        _changes(BEFORE, now, Path("run"))


def test_what_may_change_is_told() -> None:
    now = load_job(None, {"environment.id": "CartPole-v1", "learner.learning_rate": "1e-4", "gossip.topology": "ring"})
    assert _changes(BEFORE, now, Path("run")) == (
        "learner.learning_rate 0.0007 -> 0.0001; gossip.topology 'exponential' -> 'ring'"
    )
    assert _changes(BEFORE, BEFORE, Path("run")) == ""


@pytest.mark.parametrize("resume", [False, True, "sometimes"])
def test_a_resume_that_is_none_is_refused_before_anything(tmp_path, resume) -> None:
    with pytest.raises(UserError, match=rf"^resume is {resume!r}; must be one of 'no', 'yes', 'auto', 'anew'$"):
        train(BEFORE, tmp_path / "run", resume=resume)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_begun_anew_with_a_policy_that_is_set_aside(tmp_path) -> None:
    with pytest.raises(UserError, match="to begin anew with its own policy wants another --out"):
        train(BEFORE, tmp_path / "run", resume="anew", origin=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_signals_are_whose_they_were_before_once_they_are_released() -> None:
    program = """
import os, signal
from galampi.signals import StopSignals
taken = []
signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.default_int_handler)  # What a shell starts in the background ignores it.
signals = StopSignals()
os.kill(os.getpid(), signal.SIGTERM)
assert signals.caught == signal.SIGTERM and not taken
signals.release()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGHUP)
assert taken == [signal.SIGTERM]
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    taken.append("interrupt")
assert taken == [signal.SIGTERM, "interrupt"]
"""
    answer = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_signals_that_the_users_code_has_taken_are_taken_back() -> None:
    program = """
import faulthandler, os, signal
from galampi.signals import StopSignals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals = StopSignals()
assert signals.hold() == []
signal.signal(signal.SIGINT, signal.SIG_DFL)
faulthandler.register(signal.SIGUSR1)
assert signals.hold() == ["SIGINT"]
os.kill(os.getpid(), signal.SIGHUP)
assert signals.caught is None
os.kill(os.getpid(), signal.SIGUSR1)
assert signals.caught == signal.SIGUSR1
os.kill(os.getpid(), signal.SIGINT)
"""
    answer = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_process_that_an_environment_has_forked_ends_as_any_other() -> None:
    program = """
import os, signal, time
from galampi.signals import StopSignals
signals = StopSignals()
ready, said = os.pipe()
child = os.fork()
if not child:
    with signals:
        os.write(said, b".")
        time.sleep(60)
os.read(ready, 1)
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM, "ended in another way"
assert signals.caught is None
"""
    answer = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
