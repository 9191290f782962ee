"""How jobs end when something is wrong: nothing is lost, nobody waits for ever, and what was is told."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from launching import FOREVER, assert_sound, has_trained, newest_checkpoint, rank_of, ranks_below, wait_for
from limits import DEADLOCK_S

from galampi.bench.contestants import off_shared_memory
from galampi.results import load_checkpoint, open_run

WITH_FAULTY_ENV = {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}


def rank_process(command, rank):
    return next(process for process in command.ranks() if rank_of(process) == rank)


def the_line(errors) -> str:
    """Return the one line that tells what is wrong; there is no traceback beside it."""
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("galampi: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [False, True])
@pytest.mark.parametrize("method", ["push-sum", "allreduce"])
def test_a_stuck_rank_holds_nobody_up(galampi, small_job, tmp_path, method, signalled) -> None:
    out = tmp_path / "run"
    silent_after_s = 3 if not signalled else DEADLOCK_S * 2
    train = ("train", small_job, "--out", out, "--gossip.method", method, "--gossip.silent_after_s", silent_after_s)
    command = galampi(*train, "--total_env_steps", FOREVER if signalled else 40_000, ranks=3)
    wait_for(lambda: has_trained(out, 3))
    ranks = command.ranks()
    rank_process(command, 1).send_signal(signal.SIGSTOP)
    if signalled:
        rank_process(command, 0).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 4, output + errors
    line = the_line(errors)
    assert "ended with 2 of 3 ranks: rank 1 on " in line
    assert "silent for" in line
    assert f"--out {out} --resume" in line
    wait_for(lambda: not any(process.is_running() for process in ranks))
    run = open_run(out)
    assert run.status == "partial"
    assert run.attributes["missing_ranks"] == [1]
    total = sum(load_checkpoint(path)["counters"]["env_steps"] for path in (out / "checkpoint").glob("rank-*.h5"))
    code, output, errors = galampi(
        "train", "--out", out, "--resume", "--total_env_steps", total + 4000, ranks=3
    ).finish()
    assert code == 0, output + errors
    assert_sound(out, num_ranks=3, status="finished")


@pytest.mark.slow
def test_a_stuck_rank_holds_no_other_edge_up_on_a_network(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    (tmp_path / "network").mkdir()
    train = ("train", small_job, "--out", out, "--gossip.silent_after_s", 3, "--gossip.topology", "complete")
    off_memory = off_shared_memory(tmp_path / "network")
    command = galampi(*train, "--gossip.peers", "all", "--total_env_steps", FOREVER, ranks=3, env=off_memory)
    wait_for(lambda: has_trained(out, 3))
    rank_process(command, 1).send_signal(signal.SIGSTOP)

    def received_from(rank, sender):
        edges = open_run(out).ranks[rank].edges
        of_sender = edges["hop"] == (rank - sender) % 3
        return int(edges["received"][of_sender].max())

    def num_updates():
        return [open_run(out).ranks[rank].updates.num_rows for rank in (0, 2)]

    # The two that are left train on, and go on to hear of each other.
    before, heard = num_updates(), (received_from(0, 2), received_from(2, 0))
    wait_for(lambda: min(np.subtract(num_updates(), before)) > 50)
    # Open MPI's flush waits for all ranks of a window: there messages wait, and only training does not.
    library = subprocess.run(["mpirun", "--version"], check=True, capture_output=True, text=True).stdout
    if "Open MPI" not in library and "OpenRTE" not in library:
        wait_for(lambda: received_from(0, 2) > heard[0] + 5 and received_from(2, 0) > heard[1] + 5)
    rank_process(command, 0).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 4, output + errors
    assert "ended with" in the_line(errors) and "rank 1 on " in the_line(errors)
    if "Open MPI" not in library and "OpenRTE" not in library:
        assert "ended with 2 of 3 ranks" in the_line(errors)


@pytest.mark.slow
def test_a_rank_that_was_stopped_for_a_while_rejoins(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER, "--gossip.silent_after_s", 1)
    wait_for(lambda: has_trained(out))
    sleeper = rank_process(command, 1)
    sleeper.send_signal(signal.SIGSTOP)
    before = open_run(out).ranks[0].updates.num_rows
    wait_for(lambda: open_run(out).ranks[0].updates.num_rows > before + 2000)
    sleeper.send_signal(signal.SIGCONT)
    received = open_run(out).ranks[1].updates.num_rows
    wait_for(lambda: open_run(out).ranks[1].updates.num_rows > received + 100)
    rank_process(command, 0).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert_sound(out, num_ranks=2, status="stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_is_obeyed_in_the_middle_of_a_rollout(galampi, small_job, tmp_path, number) -> None:
    out = tmp_path / "run"
    # A rollout of more than an hour.
    slow = ("--environment.id", "faulty_env:Slow-v0", "--learner.rollout_length", 10_000)
    command = galampi("train", small_job, "--out", out, *slow, env=WITH_FAULTY_ENV)
    wait_for((out / "job.h5").exists)
    for rank in command.ranks():
        rank.send_signal(number)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert open_run(out).status == "stopped"
    assert all(load_checkpoint(path)["exact"] for path in (out / "checkpoint").glob("rank-*.h5"))


@pytest.mark.one_mpi
def test_a_signal_during_set_up_is_told_in_a_line(galampi, small_job, tmp_path) -> None:
    # An environment whose making takes longer than anybody waits.
    (tmp_path / "endless_env.py").write_text(
        "import time, pathlib, gymnasium as gym\n"
        "def make(**_):\n    pathlib.Path(__file__).with_name('begun').touch()\n    time.sleep(100_000)\n"
        "gym.register('Endless-v0', entry_point=make)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--environment.id", "endless_env:Endless-v0", env=env)
    wait_for(lambda: (tmp_path / "begun").exists() and len(command.ranks()) == 2)
    rank_process(command, 0).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert "SIGTERM before training had begun" in the_line(errors)
    assert not (out / "job.h5").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_is_obeyed_before_mpi_has_started(galampi, small_job, tmp_path, number) -> None:
    """MPICH takes both for itself when it starts, and not the one that tells that the job has caught them."""
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER)
    wait_for(lambda: len(command.ranks()) == 2 and all(catches(each, signal.SIGUSR2) for each in command.ranks()))
    for process in command.ranks():
        process.send_signal(number)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert f"{number.name} before training had begun" in the_line(errors)
    assert not out.exists()


def catches(process: psutil.Process, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_hangup_that_is_ignored_stays_ignored(small_job, tmp_path) -> None:
    """As under nohup; Open MPI's launcher takes a hangup for an end even then."""
    out = tmp_path / "run"
    train = [sys.executable, "-m", "galampi", "train", small_job, "--out", out, "--total_env_steps", str(FOREVER)]
    command = ["mpirun", "-n", "2", *map(str, train)]
    ignoring = f"import os, signal; signal.signal(1, signal.SIG_IGN); os.execvp('mpirun', {command!r})"
    with subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True) as launcher:
        wait_for(lambda: has_trained(out))
        for process in [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]:
            process.send_signal(signal.SIGHUP)
        before = open_run(out).ranks[1].updates.num_rows
        wait_for(lambda: open_run(out).ranks[1].updates.num_rows > before + 1000)
        next(each for each in ranks_below(launcher.pid) if rank_of(each) == 0).send_signal(signal.SIGTERM)
        assert launcher.wait(DEADLOCK_S) == 3
    assert_sound(out, num_ranks=2, status="stopped")


@pytest.mark.slow
def test_what_the_log_held_stays(small_job, tmp_path) -> None:
    log = tmp_path / "log"
    command = ["mpirun", "-n", "2", sys.executable, "-m", "galampi", "train", small_job, "--total_env_steps", "2000"]
    for stretch in range(2):
        with log.open("a") as output:
            output.write(f"stretch {stretch} begins\n" * 20)
            output.flush()
            out = tmp_path / f"run-{stretch}"
            subprocess.run([*command, "--out", out], stdout=output, stderr=output, check=True, timeout=DEADLOCK_S)
    text = log.read_text()
    assert "\0" not in text
    assert [text.count(f"stretch {stretch} begins") for stretch in range(2)] == [20, 20]
    assert text.count("finished: ") == 2


@pytest.fixture
def stopped(galampi, small_job, tmp_path):
    """A run of two ranks that was killed on its way."""
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER)
    wait_for(lambda: has_trained(out))
    command.kill()
    return out


def rows(out) -> list[int]:
    return [rank.updates.num_rows for rank in open_run(out).ranks]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_resume_without_checkpoints_is_refused_and_loses_nothing(galampi, stopped) -> None:
    before = rows(stopped)
    one = stopped / "checkpoint/rank-0001.h5"
    (stopped / "checkpoint/previous/rank-0001.h5").unlink()
    one.unlink()
    for _ in range(2):
        for word in ("--resume", "--resume=auto"):
            code, _, errors = galampi("train", "--out", stopped, word).finish()
            assert code == 2
            line = the_line(errors)
            assert str(one) in line or "checkpoint/rank-0000.h5" in line
            assert "--resume=anew" in line
            assert rows(stopped) == before
        # Once more with none at all.
        shutil.rmtree(stopped / "checkpoint", ignore_errors=True)
    code, _, errors = galampi("train", "--out", stopped, "--resume=anew", "--total_env_steps", 2000).finish()
    assert code == 0, errors
    assert_sound(stopped, num_ranks=2, status="finished")
    assert rows(stopped / "before-1") == before


@pytest.mark.one_mpi
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(galampi, stopped) -> None:
    newest = stopped / "checkpoint/rank-0000.h5"
    newest.write_bytes(newest.read_bytes()[:1000])
    earlier = load_checkpoint(stopped / "checkpoint/previous/rank-0000.h5")
    total = sum(rank.updates["env_steps"][-1] for rank in open_run(stopped).ranks) + 1000
    code, _, errors = galampi("train", "--out", stopped, "--resume", "--total_env_steps", total).finish()
    assert code == 0, errors
    assert "the one before it is used" in errors
    restarts = open_run(stopped).ranks[0].restarts
    assert restarts["update"][0] == earlier["counters"]["update"]
    assert "of rank 0 from the one before the newest" in restarts["reason"][0]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_what_a_resume_may_change(galampi, stopped) -> None:
    before = rows(stopped)
    code, _, errors = galampi("train", "--out", stopped, "--resume", "--gossip.method", "allreduce").finish()
    assert code == 2
    assert "gossip.method was " in the_line(errors)
    assert rows(stopped) == before
    total = sum(rank.updates["env_steps"][-1] for rank in open_run(stopped).ranks) + 1000
    more = ("--learner.learning_rate", 1e-4, "--gossip.topology", "ring", "--total_env_steps", total)
    code, _, errors = galampi("train", "--out", stopped, "--resume", *more).finish()
    assert code == 0, errors
    (changes,) = open_run(stopped).ranks[1].restarts["changes"]
    assert "learner.learning_rate 0.0007 -> 0.0001" in changes
    assert "gossip.topology 'exponential' -> 'ring'" in changes


@pytest.mark.one_mpi
def test_one_line_starts_and_goes_on(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    for budget in (1000, 2000):
        code, _, errors = galampi(
            "train", small_job, "--out", out, "--resume=auto", "--total_env_steps", budget
        ).finish()
        assert code == 0, errors
    assert open_run(out).attributes["num_restarts"] == 1


@pytest.mark.slow
def test_allreduce_is_equal_after_checkpoints_of_different_moments(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    train = (
        "train",
        small_job,
        "--out",
        out,
        "--gossip.method",
        "allreduce",
        "--learner.learning_rate_schedule",
        "linear",
    )
    command = galampi(*train, "--total_env_steps", FOREVER)
    wait_for(lambda: has_trained(out))
    command.kill()
    # As a kill between the savings of two ranks leaves it.
    shutil.copy(out / "checkpoint/previous/rank-0001.h5", out / "checkpoint/rank-0001.h5")
    for num_ranks in (2, 3):
        saved = [load_checkpoint(path) for path in (out / "checkpoint").glob("rank-*.h5")]
        budget = 20_000 + sum(state["counters"]["env_steps"] for state in saved)
        code, output, errors = galampi(*train, "--resume", "--total_env_steps", budget, ranks=num_ranks).finish()
        assert code == 0, output + errors
        states = [load_checkpoint(out / f"checkpoint/rank-{rank:04d}.h5") for rank in range(num_ranks)]
        assert len({state["counters"]["update"] for state in states}) == 1
        assert len({state["learner"]["z"].tobytes() for state in states}) == 1
    assert (
        open_run(out).ranks[0].updates["learning_rate"][-1] < 0.1 * open_run(out).ranks[0].updates["learning_rate"][0]
    )


@pytest.mark.one_mpi
@pytest.mark.slow
def test_without_exchange_ranks_are_learners_of_their_own(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    train = ("train", small_job, "--out", out, "--gossip.method", "none", "--learner.learning_rate_schedule", "linear")
    code, _, errors = galampi(*train, "--total_env_steps", 8000).finish()
    assert code == 0, errors
    for rank in open_run(out).ranks:
        rates = rank.updates["learning_rate"]
        # The rule of the square root counts the four simulators that learn together, and the rate ends at 0.
        assert rates[0] == pytest.approx(7e-4 * np.sqrt(4 / 16), rel=0.02)
        assert rates[-1] < 0.01 * rates[0]
    code, _, errors = galampi(*train, "--resume", "--total_env_steps", 12_000, ranks=3).finish()
    assert code == 2
    assert "never exchanged parameters" in the_line(errors)


@pytest.mark.one_mpi
@pytest.mark.slow
def test_rows_after_the_last_checkpoint_of_ranks_that_left_do_not_count(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER, ranks=3)
    wait_for(lambda: has_trained(out, 3))
    saved = [load_checkpoint(path) for path in sorted((out / "checkpoint").glob("rank-*.h5"))]
    wait_for(lambda: open_run(out).ranks[2].updates.num_rows > saved[2]["position"]["num_updates"])
    command.kill()
    last = newest_checkpoint(out, 2)
    total = sum(newest_checkpoint(out, rank)["counters"]["env_steps"] for rank in range(3))
    code, output, errors = galampi("train", "--out", out, "--resume", "--total_env_steps", total + 1000).finish()
    assert code == 0, output + errors
    left = open_run(out).all_ranks[2]
    assert left.updates.num_rows == last["position"]["num_updates"]
    assert left.episodes.num_rows == last["position"]["num_episodes"]
    assert "left the job" in left.restarts["reason"][-1]


@pytest.mark.slow
def test_a_record_that_is_moved_away_ends_the_job_on_all_ranks(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER)
    wait_for(lambda: has_trained(out))
    ranks = command.ranks()
    (out / "job.h5").rename(tmp_path / "job.h5")
    rank_process(command, 1).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code not in (0, 3), output + errors
    assert "job.h5: no such file" in the_line(errors)
    wait_for(lambda: not any(process.is_running() for process in ranks))
    assert all(load_checkpoint(path)["exact"] for path in (out / "checkpoint").glob("rank-*.h5"))


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_file_that_is_removed_ends_the_job(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER)
    wait_for(lambda: has_trained(out))
    (out / "rank-0001.h5").unlink()
    code, output, errors = command.finish()
    assert code == 1, output + errors
    assert "rank-0001.h5: was renamed or removed" in the_line(errors)
    assert open_run(out).status == "failed"


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_folder_that_is_renamed_is_not_made_anew(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER)
    wait_for(lambda: has_trained(out))
    ranks = command.ranks()
    out.rename(tmp_path / "renamed")
    rank_process(command, 1).send_signal(signal.SIGTERM)
    code, output, errors = command.finish()
    assert code == 1, output + errors
    # The second where a rank was saving at that moment.
    assert re.search("its folder was renamed or removed|run/checkpoint.*: No such file", the_line(errors))
    wait_for(lambda: not any(process.is_running() for process in ranks))
    assert not out.exists()
    # Nothing that was written is lost.
    assert all(rank.updates.num_rows for rank in open_run(tmp_path / "renamed").ranks)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of so many bytes, or skip the test."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.one_mpi
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_full_at_the_last_save_is_told_and_the_record_is_true(galampi, small_job, tmp_path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        out = disk / "run"
        command = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER, "--quiet")
        wait_for(lambda: has_trained(out))
        ranks = command.ranks()
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/other"], check=False, capture_output=True)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        code, _, errors = command.finish()
        assert code == 1 and "Traceback" not in errors
        assert "No space left on device" in errors
        wait_for(lambda: not any(process.is_running() for process in ranks))
        assert open_run(out).status == "failed"
        (disk / "other").unlink()
        done = int(sum(rank.updates["env_steps"][-1] for rank in open_run(out).ranks))
        code, _, errors = galampi("train", "--out", out, "--resume", "--total_env_steps", done + 4000).finish()
        assert code == 0, errors
        assert_sound(out, num_ranks=2, status="finished")


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_written(galampi, small_job, tmp_path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        out = disk / "run"
        code, output, errors = galampi("train", small_job, "--out", out, "--total_env_steps", FOREVER).finish()
        assert code == 1, output + errors
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("galampi: ")]
        assert lines
        assert all("No space left on device" in line and str(out) in line for line in lines)
        run = open_run(out)
        assert run.status == "failed"
        rows = [rank.updates.num_rows for rank in run.ranks]
        assert min(rows) > 100
        assert not list((out / "checkpoint").rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        budget = sum(int(rank.updates["env_steps"][-1]) for rank in run.ranks) + 4000
        code, _, errors = galampi("train", "--out", out, "--resume", "--total_env_steps", budget).finish()
        assert code == 0, errors
        assert_sound(out, num_ranks=2, status="finished")
        assert not list(out.rglob("*.part"))
