"""What batch files decide by themselves: each runs as it is, among commands that do as a test tells them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from limits import DEADLOCK_S

SLURM = Path(__file__).parents[3] / "slurm"
TRAIN = "python -m galampi train"


class Stage:
    """A folder for a batch file to run in. Every command it calls is recorded.

    Attributes:
        folder: The current folder.
        calls: What was called, a line each.
        log: File to which a batch file and what it calls print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.called = folder / "calls"
        self.log = folder / "log"
        for name in ("galampi", "srun", "mpirun", "scontrol", "flock", "sleep"):
            self.let(name, "")
        # A run that nobody has ended.
        self.let("python", 'case "$*" in *"status --failed"*) exit 1 ;; *) exit 4 ;; esac')

    @property
    def calls(self) -> list[str]:
        return self.called.read_text().splitlines() if self.called.exists() else []

    @property
    def requeued(self) -> list[str]:
        """What a requeue was asked for, tried again or not."""
        return [call.removeprefix("scontrol requeue ") for call in self.calls if call.startswith("scontrol requeue ")]

    def let(self, name: str, body: str) -> None:
        """Say what a command does, in the words of a shell."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
        path.chmod(0o755)

    def begin_run(self) -> None:
        (self.folder / "run").mkdir()
        (self.folder / "run/job.h5").write_text("as it was")

    def run(self, name: str, *arguments: str, restarts: int = 0, **variables: str) -> int:
        """Run a batch file as Slurm would, or a test's variables have it; return its exit code."""
        # What whoever runs the tests has set is not what a job finds.
        foreign = ("GALAMPI_", "SLURM_", "SBATCH_", "OMPI_MCA_")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "CALLS": str(self.called),
            "GALAMPI_SLURM": str(SLURM),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "2",
            "SLURM_NNODES": "1",
            "SLURM_RESTART_COUNT": str(restarts),
            **variables,
        }
        # The way of --open-mode=append.
        with self.log.open("a") as log:
            return subprocess.run(
                ["bash", SLURM / f"{name}.sbatch", *arguments],
                **{"cwd": self.folder, "env": environment, "stdout": log, "stderr": log, "timeout": DEADLOCK_S},
                check=False,
            ).returncode


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


# What a launcher does whose run begins.
BEGIN = 'echo begun >>"run/job.h5"'


@pytest.mark.parametrize(("restarts", "code", "requeued"), [(0, 2, 0), (1, 0, 1), (2, 3, 0)])
def test_a_run_in_use_is_left_alone(stage, restarts, code, requeued) -> None:
    """Not marked as failed either, for it is still being trained."""
    stage.begin_run()
    stage.let("flock", "exit 1")
    assert stage.run("requeue", "job.toml", "run", restarts=restarts, GALAMPI_MAX_RESTARTS="2") == code
    assert stage.calls.count("scontrol requeue 7") == requeued
    assert not [call for call in stage.calls if TRAIN in call or "--failed" in call]


def test_a_file_system_without_locks_will_do(stage) -> None:
    stage.begin_run()
    stage.let("flock", "exit 71")
    stage.run("requeue", "job.toml", "run")
    assert any(f"{TRAIN} --out run --resume" in call for call in stage.calls)


def test_a_start_leaves_the_files_of_another_alone(stage) -> None:
    (stage.folder / "run").mkdir()
    names = {"lock", "job.h5.part", "rank-0000.h5"}
    for name in names:
        (stage.folder / "run" / name).touch()
    stage.run("requeue", "job.toml", "run")
    assert {path.name for path in (stage.folder / "run").iterdir()} == names


@pytest.mark.parametrize(
    ("begin", "code", "restarts", "ended", "requeued"),
    [
        (BEGIN, 137, 0, 0, 1),
        (BEGIN, 137, 2, 3, 0),
        (BEGIN, 9, 0, 0, 1),
        # No run, no program that could be killed in it: not tried again and again.
        ("", 137, 0, 137, 0),
        (BEGIN, 1, 0, 1, 0),
    ],
)
def test_a_killed_launcher_is_an_interruption(stage, begin, code, restarts, ended, requeued) -> None:
    stage.begin_run()
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) {begin or ":"}; exit {code} ;; esac')
    assert stage.run("requeue", "job.toml", "run", restarts=restarts, GALAMPI_MAX_RESTARTS="2") == ended
    assert stage.calls.count("scontrol requeue 7") == requeued
    assert any("status --failed run" in call for call in stage.calls) == (ended == code)


def test_ranks_killed_after_an_error_in_one_are_a_failure(stage) -> None:
    stage.begin_run()
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) {BEGIN}; exit 137 ;; esac')
    stage.let("python", "exit 1")
    assert stage.run("requeue", "job.toml", "run") == 137
    assert not [call for call in stage.calls if "scontrol requeue" in call]


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_before_there_is_a_launcher(stage, signal) -> None:
    stage.begin_run()
    stage.let("srun", f'case "$*" in *--mpi=none*) kill -{signal} "$PPID" ;; esac')
    assert stage.run("requeue", "job.toml", "run", restarts=1) == 0
    assert stage.calls.count("scontrol requeue 7") == 1
    assert not [call for call in stage.calls if TRAIN in call]


# A controller that is there, and one that is away.
UP, DOWN = ("echo 'Slurmctld(primary) at head is UP'", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")


def refuse(stage: Stage, times: int, ping: str) -> None:
    """Let the first requeues fail."""
    requeue = f'(($(grep -c "^scontrol requeue" "$CALLS") > {times}))'
    stage.let("scontrol", f'case "$*" in ping) {ping} ;; requeue*) {requeue} ;; esac')


@pytest.mark.parametrize(("refusals", "code", "tries"), [(0, 0, 1), (2, 0, 3), (3, 0, 4), (6, 3, 6)])
def test_a_requeue_that_is_refused_is_tried_again(stage, refusals, code, tries) -> None:
    """At once, and when the run has come to its end."""
    refuse(stage, refusals, UP)
    stage.let("srun", 'kill -TERM "$PPID"; /bin/sleep 0.5')
    assert stage.run("requeue", "job.toml", "run") == code
    assert stage.requeued == ["7"] * tries
    assert ("submit it again with the same folder, or with --chain" in stage.log.read_text()) == (refusals > 2)


def test_a_controller_that_is_away_is_waited_for(stage) -> None:
    refuse(stage, 20, DOWN)
    stage.let("python", "exit 3")
    assert stage.run("requeue", "job.toml", "run") == 0
    assert stage.requeued == ["7"] * 21


@pytest.mark.parametrize(
    ("of_an_array", "requeued"),
    [
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "7"),
        ({}, "7"),
    ],
)
def test_a_job_requeues_itself(stage, of_an_array, requeued) -> None:
    """Whether it is of an array, bears the array's number, or was submitted by a task of one that came back often."""
    stage.let("python", "exit 3")
    stage.let("scontrol", 'case "$*" in *show*) echo "JobId=7 Requeue=1 Restarts=1 BatchFlag=1" ;; esac')
    assert stage.run("requeue", "job.toml", "run", restarts=20, **of_an_array) == 0
    assert "restart 1 of at most 20" in stage.log.read_text()
    assert stage.requeued == [requeued]


NAMES = ["array", "mpirun", "mps", "plain", "preempt", "requeue", "sweep"]


@pytest.mark.parametrize("name", NAMES)
def test_without_slurm_nothing_runs(stage, name) -> None:
    """One line says why, on a login node that has all it takes to train."""
    without = dict.fromkeys(("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_RESTART_COUNT"), "")
    assert stage.run(name, **without) != 0
    (line,) = stage.log.read_text().splitlines()
    assert "submit this file with sbatch" in line
    assert not stage.calls


@pytest.mark.parametrize("name", ["plain", "mpirun", "requeue"])
@pytest.mark.parametrize("osc", [None, "", "rdma"])
def test_what_the_steps_of_a_job_find_in_their_environment(stage, name, osc) -> None:
    for command in ("srun", "mpirun"):
        stage.let(command, 'echo "$SLURM_EXPORT_ENV,${OMPI_MCA_osc-unset}" >steps')
    stage.run(name, "job.toml", "run", SLURM_EXPORT_ENV="NONE", **({} if osc is None else {"OMPI_MCA_osc": osc}))
    assert (stage.folder / "steps").read_text() == f"ALL,{'^ucx' if osc is None else osc}\n"


@pytest.mark.parametrize(
    ("name", "resume"), [("plain", "--resume=auto"), ("mpirun", "--resume=auto"), ("requeue", "--resume")]
)
def test_a_run_that_is_there_goes_on(stage, name, resume) -> None:
    stage.begin_run()
    stage.run(name, "job.toml", "run", "--seed", "7")
    (call,) = [call for call in stage.calls if TRAIN in call]
    assert f"--out run {resume} --seed 7" in call


@pytest.mark.parametrize("name", ["plain", "mpirun", "requeue"])
def test_an_environment_that_is_missing_takes_one_line(stage, name) -> None:
    (stage.folder / "bin/galampi").unlink()
    assert stage.run(name, "job.toml", "run") == 2
    (line,) = stage.log.read_text().splitlines()
    assert ".venv-mpich/bin/activate: No such file" in line


OUT_OF_MEMORY = [
    "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed",
    "slurmstepd: error: Detected 2 oom_kill events in StepId=7.0. Some of the step tasks have been OOM Killed.",
    "srun: error: n1: task 1: Out Of Memory",
]


@pytest.mark.parametrize("line", OUT_OF_MEMORY)
@pytest.mark.parametrize("status", [1, 4])
def test_a_rank_without_memory_is_an_interruption(stage, line, status) -> None:
    """Under srun too, which returns 1; and whether another rank has failed for want of it or not."""
    stage.let("python", f"exit {status}")
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) mkdir -p run; {BEGIN}; echo "{line}" >&2; exit 1 ;; esac')
    assert stage.run("requeue", "job.toml", "run") == 0
    assert "killed; there was not enough memory" in stage.log.read_text()
    # What is still there of that says nothing of the next stretch.
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) {BEGIN}; exit 1 ;; esac')
    assert stage.run("requeue", "job.toml", "run") == 1
    assert stage.requeued == ["7"]


@pytest.mark.parametrize("code", [1, 9, 137])
def test_a_full_disk_is_no_interruption(stage, code) -> None:
    stage.begin_run()
    stage.let("head", "exit 1")
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) {BEGIN}; exit {code} ;; esac')
    assert stage.run("requeue", "job.toml", "run") == 1
    assert "run cannot be written, its disk is full perhaps" in stage.log.read_text()
    assert not stage.requeued


@pytest.mark.parametrize(("left_s", "preempted", "said"), [(90, False, True), (-90, False, False), (90, True, False)])
def test_a_notice_that_leaves_little_is_said(stage, left_s, preempted, said) -> None:
    end = f"$(date --date='{left_s} seconds' +%FT%T)"
    since = "2026-01-01T00:00:00" if preempted else "None"
    stage.let("scontrol", f'case "$*" in *show*) echo "JobId=7 EndTime={end} PreemptTime={since} Restarts=0" ;; esac')
    stage.let("python", "exit 3")
    stage.let("srun", f'case "$*" in *"{TRAIN}"*) kill -USR1 "$PPID"; /bin/sleep 0.5 ;; esac')
    assert stage.run("requeue", "job.toml", "run") == 0
    assert ("more --time, or less notice" in stage.log.read_text()) == said
    assert stage.requeued == ["7"]


@pytest.mark.parametrize(
    ("chain", "status", "code", "trains", "says"),
    [
        ("1/2", 3, 0, True, "the next job of the chain goes on"),
        ("2/2", 3, 3, True, "given up"),
        ("2/2", 2, 3, True, "lost without an error"),
        ("2/2", 0, 0, False, ""),
        ("2/2", 1, 1, False, ""),
    ],
)
def test_a_chain_never_goes_back_to_the_queue(stage, chain, status, code, trains, says) -> None:
    stage.let("python", f"exit {status}")
    train = f'case "$*" in *"{TRAIN}"*) mkdir -p run; {BEGIN} ;; esac'
    stage.let("srun", f'echo "${{GALAMPI_CHAIN-unset}}" >>chain; {train}')
    assert stage.run("requeue", "job.toml", "run", GALAMPI_CHAIN=chain) == code
    assert says in stage.log.read_text()
    assert any(TRAIN in call for call in stage.calls) == trains
    assert not stage.requeued
    if trains:
        # A job that this one submits is of no chain.
        assert set((stage.folder / "chain").read_text().split()) == {"unset"}


@pytest.mark.parametrize(
    ("name", "launcher"), [("plain", "srun"), ("mpirun", "mpirun"), ("requeue", "srun"), ("preempt", "srun")]
)
def test_all_take_job_folder_and_settings(stage, name, launcher) -> None:
    stage.run(name, "my job.toml", "my run", "--seed", "7")
    (call,) = [call for call in stage.calls if TRAIN in call]
    assert call.startswith(launcher)
    assert f"{TRAIN} my job.toml --out my run" in call
    assert call.endswith(" --seed 7")
    stage.run(name)
    assert any(f"{TRAIN} cartpole --out runs/galampi-7" in call for call in stage.calls)


@pytest.mark.parametrize("arguments", [["job.toml"], ["job.toml", "run"], ["job.toml", "run", "--seed", "7"]])
def test_preempt_saves_often_unless_told_how_often(stage, arguments) -> None:
    stage.run("preempt", *arguments)
    stage.run("preempt", "job.toml", "run", "--checkpoint.every_updates", "5")
    plain, told = [call for call in stage.calls if TRAIN in call]
    assert " --checkpoint.every_updates 1000" in plain
    assert told.endswith(" --checkpoint.every_updates 1000 --checkpoint.every_updates 5")


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        ("[checkpoint]\nevery_updates = 200 # of updates\nevery_s = 300.0\n", True),
        ("[checkpoint]\nkeep_every_updates = 5\nevery_updates = 1_000\n", False),
        ("[checkpoint]\nevery_updates = 5000\n", False),
        ("[record]\nevery_updates = 10\n[ checkpoint ] # saved\nevery_s = 9.0\nevery_updates=5000\n", False),
        ("checkpoint.every_updates = 200\n[record]\nevery_updates = 5000\n", True),
        ("checkpoint = { keep_every_updates = 7, every_updates = 200 }\n", True),
        ("[checkpoint]\r\nevery_updates = 200\r\n", True),
        ('["checkpoint"]\n"every_updates" = 200\n', True),
        ("checkpoint = { keep_every_updates = 200 }\nevery_updates = 7\n", False),
    ],
)
def test_preempt_keeps_the_number_of_a_job_file_that_saves_more_often(stage, text, is_kept) -> None:
    job = stage.folder / "seed=3.toml"
    job.write_text(f"seed = 1\n{text}", newline="")
    stage.run("preempt", str(job), "run")
    (call,) = [call for call in stage.calls if TRAIN in call]
    assert ("--checkpoint.every_updates" in call) != is_kept


@pytest.mark.parametrize("name", [None, "preempt"])
def test_a_sweep_has_its_runs_trained_by_the_batch_file_that_is_given(stage, name) -> None:
    (stage.folder / "sweep/jobs").mkdir(parents=True)
    (stage.folder / "sweep/jobs/12-seed-3.toml").touch()
    given = [] if name is None else [str(SLURM / f"{name}.sbatch")]
    stage.run("sweep", "sweep", "10", *given, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    (call,) = [call for call in stage.calls if TRAIN in call]
    assert f"{TRAIN} sweep/jobs/12-seed-3.toml --out sweep/seed-3" in call
    assert ("--checkpoint.every_updates" in call) == (name == "preempt")


def test_mps_that_does_not_start_is_no_training_without_it(stage) -> None:
    stage.let("nvidia-cuda-mps-control", "")
    assert stage.run("mps", "job.toml", "run") == 2
    assert not [call for call in stage.calls if TRAIN in call]


def test_a_signal_while_mps_starts_is_handed_on(stage) -> None:
    stage.let("nvidia-cuda-mps-control", "")
    pipe = "$CUDA_MPS_PIPE_DIRECTORY"
    stage.let("srun", f'case "$*" in *mps-control*) /bin/sleep 0.3; mkdir "{pipe}"; mkfifo "{pipe}/control" ;; esac')
    stage.let("sleep", 'kill -USR1 "$PPID"; /bin/sleep 0.2')
    # Its pipes lie in /tmp, which other tests may use at the same time.
    job_id = f"7-{os.getpid()}"
    try:
        assert stage.run("mps", "job.toml", "run", SLURM_JOB_ID=job_id) == 0
    finally:
        shutil.rmtree(f"/tmp/mps-{job_id}", ignore_errors=True)
    assert [call for call in stage.calls if call.startswith("scontrol requeue")]
    assert not [call for call in stage.calls if TRAIN in call]
