"""Batch files and commands on a real Slurm."""

import json
import re
from pathlib import Path

import pytest
from launching import assert_sound
from libraries import LAUNCHER, srun_type, windows_between_nodes

from galampi.cli import run as run_command
from galampi.errors import UserError
from galampi.results import open_run

SLURM = Path(__file__).parents[2] / "slurm"
JOB = """
name = {name}
precision = "float32"
total_env_steps = 600
[environment]
id = "CartPole-v1"
num_envs = 4
[checkpoint]
every_updates = 10
[record]
sketch_size = 64
"""


@pytest.fixture
def job(tmp_path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(name='"small"'))
    return path


def log_of(cluster, job_id: str) -> str:
    return Path(cluster.job(job_id)["StdOut"]).read_text()


@pytest.mark.one_mpi
# A third of two at once waits for a scheduler that looks once a minute.
@pytest.mark.parametrize("num_runs", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_sweep_from_submission_to_report(cluster, job, launchers, tmp_path, num_runs) -> None:
    folder = tmp_path / "sweep"
    job_id = cluster.submit(
        *(job, "--out", folder, "--array-seeds", num_runs, "--sweep", "gossip.method=push-sum", "--at-once", 2),
        *("--ntasks-per-node", 1, "--nodelist", "n7", "--launcher", launchers[0]),
    )
    assert f"{num_runs} queued" in (text := cluster.galampi("status", folder, code=4)) or "running" in text
    # While all are on their way, nothing is missing.
    assert "nothing to submit" in cluster.galampi("submit", folder)
    for task in range(num_runs):
        assert cluster.wait_for_end(f"{job_id}_{task}") == "COMPLETED"
    assert f"{num_runs} runs: {num_runs} done" in cluster.galampi("status", folder)
    runs = sorted(folder.glob("method-push-sum_seed-*"))
    assert len(runs) == num_runs
    seeds = {re.search(r"^seed = (\d+)", open_run(run).job_toml, re.MULTILINE)[1] for run in runs}
    assert seeds == set("123"[:num_runs])

    # A run that is lost is submitted again, and no other.
    for path in sorted(runs[1].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    runs[1].rmdir()
    printed = cluster.galampi("submit", folder)
    assert "--array=1%2 " in printed
    job_id = re.search(r"^submitted job (\d+);", printed, re.MULTILINE)[1]
    assert cluster.wait_for_end(f"{job_id}_1") == "COMPLETED"
    assert f"{num_runs} done" in cluster.galampi("status", folder)
    try:
        run_command(["report", "--help"])
    except UserError:
        pytest.skip("there is no report yet")
    except SystemExit:
        pass
    cluster.galampi("report", *runs, "--out", tmp_path / "report")


@pytest.mark.one_mpi
def test_hostile_names_arrive_as_they_are(cluster, launchers, tmp_path, monkeypatch) -> None:
    name = "$(touch owned) `touch owned`; touch owned 'a' --wrap=x,y"
    folder = tmp_path / "with space and 'quote' $(touch owned) 100%j"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my job.toml").write_text(JOB.format(name=json.dumps(name)))
    out = folder / f"run {name.replace('/', '')}"
    job_id = cluster.submit(
        *("my job.toml", "--out", out, "--ntasks-per-node", 1, "--nodelist", "n8", "--launcher", launchers[0]),
    )
    assert cluster.call("squeue", "--noheader", "--states=all", "--format=%j", "--jobs", job_id).strip() == name
    assert cluster.wait_for_end(job_id) == "COMPLETED"
    assert_sound(out, num_ranks=1, status="finished")
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.one_mpi
def test_sbatch_refuses(cluster, job, tmp_path) -> None:
    said = cluster.galampi("submit", job, "--out", tmp_path / "run", "--partition", "nowhere", code=2)
    assert said.splitlines()[-1].startswith("galampi: sbatch refused: ")
    assert "invalid partition" in said


def test_what_fails_is_not_reported_as_done(cluster, job, launchers, tmp_path) -> None:
    job_id = cluster.submit(
        *(job, "--out", tmp_path / "run", "--ntasks-per-node", 1, "--nodelist", "n7", "--launcher", launchers[0]),
        *("--environment.id", "no-such-game-v0"),
    )
    assert cluster.wait_for_end(job_id) == "FAILED"
    assert cluster.job(job_id)["ExitCode"] == "2:0"
    assert cluster.job(job_id)["Restarts"] == "0"
    assert "failed with exit code 2" in log_of(cluster, job_id)


@pytest.mark.slow
def test_what_breaks_is_not_begun_again(cluster, job, launchers, tmp_path) -> None:
    """An error of the program, with a run to go on with: it would break again."""
    run = tmp_path / "run"
    job_id = cluster.submit(
        *(job, "--out", run, "--ntasks-per-node", 2, "--nodelist", "n8", "--launcher", launchers[0]),
        *("--environment.id", "faulty_env:Faulty-v0", "--total_env_steps", 10_000_000),
    )
    assert cluster.wait_for_end(job_id) == "FAILED"
    assert cluster.job(job_id)["Restarts"] == "0"
    assert "ZeroDivisionError: the simulator broke" in log_of(cluster, job_id)
    assert ": failed" in cluster.galampi("status", run, code=1)


@pytest.mark.one_mpi
@pytest.mark.parametrize("bound", [0, 1])
@pytest.mark.slow
def test_restarts_are_bounded(cluster, launchers, tmp_path, bound) -> None:
    run, job = tmp_path / "run", tmp_path / "job.toml"
    job.write_text(JOB.format(name='"slow"').replace("CartPole-v1", "slow_env:Slow-v0"))
    job_id = cluster.submit(
        *(job, "--out", run, "--ntasks-per-node", 1, "--nodelist", "n8", "--launcher", launchers[0]),
        *("--max-restarts", bound, "--total_env_steps", 100_000_000),
    )
    for restart in range(bound + 1):
        cluster.wait_for((run / "job.h5").exists)
        cluster.wait_for(lambda restart=restart: open_run(run).attributes["num_restarts"] == restart)
        cluster.call("scancel", "--batch", "--signal=USR1", job_id)
    assert cluster.wait_for_end(job_id) == "FAILED"
    assert cluster.job(job_id)["ExitCode"] == "3:0"
    assert cluster.job(job_id)["Restarts"] == str(bound)
    assert f"restart {bound} of at most {bound}: given up" in log_of(cluster, job_id)
    cluster.galampi("status", run, code=open_run(run).status == "stopped" and 3)


@pytest.mark.one_mpi
@pytest.mark.slow
def test_a_task_of_an_array_goes_back_to_the_queue_alone(cluster, launchers, tmp_path, monkeypatch) -> None:
    job = tmp_path / "game.toml"
    job.write_text(JOB.format(name='"slow"').replace("CartPole-v1", "slow_env:Slow-v0"))
    monkeypatch.chdir(SLURM.parent)
    array = cluster.call(
        *("sbatch", "--parsable", "--array=0-1", "--ntasks-per-node=1", "--nodelist=n7", "--output=/dev/null"),
        *(f"--export=ALL,GALAMPI_LAUNCHER={launchers[0]}", "slurm/array.sbatch", 2, tmp_path / "runs", job),
    ).strip()
    runs = [tmp_path / f"runs/game_seed-{seed}" for seed in (1, 2)]
    cluster.wait_for(lambda: all((run / "checkpoint/previous/rank-0000.h5").exists() for run in runs))
    # Slurm gives the array's own number to one of its tasks, and takes it for all of them.
    first = next(task for task in (0, 1) if cluster.job(f"{array}_{task}")["JobId"] == array)
    cluster.call("scancel", "--batch", "--signal=USR1", f"{array}_{first}")
    for task in (0, 1):
        assert cluster.wait_for_end(f"{array}_{task}") == "COMPLETED"
    assert cluster.job(f"{array}_{first}")["Restarts"] == "1"
    assert cluster.job(f"{array}_{1 - first}")["Restarts"] == "0"
    for run in runs:
        assert_sound(run, num_ranks=1, status="finished")


def test_batch_files_run_as_they_are(cluster, job, launchers, tmp_path, monkeypatch) -> None:
    names, told = ["plain", "mpirun", "requeue", "preempt"], []
    if "srun" not in launchers:
        # They start with srun unless told otherwise; plain.sbatch knows nothing else.
        names, told = names[1:], ["--export=ALL,GALAMPI_LAUNCHER=mpirun"]
    job_ids = []
    for name in names:
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("slurm").symlink_to(SLURM)
        call = ("sbatch", "--parsable", "--nodelist=n7", *told, f"slurm/{name}.sbatch", job)
        job_ids.append(cluster.call(*call).strip())
    for name, job_id in zip(names, job_ids, strict=True):
        assert cluster.wait_for_end(job_id) == "COMPLETED", log_of(cluster, job_id)
        (out,) = (tmp_path / name / "runs").iterdir()
        assert_sound(out, num_ranks=2, status="finished")


@pytest.mark.one_mpi
def test_slurm_gets_what_was_asked_for(cluster, job, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "show.sbatch"
    script.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"; env | grep ^GALAMPI_\n")
    asked = [
        *("submit", job, "--out", "runs/a", "--seed", 7, "--script", script, "--nodes", 1, "--ntasks-per-node", 2),
        *("--cpus-per-task", 3, "--time", "00:07:00", "--partition", "low", "--account", "lab", "--gpus", 1),
        *("--nodelist", "n8", "--launcher", "mpirun", "--mpi", "pmix", "--save-signal", "USR2", "--max-restarts", 4),
        *("--notice-s", 30),
    ]
    dry = cluster.galampi(*asked, "--dry-run")
    assert not (tmp_path / "runs").exists()
    printed = cluster.galampi(*asked)
    assert printed.startswith(dry)
    job_id = re.search(rf"^submitted job (\d+); its run will be {tmp_path}/runs/a$", printed, re.MULTILINE)[1]
    assert cluster.wait_for_end(job_id) == "COMPLETED"
    found = cluster.job(job_id)
    assert (found["NumNodes"], found["NumTasks"], found["CPUs/Task"]) == ("1", "2", "3")
    assert (found["TimeLimit"], found["Partition"], found["Account"]) == ("00:07:00", "low", "lab")
    assert found["TresPerNode"] == "gres:gpu:1"
    lines = log_of(cluster, job_id).splitlines()
    # What was checked is what runs, whatever becomes of the job file meanwhile.
    submitted = tmp_path / "runs/a/submitted.toml"
    assert lines[:2] == [str(submitted), str(tmp_path / "runs/a")]
    assert "seed = 7" in submitted.read_text()
    settings = {"LAUNCHER": "mpirun", "MPI": "pmix", "SIGNAL": "USR2", "MAX_RESTARTS": "4"}
    assert {f"GALAMPI_{name}={value}" for name, value in settings.items()} <= set(lines[2:])


@pytest.mark.one_mpi
def test_mps_says_that_it_is_not_available(cluster, job, tmp_path, monkeypatch) -> None:
    """All that can be tried without an NVIDIA GPU: what it asks of Slurm, and what it says then."""
    monkeypatch.chdir(tmp_path)
    size = ("--nodelist=n8", "--ntasks-per-node=2", "--cpus-per-task=1")
    job_id = cluster.call("sbatch", "--parsable", *size, SLURM / "mps.sbatch", job).strip()
    assert cluster.wait_for_end(job_id) == "FAILED"
    assert "gpu:1" in cluster.job(job_id)["TresPerNode"]
    assert "MPS is not available" in log_of(cluster, job_id)


@pytest.mark.library("doctor", launcher=LAUNCHER)
@pytest.mark.slow
def test_doctor_finds_nothing_wrong(cluster, job, launchers, tmp_path) -> None:
    launch = {
        "srun": ("srun", f"--mpi={srun_type()}", "--nodes=3", "--ntasks=3", "--nodelist=n1,n7,n8", "--time=3"),
        "mpirun": ("mpirun", "-n", "3"),
    }[launchers[0]]
    command = (*launch, "python", "-m", "galampi", "doctor", job, "--out", tmp_path / "new" / "run", "--json")
    for is_last in (False, False, True):
        try:
            said = cluster.call(*command)
            break
        except AssertionError as error:
            # Between nodes the start by pmi2 fails or hangs now and then, in Slurm's reading of a request.
            if is_last or ("mpi/pmi2: " not in str(error) and "TIME LIMIT" not in str(error)):
                raise
    findings = json.loads(next(line for line in said.splitlines() if line.startswith("[{")))
    assert not [finding for finding in findings if finding["state"] == "failed"]
    by_check = {finding["check"]: finding for finding in findings}
    assert by_check.keys() == {
        *("mpi", "ranks", "binding", "singleton", "speed", "window", "leftovers", "network", "clocks", "files", "gpu"),
        *("energy", "messages"),
    }
    pairs = by_check["network"]["figures"]["pairs"]
    assert len(pairs) == (3 if launchers[0] == "srun" else 1)
    assert all(pair["put_bytes_per_s"] > 0 and pair["latency_s"] > 0 for pair in pairs)
    # Under srun nodes of one machine are as far apart as others, under mpirun they are one.
    of_open_mpi = "osc/rdma" if srun_type() == "pmix" and launchers[0] == "srun" else "osc/sm"
    of_open_mpi = "osc/pt2pt" if of_open_mpi == "osc/rdma" and windows_between_nodes() else of_open_mpi
    carrier = by_check["messages"]["figures"]["carrier"]
    assert carrier.startswith("ch4:") if srun_type() == "pmi2" else of_open_mpi in carrier
    assert not list(tmp_path.rglob("*doctor*"))


def test_doctor_names_a_wrong_mpi(cluster, job) -> None:
    speaks, wrong_types = ("pmi2", ["none"]) if srun_type() == "pmi2" else ("pmix", ["none", "pmi2"])
    for wrong in wrong_types:
        said = cluster.call(
            *("srun", f"--mpi={wrong}", "--ntasks=2", "--nodelist=n7", "python", "-m", "galampi", "doctor", job),
            code=1,
        )
        assert said.count("failed   launch") == 1, said
        assert " is 2, yet MPI sees 1 rank: the launcher does not belong to the MPI library in use" in said
        assert f"srun used --mpi={wrong}; under srun use --mpi={speaks}" in said


@pytest.mark.one_mpi
def test_a_rehearsal_says_what_comes_of_every_event(cluster, job, launchers, tmp_path, request) -> None:
    if not request.config.getoption("--every-event"):
        pytest.skip("takes minutes: with --every-event")
    said = cluster.galampi(
        *("submit", job, "--rehearse", "--ntasks-per-node", 1, "--nodes", 1, "--launcher", launchers[0]),
        *("--out", tmp_path / "rehearsal"),
    )
    lines = [line for line in said.splitlines() if line.startswith("  ")]
    assert len(lines) == 5, said
    assert all(" ok " in line for line in lines), said
    assert not cluster.call("squeue", "--noheader").strip()
