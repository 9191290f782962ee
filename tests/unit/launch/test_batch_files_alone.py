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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"
        for name in ("galampi", "srun", "mpirun", "scontrol", "flock", "sleep"):
            self.let(name, "")
        # A run that nobody has ended.
        self.let("python", 'case "$*" in *"status --failed"*) exit 1 ;; *) exit 4 ;; esac')

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

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
        """Run a batch file; return its exit code."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "CALLS": str(self.log),
            "GALAMPI_SLURM": str(SLURM),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "2",
            "SLURM_NNODES": "1",
            "SLURM_RESTART_COUNT": str(restarts),
            **variables,
        }
        script = SLURM / f"{name}.sbatch"
        return subprocess.run(
            ["bash", script, *arguments], cwd=self.folder, env=environment, timeout=DEADLOCK_S, check=False
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


@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_a_requeue_that_is_refused_is_tried_again_at_the_end(stage, refusals) -> None:
    stage.let("scontrol", f'(($(grep -c ^scontrol "$CALLS") > {refusals}))')
    stage.let("srun", 'kill -TERM "$PPID"; /bin/sleep 0.5')
    assert stage.run("requeue", "job.toml", "run") == (3 if refusals == 2 else 0)
    assert stage.calls.count("scontrol requeue 7") == min(2, refusals + 1)


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
    assert any(f"{TRAIN} jobs/cartpole.toml --out runs/galampi-7" in call for call in stage.calls)


@pytest.mark.parametrize("arguments", [["job.toml"], ["job.toml", "run"], ["job.toml", "run", "--seed", "7"]])
def test_preempt_saves_often_unless_told_how_often(stage, arguments) -> None:
    stage.run("preempt", *arguments)
    stage.run("preempt", "job.toml", "run", "--checkpoint.every_updates", "5")
    plain, told = [call for call in stage.calls if TRAIN in call]
    assert " --checkpoint.every_updates 1000" in plain
    assert told.endswith(" --checkpoint.every_updates 1000 --checkpoint.every_updates 5")


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
