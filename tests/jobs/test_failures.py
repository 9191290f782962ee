import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launching import assert_sound, wait_for
from limits import DEADLOCK_S

from galampi.results import open_run


def assert_one_line(command, *parts: str) -> None:
    code, output, errors = command.finish()
    lines = [line for line in errors.splitlines() if line.startswith("galampi: ")]
    assert code == 2, output + errors
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    for part in parts:
        assert part in lines[0]


@pytest.mark.slow
def test_a_simulator_that_raises_again_and_again_on_one_rank_ends_the_job(galampi, small_job, tmp_path) -> None:
    command = galampi(
        "train",
        small_job,
        "--out",
        tmp_path / "run",
        "--environment.id",
        "faulty_env:Faulty-v0",
        "--total_env_steps",
        10_000_000,
        env={"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"},
    )
    wait_for(lambda: len(command.ranks()) == 2)
    ranks = command.ranks()
    code, _, errors = command.finish()
    assert code == 1
    assert "simulators of rank 1 have raised" in errors and "ZeroDivisionError: the simulator broke" in errors
    # Below it there is only what the launcher has to say.
    assert not [line for line in errors.splitlines() if "rcache" in line or " UCX " in line]
    assert open_run(tmp_path / "run").status == "failed"
    wait_for(lambda: not any(process.is_running() for process in ranks))


@pytest.mark.one_mpi
@pytest.mark.parametrize(("own", "level"), [({}, "error"), ({"UCX_LOG_LEVEL": "debug"}, "debug")])
def test_the_layer_below_mpi_says_nothing_after_the_last_line_unless_it_is_told_to(own, level) -> None:
    program = (
        "import os; from galampi import __main__ as entry, cli; cli.run = lambda words: print(words); entry.main()"
    )
    program += '; print(os.environ["UCX_LOG_LEVEL"])'
    environment = {name: value for name, value in os.environ.items() if name != "UCX_LOG_LEVEL"} | own
    done = subprocess.run(
        [sys.executable, "-c", program, "jobs"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"['jobs']\n{level}\n"


@pytest.mark.parametrize("lacking", [0, 1])
@pytest.mark.parametrize("command", ["train", pytest.param("doctor", marks=pytest.mark.slow)])
def test_rank_0_reads_the_job_file_for_all_and_if_it_cannot_holds_nobody_up(
    small_job, tmp_path, command, lacking
) -> None:
    launch = ["mpirun"]
    for rank in range(2):
        job = tmp_path / "gone.toml" if rank == lacking else small_job
        words = [command, job, "--out", tmp_path / "run", "--total_env_steps", "2000"]
        launch += [":"] * rank + ["-n", "1", sys.executable, "-m", "galampi", *words]
    done = subprocess.run(launch, check=False, capture_output=True, text=True, timeout=DEADLOCK_S)
    told = [line for line in done.stderr.splitlines() if line.startswith("galampi: ")]
    if lacking == 0:
        assert done.returncode == 2
        assert told == [f"galampi: {tmp_path}/gone.toml: cannot be read: No such file or directory"]
    else:
        assert (done.returncode, told) == (0, [])


def test_ranks_end_with_their_launcher(galampi, small_job, tmp_path) -> None:
    """As when the launcher's part on a node is killed: those that nobody could stop any more stop by themselves."""
    command = galampi("train", small_job, "--out", tmp_path / "run", "--total_env_steps", 10_000_000, "--quiet")
    wait_for(lambda: len(list((tmp_path / "run/checkpoint").glob("*.h5"))) == 2)
    ranks = command.ranks()
    for launcher in {psutil.Process(command.process.pid), *(rank.parent() for rank in ranks)}:
        launcher.kill()
    _, alive = psutil.wait_procs(ranks, timeout=DEADLOCK_S)
    for rank in alive:
        rank.kill()
    assert not alive
    command.finish()


# A process whose launcher, the one above it, dies between its start and the time when it would wait for others.
ORPHAN = """
import os, pathlib, sys, time, types
from galampi.ranks import launched
launcher = os.getppid()
pathlib.Path("up").touch()
while os.getppid() == launcher:
    time.sleep(0.01)
from galampi.ranks.placement import end_with_launcher
end_with_launcher(types.SimpleNamespace(size=2, rank=1))
time.sleep(float(sys.argv[1]))
print("still here")
"""
LAUNCHER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
while not os.path.exists("up"):
    time.sleep(0.01)
"""


@pytest.mark.one_mpi
def test_a_launcher_that_died_early_is_missed_too(tmp_path) -> None:
    command = [sys.executable, "-c", LAUNCHER, ORPHAN, str(DEADLOCK_S)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    # Output ends with the last of the two.
    assert "still here" not in done.stdout
    assert "the launcher has died; this rank ends" in done.stderr


SEEN_BY_ALL_RANKS = [
    (["--environment.id", "ALE/Pnog-v5"], ["ALE/Pnog-v5", "ALE/Pong-v5"]),
    pytest.param(["--device", "cuda"], ["device is 'cuda'"], marks=pytest.mark.slow),
    pytest.param(
        ["--environment.num_envs", 65536, "--environment.id", "ALE/Pong-v5"],
        ["environment.num_envs"],
        marks=pytest.mark.slow,
    ),
]
SEEN_BEFORE_MPI_STARTS = [
    (["--environment.num_env", 3], ["environment.num_env", "environment.num_envs"]),
    (["--learner.gamma", 1.5], ["command line: learner.gamma is 1.5; must be", "at most 1"]),
    (["--learner.gamma", "much"], ["learner.gamma is 'much'; must be a number"]),
    (["--gossip.method", "pushsum"], ["'push-sum'"]),
    (["no-such-file.toml"], ["no-such-file.toml", "cannot be read"]),
    (["--resume"], ["--out"]),
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [*SEEN_BY_ALL_RANKS, *(pytest.param(*case, marks=pytest.mark.one_mpi) for case in SEEN_BEFORE_MPI_STARTS)],
)
def test_a_mistake_is_one_line(galampi, tmp_path, arguments, parts) -> None:
    folder = tmp_path / "run"
    out = [] if "--resume" in arguments else ["--out", folder]
    assert_one_line(galampi("train", *arguments, *out), *parts)
    assert not folder.exists() or not (folder / "job.h5").exists()


@pytest.mark.one_mpi
def test_a_mistake_in_a_file_names_the_file(galampi, tmp_path) -> None:
    job = tmp_path / "bad.toml"
    job.write_text("[learner]\ngamma = 1.5\n")
    assert_one_line(galampi("train", job), f"{job}: learner.gamma is 1.5", "at least 0 and at most 1")
    job.write_text("[learner\n")
    assert_one_line(galampi("train", job), f"{job}: not TOML")


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_folder_with_a_run_in_it_is_left_alone_and_what_is_no_run_does_not_matter(
    galampi, small_job, tmp_path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("slurm-7.out", ".nfs0001", "thesis.txt"):
        (folder / name).write_text("years of work")
    train = ("train", small_job, "--out", folder, "--total_env_steps", 1000)
    assert galampi(*train).finish()[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert_one_line(galampi(*train), str(folder), "holds a run", "--resume")
    (folder / "job.h5").rename(tmp_path / "job.h5")
    assert_one_line(galampi(*train), str(folder), "job.h5 is missing")
    (tmp_path / "job.h5").rename(folder / "job.h5")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert before["thesis.txt"] == b"years of work"


@pytest.mark.one_mpi
def test_a_start_that_was_cut_short_is_no_run(galampi, small_job, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("lock", "job.h5.part", "rank-0000.h5", "rank-0001.h5.part"):
        (folder / name).touch()
    assert galampi("train", small_job, "--out", folder, "--total_env_steps", 1000).finish()[0] == 0
    assert sorted(path.name for path in folder.glob("rank-*")) == ["rank-0000.h5", "rank-0001.h5"]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_an_environment_that_changes_the_folder_scatters_nothing(galampi, small_job, tmp_path) -> None:
    python_path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"

    def run(*arguments, ranks=None) -> str:
        command = galampi(*arguments, ranks=ranks, env={"PYTHONPATH": python_path}, cwd=tmp_path)
        code, output, errors = command.finish()
        assert code == 0, errors
        return output

    train = ("train", small_job.name, "--environment.id", "faulty_env:Wandering-v0", "--total_env_steps")
    run(*train, 1000, "--out", "named", ranks=2)
    run(*train, 2000, "--out", "named", "--resume", ranks=2)
    run(*train, 1000, ranks=2)
    assert_sound(tmp_path / "named", num_ranks=2, status="finished")
    (by_itself,) = (tmp_path / "runs").iterdir()
    assert_sound(by_itself, num_ranks=2, status="finished")
    run("evaluate", "named", "--episodes", 2)
    run("evaluate", "named", "--episodes", 2, "--out", "own.h5")
    run("export", "named", "--policy", "policy.safetensors", "--rliable", "scores.json", "--score", "evaluation")
    assert (tmp_path / "named/evaluation.h5").exists()
    assert {"own.h5", "policy.safetensors", "scores.json"} < {path.name for path in tmp_path.iterdir()}
    assert not [path for path in tmp_path.glob("elsewhere-*/**/*") if path.is_file()]


@pytest.mark.one_mpi
def test_a_folder_that_cannot_be_made(galampi, small_job, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(galampi("train", small_job, "--out", tmp_path / "file" / "run"), "cannot be written")


@pytest.mark.one_mpi
def test_nothing_to_resume(galampi, small_job, tmp_path) -> None:
    assert_one_line(galampi("train", small_job, "--resume", "--out", tmp_path / "none"), "job.h5 is missing")


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_running_job_keeps_its_folder(galampi, small_job, tmp_path) -> None:
    out = tmp_path / "run"
    first = galampi("train", small_job, "--out", out, "--total_env_steps", 10_000_000)
    wait_for((out / "job.h5").exists)
    assert_one_line(galampi("train", small_job, "--out", out, "--resume"), "in use by a job that is still running")
    assert first.process.poll() is None


def test_strangers_are_refused(galampi, small_job, tmp_path) -> None:
    """What a launcher of another MPI library makes: processes that do not know of each other."""
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        command = galampi("train", small_job, "--out", tmp_path / "run", ranks=None, env={name: "4"})
        assert_one_line(command, f"{name} is 4", "1 rank")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_process_in_a_large_allocation_is_no_stranger(galampi, small_job, tmp_path) -> None:
    """A shell of salloc knows the size of its allocation; mpirun may start fewer ranks than a step has tasks."""
    for ranks, name in ((None, "SLURM_NTASKS"), (1, "SLURM_STEP_NUM_TASKS")):
        command = galampi(
            "train", small_job, "--out", tmp_path / "run", "--device", "cuda", ranks=ranks, env={name: "4"}
        )
        # What it says if it gets that far.
        assert_one_line(command, "device is 'cuda'")


@pytest.mark.one_mpi
@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD", "PMI"])
def test_doctor_speaks_once_among_strangers(galampi, small_job, launcher) -> None:
    """Open MPI's mpirun and MPICH, or Slurm without a PMI: only the process that was started first prints."""
    for rank in (0, 1):
        environment = {f"{launcher}_SIZE": "2", f"{launcher}_RANK": str(rank)}
        code, output, errors = galampi("doctor", small_job, ranks=None, env=environment).finish()
        assert code == 1, errors
        assert output.count("failed   launch ") == (rank == 0)


@pytest.mark.one_mpi
@pytest.mark.parametrize("words", [("train", "cartpole", "--out", "run"), ("doctor", "cartpole"), ("simulate",)])
def test_no_mpi_library_takes_one_line(galampi, tmp_path, monkeypatch, words) -> None:
    monkeypatch.chdir(tmp_path)
    command = galampi(*words, ranks=None, env={"MPI4PY_LIBMPI": "/nowhere/libmpi.so"})
    assert_one_line(command, "no MPI library can be loaded", "pip install 'galampi[mpich]'", "/nowhere/libmpi.so")


@pytest.mark.one_mpi
def test_doctor_says_what_is_wrong_and_what_to_do(galampi, small_job) -> None:
    code, output, errors = galampi("doctor", small_job, "--device", "cuda", "--out", "/proc/run").finish()
    assert code == 1, errors
    lines = output.splitlines()
    for wrong in ("speed", "files", "gpu"):
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"failed   {wrong} "))
        assert lines[at + 1].startswith(" " * 22)
    assert lines[-1].endswith(", 3 failed")


@pytest.mark.parametrize(
    ("arguments", "once"), [(["--help"], "usage:"), (["report", "-h"], "usage:"), (["--version"], "galampi ")]
)
def test_help_is_printed_once(galampi, arguments, once) -> None:
    code, out, _ = galampi(*arguments, ranks=3).finish()
    assert code == 0
    assert out.count(once) == 1
