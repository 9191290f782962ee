"""A sweep on this machine: interrupted in every way, it goes on, and everyone knows what has become of it."""

import json
import re
import signal

import psutil
import pytest
from launching import FOREVER, assert_sound, has_trained, wait_for

from galampi.results import load_checkpoint, open_run


def shorten(sweep, env_steps) -> None:
    """Let the runs of a sweep end."""
    for path in (sweep / "jobs").iterdir():
        path.write_text(re.sub(r"(?m)^total_env_steps = .*", f"total_env_steps = {env_steps}", path.read_text()))


def states(galampi, sweep, code) -> list[str]:
    """Return the state of each run, as `status` tells it."""
    returned, output, errors = galampi("status", sweep, ranks=None).finish()
    assert returned == code, output + errors
    return [line.split()[1] for line in output.splitlines()[:-1]]


def env_steps_saved(run) -> int:
    return sum(load_checkpoint(path)["counters"]["env_steps"] for path in (run / "checkpoint").glob("rank-*.h5"))


@pytest.fixture
def endless(galampi, small_job, tmp_path):
    """A sweep of two runs that do not end by themselves, the first of which trains; and its command."""
    command = galampi(
        *("sweep", tmp_path / "sweep", small_job, "--array-seeds", 2, "--total_env_steps", FOREVER), ranks=None
    )
    wait_for(lambda: has_trained(tmp_path / "sweep/seed-1"))
    return tmp_path / "sweep", command


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(galampi, endless) -> None:
    sweep, command = endless
    assert states(galampi, sweep, 4) == ["running", "missing"]
    command.process.send_signal(signal.SIGINT)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert open_run(sweep / "seed-1").status == "stopped"
    assert states(galampi, sweep, 4) == ["stopped", "missing"]
    saved = env_steps_saved(sweep / "seed-1")
    shorten(sweep, saved + 4000)
    code, output, errors = galampi("sweep", sweep, "--at-once", 2, ranks=None).finish()
    assert code == 0, output + errors
    assert "seed-1: stopped before, goes on" in output
    assert output.endswith("2 runs: 2 done\n")
    for run in (sweep / "seed-1", sweep / "seed-2"):
        assert_sound(run, num_ranks=2, status="finished")
        assert env_steps_saved(run) >= saved + 4000
    assert [len(open_run(sweep / run).ranks[0].restarts["update"]) for run in ("seed-1", "seed-2")] == [1, 0]
    # There is nothing left, here or for Slurm.
    assert galampi("sweep", sweep, ranks=None).finish()[0] == 0
    assert galampi("submit", sweep, ranks=None).finish()[1].endswith("nothing to submit\n")


@pytest.mark.slow
def test_a_run_whose_command_was_killed_keeps_its_place(galampi, endless) -> None:
    sweep, command = endless
    (launcher,) = psutil.Process(command.process.pid).children()
    command.process.kill()
    command.process.communicate()
    try:
        assert states(galampi, sweep, 4) == ["running", "missing"]
        shorten(sweep, 1000)
        command = galampi("sweep", sweep, ranks=None)
        assert "seed-1: goes on, as an earlier command began it" in command.process.stdout.readline()
        # Its ranks hold the folder of the run for a moment more.
        launcher.kill()
        code, output, errors = command.finish()
    finally:
        if launcher.is_running():
            launcher.kill()
    assert code == 0, output + errors
    told = re.findall(r"  (seed-.*?)(?:;.*)?\n", output)
    # The second waited for the end of the first, which goes on as soon as its ranks have left its folder.
    # Ranks whose launcher has died save, unless that ends them too.
    state = told[0].removeprefix("seed-1: ")
    assert state in ("stopped", "lost")
    assert sorted(told[1:]) == [*("seed-1: done", f"seed-1: {state} before, goes on", "seed-2: begins", "seed-2: done")]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_run_that_fails_holds_nobody_up(galampi, small_job, tmp_path) -> None:
    sweep = tmp_path / "sweep"
    words = ("sweep", sweep, small_job, "--total_env_steps", 1000, "--ranks", 1)
    code, output, errors = galampi(*words, "--sweep", "environment.id=CartPole-v1,None-v7", ranks=None).finish()
    assert code == 1, output + errors
    assert [line.split()[1] for line in output.splitlines()[-3:-1]] == ["done", "failed"]
    assert f"its log: {sweep}/logs/1.log" in output
    assert "None-v7" in (sweep / "logs/1.log").read_text()
    # Slurm is asked for what ran here.
    dry = galampi("submit", sweep, "--dry-run", ranks=None).finish()[1]
    assert "--array=1 --nodes=1 --ntasks-per-node=1 " in dry
    assert json.loads((sweep / "options.json").read_text())["resources"]["ntasks_per_node"] == 1
    # The same command goes on, another one does not.
    code, output, _ = galampi(*words, "--sweep", "environment.id=CartPole-v1,None-v7", ranks=None).finish()
    assert (code, output.count("begins")) == (1, 0)
    code, _, errors = galampi(*words, "--sweep", "environment.id=CartPole-v1,None-v8", ranks=None).finish()
    assert code == 2
    assert f"galampi: {sweep}: holds another sweep: None-v8 is not the same there" in errors
