import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import JOBS, SMALL_JOB, Command, assert_sound, rank_of, wait_for
from limits import DEADLOCK_S

from galampi.job import parse_job
from galampi.results import load_checkpoint, open_run
from galampi.results.evaluation import load_evaluation


@pytest.mark.library("training")
@pytest.mark.parametrize(
    "method", ["push-sum", "allreduce", *(pytest.param(method, marks=pytest.mark.slow) for method in ("gala", "none"))]
)
def test_every_method_reaches_its_budget(galampi, small_job, tmp_path, method) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--gossip.method", method, "--total_env_steps", 8000, ranks=2)
    code, output, errors = command.finish()
    assert code == 0, errors
    assert f"finished: {out}" in output
    assert_sound(out, num_ranks=2, status="finished")
    steps = [int(rank.updates["env_steps"][-1]) for rank in open_run(out).ranks]
    # Beyond the budget go at most the last updates, which the ranks make before they hear of its end.
    assert 8000 <= sum(steps) < 8000 + 1000
    assert parse_job(open_run(out).job_toml, "job.h5").gossip.method == method


def test_one_rank_needs_no_launcher(galampi, small_job, tmp_path) -> None:
    code, output, errors = galampi(
        "train", small_job, "--out", tmp_path / "run", "--total_env_steps", 2000, ranks=None
    ).finish()
    assert code == 0, errors
    assert "push-sum weights  1.000 to 1.000, sum 1 of 1" in output


@pytest.mark.one_mpi
def test_one_rank_repeats_itself_to_the_byte(galampi, small_job, tmp_path) -> None:
    parameters = []
    for out in (tmp_path / "a", tmp_path / "b"):
        code, _, errors = galampi("train", small_job, "--out", out, "--total_env_steps", 2000, ranks=1).finish()
        assert code == 0, errors
        parameters.append(load_checkpoint(out / "checkpoint/rank-0000.h5")["learner"]["z"].tobytes())
    assert parameters[0] == parameters[1]


# As on macOS, and of a user whose files are also the group's.
ELSEWHERE = """
import os, sys
os.umask(0o002)
del os.sched_getaffinity, os.sched_setaffinity
from galampi.__main__ import main
sys.exit(main())
"""


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_system_that_tells_no_cores_and_a_folder_for_the_whole_group(small_job, tmp_path) -> None:
    """Who may write the folder by the umask may go on with the run."""
    out = tmp_path / "run"
    train = ("train", small_job, "--out", out, "--total_env_steps", "4000")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *train], capture_output=True, text=True, timeout=DEADLOCK_S, check=False
    )
    assert done.returncode == 0, done.stderr
    paths = [out, *out.rglob("*")]
    assert {"lock", "job.h5", "rank-0000.h5", "checkpoint"} <= {path.name for path in paths}
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o775 if path.is_dir() else 0o664), path


@pytest.mark.one_mpi
@pytest.mark.parametrize(
    ("environment", "bound"),
    [
        ("faulty_env:Endless-v0", "has no time limit"),
        ("Pendulum-v1", "ends each after 200 env steps at the latest"),
    ],
)
@pytest.mark.slow
def test_a_return_that_is_not_there_is_explained(small_job, tmp_path, environment, bound) -> None:
    # A line of progress at every update.
    code = (
        "import sys; from galampi.training import display; display._LINE_PERIOD_S = 0.0\n"
        "from galampi.__main__ import main; sys.exit(main())"
    )
    train = ("train", small_job, "--out", tmp_path / "run", "--environment.id", environment, "--total_env_steps", "400")
    python_path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", code, *train],
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=DEADLOCK_S,
        check=True,
    )
    why = f"- (no episode has ended; {environment} {bound})"
    assert f"  mean return       {why}\n" in done.stdout
    assert f"  return {why}  left 00:00:0" in done.stdout


def test_pixels_of_a_real_game(galampi, tmp_path) -> None:
    out = tmp_path / "run"
    code, _, errors = galampi("--out", out, "--environment.num_envs", 2, "--total_env_steps", 600).finish()
    assert code == 0, errors
    assert_sound(out, num_ranks=2, status="finished")


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> tuple[Path, str]:
    """Train CartPole on two ranks; return the run and what was printed."""
    out = tmp_path_factory.mktemp("cartpole") / "run"
    code, output, errors = Command(["train", str(JOBS / "cartpole.toml"), "--out", str(out)], 2, {}).finish()
    assert code == 0, errors
    return out, output


@pytest.mark.library("training")
@pytest.mark.one_mpi
def test_cartpole_is_solved_by_two_ranks(solved) -> None:
    out, output = solved
    run = open_run(out)
    episodes = [np.stack([rank.episodes["time_s"], rank.episodes["return"]]) for rank in run.ranks]
    in_order = np.concatenate(episodes, axis=1)
    returns = in_order[1, np.argsort(in_order[0], kind="stable")]
    assert returns[-100:].mean() >= 475, output


@pytest.mark.one_mpi
def test_a_solved_cartpole_plays_to_the_end(solved, galampi) -> None:
    out, _ = solved
    code, output, errors = galampi("evaluate", out, ranks=None).finish()
    assert code == 0, errors
    played = load_evaluation(out / "evaluation.h5").episodes
    assert list(played) == ["sample", "greedy"]
    for episodes in played.values():
        assert len(episodes["return"]) == 10
        assert episodes["return"].mean() >= 475, output
        assert f"mean {episodes['return'].mean():.2f}" in output


def test_a_stopped_rank_holds_nobody_up(galampi, small_job, tmp_path) -> None:
    """Rank 0 goes on as long as one likes while rank 1 does not run at all."""
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", 10**9)
    wait_for(lambda: len(command.ranks()) == 2 and (out / "rank-0001.h5").exists())
    num_rows = lambda rank: open_run(out).ranks[rank].updates.num_rows  # noqa: E731
    wait_for(lambda: min(num_rows(0), num_rows(1)) > 100)
    stopped = next(p for p in command.ranks() if rank_of(p) == 1)
    stopped.suspend()
    of_stopped, seen = num_rows(1), {num_rows(0)}
    # A rank that waits for another one may still flush what it had in memory, once; no more than that.
    wait_for(lambda: seen.add(num_rows(0)) or len(seen) > 5)
    assert num_rows(1) == of_stopped
    stopped.resume()
    wait_for(lambda: num_rows(1) > of_stopped + 100)
    times, others = (rank.updates["time_s"] for rank in open_run(out).ranks)
    command.kill()
    # The gap in the stopped rank's rows is the time it was stopped.
    gap = int(np.diff(others).argmax())
    during = np.count_nonzero((times > others[gap]) & (times < others[gap + 1]))
    print(f"updates of rank 0 while rank 1 is stopped: {during}")
    assert during > 20


@pytest.mark.one_mpi
def test_a_script_trains_as_the_command_does(tmp_path) -> None:
    """The example of the README, on ranks."""
    documented = (Path(__file__).parents[2] / "README.md").read_text().split("```python\n")
    (example,) = [block.split("```")[0] for block in documented if "import load_job, train" in block]
    short = example.replace('"3"}', '"3", "total_env_steps": "4000"}')
    assert short != example
    (tmp_path / "script.py").write_text(short)
    done = subprocess.run(
        ["mpirun", "-n", "2", sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLOCK_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_sound(tmp_path / "runs/cartpole-3", num_ranks=2, status="finished")
    # A number of each, maybe in one line.
    assert re.fullmatch(r"[\d.\s]+", done.stdout)
    assert done.stdout.count(".") == 2


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_job_that_can_be_read_but_once_is_all_ranks(galampi, tmp_path) -> None:
    pipe, out = tmp_path / "job.toml", tmp_path / "run"
    os.mkfifo(pipe)
    command = galampi("train", pipe, "--out", out)
    pipe.write_text(f"total_env_steps = 2000\nlearner.gamma = 0.5\n{SMALL_JOB}")
    code, output, errors = command.finish()
    assert code == 0, output + errors
    assert_sound(out, num_ranks=2, status="finished")
    assert "gamma = 0.5" in open_run(out).job_toml


SCRIPT = """
from mpi4py import MPI

from galampi import load_job, train

train(load_job("cartpole", {settings}), "run")
"""


def script(folder, settings, *launcher) -> subprocess.CompletedProcess[str]:
    """Run a script that trains, without a guard."""
    (folder / "script.py").write_text(SCRIPT.replace("{settings}", settings))
    command = [*launcher, sys.executable, "script.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLOCK_S, check=False)


@pytest.mark.one_mpi
@pytest.mark.slow
def test_ranks_that_are_given_other_jobs_are_refused(tmp_path) -> None:
    done = script(tmp_path, '{"learner.gamma": f"0.{9 - MPI.COMM_WORLD.rank}"}', "mpirun", "-n", "2")
    assert done.returncode != 0
    assert "rank 1 is given another job than rank 0: learner.gamma is 0.8, and 0.9 there" in done.stderr
    assert not (tmp_path / "run/job.h5").exists()


FAILS = """
import gymnasium as gym
from mpi4py import MPI

from galampi import load_job, train
from galampi.training import loop

if MPI.COMM_WORLD.rank == 1:
    update = loop._update
    loop._update = lambda rank, *given, **named: update(rank, *given, **named) if rank.update < 50 else 1 / 0
train(load_job("cartpole", {"total_env_steps": 10**12, "gossip.method": "none"}), "run", quiet=True)
"""


@pytest.mark.one_mpi
def test_a_rank_of_a_script_that_fails_ends_the_job(tmp_path) -> None:
    (tmp_path / "script.py").write_text(FAILS)
    command = ["mpirun", "-n", "2", sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLOCK_S, check=False)
    assert done.returncode != 0
    assert "[rank 1] ZeroDivisionError: division by zero" in done.stderr
    assert open_run(tmp_path / "run").status == "failed"


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_script_that_its_simulators_would_run_again_is_told(tmp_path) -> None:
    done = script(tmp_path, '{"environment.vectorization": "async"}')
    assert done.returncode != 0
    assert 'a script that trains does so under `if __name__ == "__main__":`' in done.stderr
    assert "in use by a job" not in done.stderr
