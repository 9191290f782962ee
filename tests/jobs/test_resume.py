import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from launching import assert_sound, newest_checkpoint, rank_of, wait_for
from limits import DEADLOCK_S

from galampi.policies.stored import find_policy
from galampi.results import JobFile, RankWriter, load_checkpoint, open_run


def checkpoints(out):
    return sorted((out / "checkpoint").glob("rank-*.h5"))


def has_trained(out) -> bool:
    """Whether both ranks have saved after the checkpoint that they begin with."""
    return len(list((out / "checkpoint/previous").glob("rank-*.h5"))) == 2


@pytest.mark.library("kill and resume")
@pytest.mark.parametrize("num_kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_again_and_again_and_resumed_each_time(galampi, small_job, tmp_path, num_kills) -> None:
    out = tmp_path / "run"
    chance = random.Random(1)
    kept: list[dict[str, np.ndarray]] = [{}, {}]
    for kill in range(num_kills):
        resume = ["--resume"] if kill else []
        command = galampi("train", small_job, "--out", out, "--total_env_steps", 10_000_000, *resume)
        wait_for(lambda command=command: (out / "job.h5").exists() and len(command.ranks()) == 2)
        before = [path.stat().st_mtime_ns for path in checkpoints(out)]
        # At any moment after both ranks have come further than last time.
        wait_for(
            lambda before=before: (
                len(checkpoints(out)) == 2 and all(p.stat().st_mtime_ns not in before for p in checkpoints(out))
            )
        )
        time.sleep(chance.uniform(0, 0.5))
        command.kill()
        assert open_run(out).status == "running"
        for rank in open_run(out).ranks:
            saved = newest_checkpoint(out, rank.rank)
            rows = saved["position"]["num_updates"]
            updates = rank.updates["update"]
            # No row before the checkpoint is lost, and none of an earlier start is written twice or differently.
            assert len(updates) >= rows
            np.testing.assert_array_equal(updates, np.arange(1, len(updates) + 1))
            assert updates[rows - 1] == saved["counters"]["update"]
            for name, values in kept[rank.rank].items():
                np.testing.assert_array_equal(rank.updates[name][: len(values)], values)
            kept[rank.rank] = {
                name: rank.updates[name][:rows] for name in ("env_steps", "time_s", "grad_norm", "weight")
            }
    total = sum(newest_checkpoint(out, rank)["counters"]["env_steps"] for rank in (0, 1))
    budget = total + 5000
    code, _, errors = galampi("train", small_job, "--out", out, "--total_env_steps", budget, "--resume").finish()
    assert code == 0, errors
    assert_sound(out, num_ranks=2, status="finished")
    run = open_run(out)
    assert sum(int(rank.updates["env_steps"][-1]) for rank in run.ranks) >= budget
    assert len(run.ranks[0].restarts["restart"]) == num_kills
    assert run.ranks[0].restarts["weights_restarted"].all()


@pytest.mark.library("signals")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(
            pytest.param(number, marks=[pytest.mark.one_mpi, pytest.mark.slow])
            for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        ),
    ],
)
def test_a_signal_to_one_rank_stops_all_after_saving(galampi, small_job, tmp_path, number) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", 10_000_000, "--quiet")
    wait_for(lambda: has_trained(out))
    next(p for p in command.ranks() if rank_of(p) == 1).send_signal(number)
    code, output, errors = command.finish()
    assert code == 3, output + errors
    assert_sound(out, num_ranks=2, status="stopped")
    stopped_at = [load_checkpoint(path) for path in checkpoints(out)]
    assert all(saved["exact"] for saved in stopped_at)

    # Weights go on from where they were; so do counters, and the files end where the checkpoints say.
    total = sum(saved["counters"]["env_steps"] for saved in stopped_at)
    code, _, errors = galampi("--out", out, "--resume", "--total_env_steps", total + 4000).finish()
    assert code == 0, errors
    assert_sound(out, num_ranks=2, status="finished")
    for rank, saved in zip(open_run(out).ranks, stopped_at, strict=True):
        assert rank.restarts["update"][0] == saved["counters"]["update"]
        assert not rank.restarts["weights_restarted"][0]


def test_a_signal_stops_allreduce_on_all_ranks_at_one_update(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    command = galampi("train", small_job, "--out", out, "--total_env_steps", 10_000_000, "--gossip.method", "allreduce")
    wait_for(lambda: has_trained(out))
    next(p for p in command.ranks() if rank_of(p) == 0).send_signal(signal.SIGTERM)
    assert command.finish()[0] == 3
    first, second = (load_checkpoint(path) for path in checkpoints(out))
    assert first["counters"]["update"] == second["counters"]["update"]
    assert first["learner"]["z"].tobytes() == second["learner"]["z"].tobytes()


@pytest.mark.slow
def test_resume_on_fewer_and_on_more_ranks(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"

    def train(ranks: int, budget: int, *more: str) -> None:
        code, _, errors = galampi(
            "train", small_job, "--out", out, "--total_env_steps", budget, *more, ranks=ranks
        ).finish()
        assert code == 0, errors

    train(3, 6000)
    saved = [load_checkpoint(path) for path in checkpoints(out)]
    total = sum(s["counters"]["env_steps"] for s in saved)
    mean = sum(s["weight"] * s["learner"]["z"].astype(np.float64) for s in saved) / 3
    # A budget that is met stops before the first update; the start is the weighted mean.
    train(2, total + 1, "--resume")
    after = load_checkpoint(checkpoints(out)[0])
    assert np.linalg.norm(after["learner"]["z"] - mean) < 0.05 * np.linalg.norm(mean)
    assert_sound(out, num_ranks=2, status="finished")
    # What somebody keeps beside checkpoints is none.
    copy = out / "checkpoint/rank-0000-old.h5"
    shutil.copy(out / "checkpoint/rank-0000.h5", copy)
    train(3, 12000, "--resume")
    assert_sound(out, num_ranks=3, status="finished")
    run = open_run(out)
    assert sum(int(rank.updates["env_steps"][-1]) for rank in run.ranks) >= 12000
    assert "3 ranks instead of 2" in run.ranks[2].restarts["reason"][-1]
    # As a resume on more ranks leaves it that is cut short before there are checkpoints of all.
    RankWriter(out / "rank-0003.h5", rank=3).close()
    train(4, 14000, "--resume")
    assert_sound(out, num_ranks=4, status="finished")
    assert copy.exists()


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_energy_of_every_start_is_counted(small_job, tmp_path) -> None:
    out = tmp_path / "run"
    # A machine whose one source has counted 7 J at the end of the first start, and 9 J at the end of the second.
    code = (
        "import sys\n"
        "from galampi.training import setup\n"
        "from galampi.__main__ import main\n"
        "class Meter:\n"
        "    unread, sources, due = [], ('package-0',), False\n"
        "    def __init__(self, *, gpus): pass\n"
        "    def start(self): pass\n"
        "    def counted_j(self): return {'package-0': 9.0 if '--resume' in sys.argv else 7.0}\n"
        "setup.EnergyMeter = Meter\n"
        "sys.exit(main())\n"
    )
    for budget, more in ((400, ()), (800, ("--resume",))):
        train = ("train", small_job, "--out", out, "--quiet", "--total_env_steps", str(budget), *more)
        subprocess.run([sys.executable, "-c", code, *train], check=True, timeout=DEADLOCK_S)
    (rank,) = open_run(out).ranks
    assert rank.energy["energy_j"].tolist() == [0, 7, 0, 9]
    assert set(rank.energy["host"]) == {rank.attributes["hostname"]}
    assert rank.energy["time_s"][2] == rank.restarts["time_s"][0]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_mean_return_goes_on_after_a_resume(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    train = ("train", small_job, "--out", out, "--total_env_steps")
    assert galampi(*train, 6000).finish()[0] == 0
    # So few steps that hardly an episode ends after the resume; a rank may have gone beyond the budget before it heard.
    total = sum(int(rank.updates["env_steps"][-1]) for rank in open_run(out).ranks)
    code, output, errors = galampi(*train, total + 40, "--resume").finish()
    assert code == 0, errors
    run = open_run(out)
    ended = sorted(
        pair
        for rank in run.ranks
        for pair in zip(rank.episodes["time_s"].tolist(), rank.episodes["return"].tolist(), strict=True)
    )
    assert len(ended) > 100
    mean = np.mean([value for _, value in ended[-100:]])
    (line,) = [line for line in output.splitlines() if "mean return" in line]
    assert f" {mean:.2f} (last 100 episodes" in line


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_time_of_a_job_is_a_budget_too(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    train = ("train", small_job, "--out", out, "--total_env_steps", 1_000_000_000)
    for method, seconds in (("push-sum", 1), ("allreduce", 1), ("none", 1)):
        out = tmp_path / method
        train = ("train", small_job, "--out", out, "--total_env_steps", 1_000_000_000, "--gossip.method", method)
        code, output, errors = galampi(*train, "--max-time-s", seconds).finish()
        assert code == 0, errors
        assert output.startswith("finished: ")
        assert_sound(out, num_ranks=2, status="finished")
        assert all(rank.updates["time_s"][-3] < seconds for rank in open_run(out).ranks)
    code, output, _ = galampi("train", "--out", out, "--resume").finish()
    assert code == 0
    assert "finished already" in output
    code, _, errors = galampi("train", "--out", out, "--resume", "--max-time-s", 2).finish()
    assert code == 0, errors
    assert all(rank.restarts["changes"].tolist() == ["max_time_s 1.0 -> 2.0"] for rank in open_run(out).ranks)


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_new_run_begins_with_the_policy_of_another(galampi, small_job, tmp_path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert galampi("train", small_job, "--out", old, "--total_env_steps", 2000).finish()[0] == 0
    mean = find_policy(old).z
    arguments = ("--total_env_steps", 8, "--learner.rollout_length", 1, "--seed", 5, "--learner.learning_rate", 1e-9)
    code, _, errors = galampi("train", small_job, "--out", new, "--from", old, *arguments).finish()
    assert code == 0, errors
    np.testing.assert_allclose(find_policy(new).z, mean, atol=1e-6)
    run = open_run(new)
    assert run.attributes["origin"] == str(old)
    assert run.attributes["origin_env_steps"] >= 2000
    assert run.ranks[0].updates["update"][0] == 1
    again = galampi("train", "--out", new, "--resume", "--total_env_steps", 400)
    assert again.finish()[0] == 0
    goes_on = open_run(new).attributes
    assert goes_on["num_restarts"] == 1
    assert all(goes_on[key] == run.attributes[key] for key in run.attributes if key.startswith("origin"))
    for more, words in (
        (("--resume",), "--from begins a new run, --resume goes on with one"),
        (("--network.hidden_sizes", "[32]"), "its network.hidden_sizes is (64, 64); this job's is (32,)"),
    ):
        out = new if more == ("--resume",) else tmp_path / "third"
        code, _, errors = galampi("train", small_job, "--out", out, "--from", old, *more).finish()
        assert code == 2
        assert words in errors
        assert len([line for line in errors.splitlines() if line.startswith("galampi: ")]) == 1


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_run_that_is_done_says_so(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ("train", small_job, "--out", out, "--total_env_steps", 1000)
    assert galampi(*arguments).finish()[0] == 0
    # As a kill between the last save and the change of the status leaves it.
    JobFile.set_status(out, "running")
    code, output, _ = galampi(*arguments, "--resume").finish()
    assert code == 0
    assert "finished already" in output
    assert open_run(out).status == "finished"
