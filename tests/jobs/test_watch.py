"""`watch` beside a running job: in a real terminal, and without one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from launching import rank_of, wait_for
from limits import DEADLOCK_S

from galampi.results import open_run

pytestmark = pytest.mark.one_mpi

TMUX = shutil.which("tmux")


@pytest.fixture
def running(galampi, small_job, tmp_path):
    """Start a job that does not end by itself."""
    out = tmp_path / "run"
    command = galampi(
        "train", small_job, "--out", out, "--name", "live \x1b[31m<b>", "--total_env_steps", 10**9, "--quiet"
    )
    wait_for(lambda: (out / "rank-0001.h5").exists() and has_rows(out))
    return out, command


def has_rows(out) -> bool:
    """Whether every rank has written rows of updates and of sketches, which come to disk at different moments."""
    ranks = open_run(out).ranks
    return all(table.num_rows > 2 for rank in ranks for table in (rank.updates, rank.sketches))


@pytest.fixture
def terminal(tmp_path):
    """Give a terminal of 80x24; its screen, its keys and its end."""
    if TMUX is None:
        pytest.skip("tmux is not installed")

    def tmux(*arguments: str) -> str:
        # A server of its own: no other terminal of this machine is touched.
        command = [TMUX, "-S", str(tmp_path / "tmux"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")
    yield tmux
    tmux("kill-server")


def test_a_terminal(running, terminal):
    out, command = running
    terminal(
        "send-keys", f"{sys.executable} -m galampi watch {out}; echo code $?; stty -a | grep -o '.icanon'", "Enter"
    )
    wait_for(lambda: "steps/s" in terminal("capture-pane", "-p") and "q leaves" in terminal("capture-pane", "-p"))
    first = terminal("capture-pane", "-p")
    lines = first.splitlines()
    assert len(lines) <= 24
    assert r"live \x1b[31m<b>  CartPole-v1  push-sum  2 ranks  running" in lines[0]
    assert re.search(r"[\d,]+ / 1,000,000,000 steps", lines[1])
    assert "left" in lines[1]
    ranks = [line.split()[0] for line in lines if re.match(r" +[01] ", line)]
    assert ranks == ["0", "1"]
    assert any("\u2801" <= character <= "\u28ff" for character in first)
    wait_for(lambda: terminal("capture-pane", "-p").splitlines()[1] != lines[1])
    terminal("send-keys", "q")
    # The screen is the shell's again, and so are its keys.
    wait_for(lambda: re.search(r"code 0\s+ icanon", terminal("capture-pane", "-p")))
    assert "q leaves" not in terminal("capture-pane", "-p")
    assert command.process.poll() is None


@pytest.mark.parametrize("how", ["C-c", pytest.param("TERM", marks=pytest.mark.slow)])
def test_leaving_by_signal(running, terminal, how):
    out, _ = running
    terminal("send-keys", f"{sys.executable} -m galampi watch {out}; echo code $?", "Enter")
    wait_for(lambda: "q leaves" in terminal("capture-pane", "-p"))
    if how == "C-c":
        terminal("send-keys", "C-c")
    else:
        pane = int(terminal("display-message", "-p", "#{pane_pid}"))
        (child,) = psutil.Process(pane).children()
        child.terminate()
    wait_for(lambda: "code 0" in terminal("capture-pane", "-p"))
    assert "Traceback" not in terminal("capture-pane", "-p")


def test_lines_without_a_terminal_and_a_silent_rank(running):
    out, command = running
    (stopped,) = [process for process in command.ranks() if rank_of(process) == 1]
    stopped.send_signal(signal.SIGSTOP)
    try:
        # As if it had been stopped an hour ago; the other goes on, and flushes every two seconds.
        an_hour_ago_s = time.time() - 3600
        os.utime(out / "rank-0001.h5", (an_hour_ago_s, an_hour_ago_s))
        num_rows = open_run(out).ranks[0].updates.num_rows
        wait_for(lambda: open_run(out).ranks[0].updates.num_rows > num_rows)
        watch = subprocess.Popen(
            [sys.executable, "-m", "galampi", "watch", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert watch.stdout is not None
        line = watch.stdout.readline()
        # What is started in the background ignores SIGINT, and so would what it starts.
        watch.terminate()
        _, errors = watch.communicate(timeout=DEADLOCK_S)
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert line.startswith("running  ")
    assert "rank 1 on " in line
    assert "rank 0 on " not in line
    assert "\x1b" not in line
    assert watch.returncode == 0
    assert errors == ""


def test_no_run(galampi, tmp_path):
    code, _, errors = galampi("watch", tmp_path, ranks=None).finish()
    assert code == 2
    assert errors.count("\n") == 1
    assert "no run here" in errors
