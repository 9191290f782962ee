import errno
import fcntl
import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from galampi.cli import run
from galampi.errors import UserError
from galampi.job import Job, load_job
from galampi.launch import here, rehearsal, status, sweep
from galampi.launch.axes import combinations, parse_axes
from galampi.launch.commands import status_of
from galampi.launch.submit import Notice, Resources
from galampi.launch.sweep_display import SweepDisplay
from galampi.results import JobFile


def make(folder: Path, num_seeds: int = 3) -> Path:
    job = folder / "job.toml"
    job.write_text("")
    axes = parse_axes(["environment.id=ALE/Pong-v5,CartPole-v1"], num_seeds, 1)
    sweep.lay_out(folder / "sweep", combinations(job, {}, axes))
    return folder / "sweep"


def put_in_queue(monkeypatch, lines: list[str]) -> None:
    def squeue(arguments, **options):
        assert arguments[0] == "squeue"
        return subprocess.CompletedProcess(arguments, 0, "\n".join(lines), "")

    monkeypatch.setattr(sweep.subprocess, "run", squeue)


def test_axes() -> None:
    axes = parse_axes(["network.hidden_sizes=[64,64],[32]", "gossip.method=gala,none"], 2, 5)
    assert axes == {"network.hidden_sizes": ["[64,64]", "[32]"], "gossip.method": ["gala", "none"], "seed": ["5", "6"]}
    tables = parse_axes(["environment.kwargs={a=1,b={c=[1,2]}},{a='x,]'}"], None, 1)
    assert tables == {"environment.kwargs": ["{a=1,b={c=[1,2]}}", "{a='x,]'}"]}


@pytest.mark.parametrize(
    ("sweeps", "num_seeds", "match"),
    [
        (["seed"], None, "KEY=VALUE"),
        (["seed="], None, "KEY=VALUE"),
        (["seed=1,,2"], None, "KEY=VALUE"),
        (["seed=1,2,"], None, "KEY=VALUE"),
        (['name=a"b,c'], None, "KEY=VALUE"),
        (["environment.kwargs={a=1,b=2"], None, "KEY=VALUE"),
        (["seed=1,1"], None, "twice"),
        (["seed=1", "seed=2"], None, "swept twice"),
        (["seed=1"], 3, "two ways"),
        ([], 0, "at least 1"),
    ],
)
def test_axes_that_are_none(sweeps, num_seeds, match) -> None:
    with pytest.raises(UserError, match=match):
        parse_axes(sweeps, num_seeds, 1)


def test_a_minus_stays_in_the_names_of_runs() -> None:
    axes = parse_axes(["environment.kwargs.goal=-1,1,-0.5,0"], None, 1)
    assert [*combinations(None, {}, axes)] == ["goal--1", "goal-1", "goal--0.5", "goal-0"]


def test_the_same_command_goes_on_with_its_sweep(tmp_path, monkeypatch) -> None:
    """Also where modules are named without a job file, and numbers that are not equal to themselves."""
    overrides = {
        "environment.id": "CartPole-v1",
        "environment.wrappers": '["gymnasium.wrappers:TimeAwareObservation"]',
        "environment.kwargs.x": "nan",
    }
    monkeypatch.chdir(tmp_path)
    axes = ["learner.gamma=0.9,0.99"]
    asked = here.Asked(
        folder=tmp_path / "sweep", job=None, overrides=overrides, sweeps=axes, num_seeds=None, at_once=1, num_ranks=1
    )
    here._lay_out(asked)
    there = [load_job(each.job_file) for each in sweep.read_sweep(asked.folder)]
    assert [job.modules_folder for job in there] == [str(tmp_path)] * 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    here._lay_out(asked)
    for other in (["learner.gamma=0.9"], ["learner.gamma=0.9,0.98"]):
        with pytest.raises(UserError, match=r"holds another sweep: gamma-0\.9"):
            here._lay_out(replace(asked, sweeps=other))


def test_the_name_of_a_job_is_no_folder_of_a_sweep(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="cartpole: is a job; a sweep wants its folder first, as `sweep runs/cartpole car"
    ):
        run(["sweep", "cartpole", "--array-seeds", "2"])
    assert not (tmp_path / "cartpole").exists()


def test_files_of_a_sweep_are_no_runs(tmp_path) -> None:
    folder = make(tmp_path)
    for name in (sweep.OPTIONS, sweep.SUBMISSIONS):
        (folder / name).touch()
        assert sweep.run_folders(folder / name) == []


def test_a_folder_of_modules_is_the_shells(tmp_path, monkeypatch, capsys) -> None:
    """And not that of the job file, nor of the run, where the job is read anew."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job.toml").write_text("environment.id = 'my_env:Maze'\n")
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods/my_env.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(["submit", "jobs/job.toml", "--modules_folder", "mods", "--out", "runs/x", "--dry-run"]) == 0
    assert f"--modules_folder {tmp_path}/mods" in capsys.readouterr().out


def test_a_rehearsal_takes_no_run_of_another_for_its_own(tmp_path) -> None:
    JobFile.create(tmp_path / "out/limit", {"job_toml": ""}, 2)
    with pytest.raises(UserError, match="out/limit: holds the run of an earlier rehearsal"):
        run(["submit", "cartpole", "--rehearse", "--out", str(tmp_path / "out")])


def test_a_queue_that_does_not_answer_is_no_queue_without_jobs(monkeypatch) -> None:
    """What a rehearsal has submitted is cancelled all the same, and a queue that has forgotten it is empty."""
    calls = []
    answers = iter([(1, "", "slurm_load_jobs error: Socket timed out"), (0, "\nCLUSTER: big\n7 RUNNING\n", "")])

    def answer(arguments, **_):
        calls.append(arguments)
        code, output, errors = (
            next(answers, (1, "", "Invalid job id specified")) if arguments[0] == "squeue" else (0, "", "")
        )
        return subprocess.CompletedProcess(arguments, code, output, errors)

    monkeypatch.setattr(rehearsal.subprocess, "run", answer)
    monkeypatch.setattr(rehearsal, "_PERIOD_S", 0.0)
    rehearsal.cancel(["7", "8"])
    assert [call[0] for call in calls] == ["squeue", "scancel", "scancel"] * 2 + ["squeue"]
    assert [call[-2:] for call in calls[1:3]] == [["7", "8"]] * 2
    assert calls[5][-1] == "7" and "8" not in calls[5]


def test_what_slurm_has_forgotten_has_ended(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(rehearsal, "_states", lambda job_ids: {})
    monkeypatch.setattr(rehearsal, "_PERIOD_S", 0.0)
    jobs = [rehearsal.Rehearsed("limit", tmp_path, ["7"])]
    assert not rehearsal.watch(jobs, Notice())
    assert "its job ended before it had trained: COMPLETED" in capsys.readouterr().out


def test_a_sweep_may_gain_runs_while_it_is_trained(tmp_path, capsys) -> None:
    folder = make(tmp_path, num_seeds=1)
    with SweepDisplay(sweep.read_sweep(folder)) as display:
        jobs = {each.name: load_job(each.job_file) for each in sweep.read_sweep(folder)}
        sweep.change(folder, {**jobs, "another": Job()})
        (another,) = (each for each in sweep.read_sweep(folder) if each.name == "another")
        display.begin(another, "begins")
        display.look()
        display.end(another)
    assert "another: missing; 0 of 3 runs done" in capsys.readouterr().out


def test_a_hangup_that_nohup_keeps_away_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with here._stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_display_whose_reader_has_gone_ends_nothing(tmp_path, monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with SweepDisplay(sweep.read_sweep(make(tmp_path))) as display:
            display.say("begins")
            display.say("goes on")
        print("what comes after", flush=True)


def test_a_sweep_outlasts_a_queue_that_does_not_answer(tmp_path, monkeypatch, capsys) -> None:
    folder = make(tmp_path, num_seeds=1)
    answers = iter([True, True, False, False, True, False])
    read = sweep.read_sweep

    def read_sweep(asked: Path) -> list[sweep.SweptRun]:
        if not next(answers, True):
            raise sweep.QueueError("squeue refused: no controller")
        return read(asked)

    monkeypatch.setattr(sweep, "read_sweep", read_sweep)
    monkeypatch.setattr(here, "_PERIOD_S", 0.01)
    monkeypatch.setattr(here, "_ASK_AGAIN_S", 0.02)
    ended = []
    is_stopped = here._train(folder, lambda run: ["sh", "-c", f"mkdir {run.out}"], 1, lambda: ended.append(1))
    assert not is_stopped and len(ended) == 2
    assert sorted(path.name for path in folder.iterdir() if "seed" in path.name) == [
        "CartPole-v1_seed-1",
        "Pong-v5_seed-1",
    ]
    lines = capsys.readouterr().out.splitlines()
    # Of each time that it does not answer there is one line.
    assert len([line for line in lines if line.endswith("no controller; asks again until that can be told")]) == 2


def test_a_job_that_is_asked_for_twice(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gamma-0\.9 and gamma-0\.90 are the same job"):
        combinations(None, {}, {"learner.gamma": ["0.9", "0.90"]})


@pytest.mark.parametrize("name", [sweep.OPTIONS, sweep.SUBMISSIONS])
@pytest.mark.parametrize("text", ['{"job_id": "1", "off', '{"job_id": "1"}\n', "[]\n"])
def test_a_file_that_was_cut_off_is_told_in_a_line(tmp_path, name, text) -> None:
    folder = make(tmp_path)
    (folder / name).write_text(text)
    read = sweep.last_options if name == sweep.OPTIONS else sweep.read_sweep
    with pytest.raises(UserError, match=f"{name}: damaged: ") as raised:
        read(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_jobs_makes_no_sweep(tmp_path, capsys) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/mine-1.toml").write_text("")
    assert not sweep.is_sweep(tmp_path)
    assert sweep.run_folders(tmp_path) == [tmp_path]
    with pytest.raises(UserError, match="has a `jobs` that is no sweep's"):
        sweep.lay_out(tmp_path, {})


def test_each_combination_has_a_job_file_of_its_own(tmp_path) -> None:
    folder = make(tmp_path)
    names = sorted(path.name for path in (folder / "jobs").iterdir())
    assert len(names) == 6
    assert names[0] == "0-Pong-v5_seed-1.toml"
    assert names[5] == "5-CartPole-v1_seed-3.toml"
    with pytest.raises(UserError, match="holds a sweep"):
        make(tmp_path)


def test_what_became_of_each(tmp_path, monkeypatch) -> None:
    folder = make(tmp_path)
    for index, found in {0: "finished", 1: "running", 2: "running", 3: "failed", 5: "stopped"}.items():
        name = next((folder / "jobs").glob(f"{index}-*")).stem.partition("-")[2]
        JobFile.create(folder / name, {}, 1)
        JobFile.set_status(folder / name, found)
    sweep.record_submission(folder, "70", 0)
    put_in_queue(monkeypatch, ["70 1 RUNNING", "70 5 PENDING", "71 2 RUNNING", "72 N/A RUNNING"])
    states = [run.state for run in sweep.read_sweep(folder)]
    assert states == ["done", "running", "lost", "failed", "missing", "queued"]
    put_in_queue(monkeypatch, ["70 1 RUNNING"])
    assert sweep.read_sweep(folder)[5].state == "stopped"
    put_in_queue(monkeypatch, ["70 1 RUNNING", "70 5 PENDING", "71 2 RUNNING", "72 N/A RUNNING"])
    assert status_of([folder], failed=False)[1] == 1
    # As `SWEEP/*` names them; logs and the like are no runs.
    text, code = status_of(sorted(folder.iterdir()), failed=False)
    assert (len(text.splitlines()), code) == (5, 4)
    # A job that printed something and left no run has failed, not never begun.
    (folder / "logs" / "70_4.log").touch()
    assert sweep.read_sweep(folder)[4].state == "failed"


def test_a_layout_that_was_cut_short_is_none(tmp_path, monkeypatch) -> None:
    texts = iter(["", "", ""])
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "dump_job", lambda job: next(texts))
        with pytest.raises(StopIteration):
            make(tmp_path)
    assert not sweep.is_sweep(tmp_path / "sweep")
    make(tmp_path)
    assert len(list((tmp_path / "sweep/jobs").iterdir())) == 6


def test_what_was_asked_for_is_asked_for_again(tmp_path, monkeypatch, capsys) -> None:
    """Also when the first submission was refused: by then the sweep is laid out."""
    monkeypatch.chdir(tmp_path)
    for name in ("job.toml", "own.sbatch"):
        Path(name).touch()
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho no >&2; exit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    monkeypatch.setattr(sweep, "max_array_index", lambda: 1000)
    asked = ["submit", "job.toml", "--out", "s", "--array-seeds", "3", "--at-once", "2", "--script", "own.sbatch"]
    with pytest.raises(UserError, match="sbatch refused"):
        run([*asked, "--nodes", "2", "--cpus-per-task", "3"])
    sbatch.write_text("#!/bin/sh\necho 70\n")
    capsys.readouterr()
    assert run(["submit", "s", "--cpus-per-task", "4"]) == 0
    (call,) = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("sbatch ")]
    assert {"--array=0-2%2", "--nodes=2", "--cpus-per-task=4"} <= set(call)
    assert call[-3:] == [str(tmp_path / "s"), "0", str(tmp_path / "own.sbatch")]
    assert call[-4].endswith("/sweep.sbatch")
    options = sweep.Options(resources=Resources(nodes=2, cpus_per_task=4), script=tmp_path / "own.sbatch", at_once=2)
    assert sweep.last_options(Path("s")) == options


def test_a_batch_file_of_a_sweep_must_be_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").touch()
    with pytest.raises(UserError, match=r"none\.sbatch: no such file"):
        run(["submit", "job.toml", "--out", "s", "--array-seeds", "3", "--script", "none.sbatch"])
    assert not Path("s").exists()


def test_large_sweeps_are_several_arrays() -> None:
    made = sweep.arrays(
        Path("s"),
        [0, 1, 2, 9, 10, 13, 25],
        options=sweep.Options(at_once=4),
        script=Path("sweep.sbatch"),
        name="s",
        max_index=9,
    )
    assert [(offset, submission.array) for offset, submission in made] == [(0, "0-2,9%4"), (10, "0,3%4"), (20, "5%4")]
    assert made[1][1].arguments == ("s", "10")


def test_a_status_that_nobody_has_written_is_no_state_to_go_on_from(tmp_path) -> None:
    JobFile.create(tmp_path, {}, 1)
    with h5py.File(tmp_path / "job.h5", "r+") as file:
        file.attrs["status"] = "\x1b[31mfine"
    assert status_of([tmp_path], failed=False) == (f"{tmp_path}: failed", 1)


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("failed", 1), (None, 2), ("stopped", 3), ("partial", 3), ("running", 4)]
)
def test_exit_codes_of_status(tmp_path, status, code) -> None:
    if status is not None:
        JobFile.create(tmp_path, {}, 1)
        JobFile.set_status(tmp_path, status)
    text, found = status_of([tmp_path], failed=False)
    assert found == code
    assert (status or "missing") in text


def test_a_finished_run_cannot_be_marked_failed(tmp_path) -> None:
    JobFile.create(tmp_path, {}, 1)
    JobFile.set_status(tmp_path, "finished")
    assert status_of([tmp_path], failed=True)[1] == 0
    JobFile.set_status(tmp_path, "running")
    assert status_of([tmp_path], failed=True)[1] == 1


def test_a_run_in_use_cannot_be_marked_failed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(status, "_PATIENCE_S", 0.2)
    JobFile.create(tmp_path, {}, 1)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status_of([tmp_path], failed=True)[1] == 4
    assert status_of([tmp_path], failed=True)[1] == 1


def test_a_run_that_cannot_be_written_takes_one_line(tmp_path, monkeypatch) -> None:
    JobFile.create(tmp_path, {}, 1)

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "job.h5.part")

    monkeypatch.setattr(JobFile, "set_status", refuse)
    with pytest.raises(UserError, match=rf"{tmp_path}: cannot be written: No space left on device\Z"):
        status_of([tmp_path], failed=True)


def test_folders_of_a_sweep_are_those_of_its_runs_in_their_order(tmp_path) -> None:
    jobs = combinations(None, {}, {"seed": [str(seed) for seed in range(12)]})
    sweep.lay_out(tmp_path / "sweep", jobs)
    assert sweep.run_folders(tmp_path / "sweep") == [tmp_path / "sweep" / f"seed-{seed}" for seed in range(12)]
    assert sweep.run_folders(tmp_path / "run") == [tmp_path / "run"]


def test_ranks_of_a_sweep_are_those_that_its_runs_have(tmp_path, monkeypatch) -> None:
    """A site's own batch file may ask for more than is known here."""
    folder = make(tmp_path)
    JobFile.create(folder / "Pong-v5_seed-1", {"job_toml": "", "num_restarts": 0}, 8)
    # One that is damaged says nothing.
    (folder / "CartPole-v1_seed-1").mkdir()
    (folder / "CartPole-v1_seed-1/job.h5").write_bytes(b"half")
    assert here._ranks_of(folder, None) == 8
    assert not (folder / sweep.OPTIONS).exists()
    assert here._ranks_of(folder, 3) == 3
    # So `submit` asks for as many, and so does this command.
    assert sweep.last_options(folder).resources == Resources(nodes=1, ntasks_per_node=3)
    assert here._ranks_of(folder, None) == 3
    (tmp_path / "other").mkdir()
    new = make(tmp_path / "other")
    assert here._ranks_of(new, None) == here.NUM_RANKS
    assert sweep.last_options(new).resources == Resources(nodes=1, ntasks_per_node=here.NUM_RANKS)


def test_one_way_to_go_on_takes_the_place_of_the_other(tmp_path, monkeypatch, capsys) -> None:
    folder = make(tmp_path)
    sweep.record_options(folder, sweep.Options(resources=Resources(max_restarts=50, nodes=2)))
    monkeypatch.setattr(sweep, "max_array_index", lambda: 1000)
    assert run(["submit", str(folder), "--chain", "4", "--dry-run"]) == 0
    assert "--no-requeue" in capsys.readouterr().out
    with pytest.raises(UserError, match="two ways to go on; give one"):
        run(["submit", str(folder), "--chain", "4", "--max-restarts", "3", "--dry-run"])


def test_what_a_user_likes_to_see_of_the_queue_hides_no_job(tmp_path, monkeypatch) -> None:
    folder = make(tmp_path, num_seeds=1)
    sweep.record_submission(folder, "70", 0)
    squeue = tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    answers = 'case "$SQUEUE_STATES$*" in --noheader*--all*) echo "70 0 PENDING";; esac'
    squeue.write_text(f"#!/bin/sh\n{answers}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SQUEUE_STATES", "R")
    assert [each.state for each in sweep.read_sweep(folder)] == ["queued", "missing"]


def test_a_sweep_whose_last_run_others_train_looks_now_and_then(tmp_path, monkeypatch) -> None:
    folder = make(tmp_path, num_seeds=1)
    looks, read = [], sweep.read_sweep
    monkeypatch.setattr(sweep, "read_sweep", lambda asked: looks.append(1) or read(asked))
    monkeypatch.setattr(here, "_PERIOD_S", 0.01)
    monkeypatch.setattr(here, "_ASK_AGAIN_S", 0.3)
    held, since_s = here.held, time.monotonic()
    # For a second somebody trains all of them by hand.
    ends_s = since_s + 1
    monkeypatch.setattr(here, "held", lambda path: held(path) or (path.name == "lock" and time.monotonic() < ends_s))
    assert not here._train(folder, lambda run: ["sh", "-c", f"mkdir {run.out}"], 1, lambda: None)
    assert len(list(folder.glob("*_seed-1"))) == 2
    assert len(looks) < 15
