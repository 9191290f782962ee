"""What Slurm does to jobs, and what becomes of their runs.

All interruptions happen at the same time, to jobs of their own, for they mostly wait; each test looks at one of them.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from launching import assert_sound

from galampi.results import open_run

# Slow enough to be interrupted; a stretch after that has no delay (slow_env.py).
JOB = """
name = "interrupted"
precision = "float32"
total_env_steps = 4000
[environment]
id = "slow_env:Slow-v0"
num_envs = 4
[checkpoint]
every_updates = 5
[record]
sketch_size = 64
"""
EVENTS = ("limit", "cancel", "requeue", "preempt", "preempt-notice", "node")
LIKELY = [("srun", 1)]
LIKELY_EVENTS = ("preempt-notice", "node")
# Nodes by event and number: the last of them is preempted or killed, and only under its lock, so that nobody else's job
# is there. n1 and n2 stay as they are.
NODES = {("preempt", 1): ("n3",), ("preempt", 2): ("n1", "n4"), ("node", 1): ("n5",), ("node", 2): ("n2", "n6")}
victims = {nodes[-1]: threading.Lock() for nodes in NODES.values()}
# Whether Slurm gives notice of a preemption is one setting for all.
notice = threading.Lock()


def interrupt(cluster, event: str, num_nodes: int, launcher: str, folder: Path) -> dict[str, str]:
    """Submit a job, interrupt it, wait for its end; return what Slurm says of it then."""
    nodes = NODES.get((event.removesuffix("-notice"), num_nodes), ("n1", "n2")[:num_nodes])
    with victims.get(nodes[-1], nullcontext()):
        return interrupt_on(cluster, event, nodes, launcher, folder)


def interrupt_on(cluster, event: str, nodes: tuple[str, ...], launcher: str, folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(JOB)
    out = folder / "run"
    job_id = cluster.submit(
        folder / "job.toml",
        *("--out", out, "--launcher", launcher, "--nodelist", ",".join(nodes)),
        *("--nodes", len(nodes), "--ntasks-per-node", 2 // len(nodes), "--partition", "low"),
        # Slurm looks every 30 s and sends a notice up to 30 s early: this one comes 20 to 50 s after the start.
        *("--time", 1 if event == "limit" else 10, "--notice-s", 10),
    )
    cluster.wait_for(lambda: len(list((out / "checkpoint").glob("rank-*.h5"))) == 2, 100)
    if event == "cancel":
        cluster.call("scancel", job_id)
    elif event == "requeue":
        cluster.call("scontrol", "requeue", job_id)
    elif event.startswith("preempt"):
        with notice:
            cluster.control("notice", "on" if event == "preempt-notice" else "off")
            cluster.call(
                *("sbatch", "--partition=high", "--exclusive", f"--nodelist={nodes[-1]}", "--output=/dev/null"),
                *("--wrap", "true"),
            )
            cluster.wait_for(lambda: restarts(cluster, job_id) or "T" in cluster.job(job_id).get("PreemptTime", ""), 60)
    elif event == "node":
        cluster.control("node", nodes[-1], "kill")
        cluster.wait_for(lambda: restarts(cluster, job_id), 90)
        cluster.control("node", nodes[-1], "start")
    cluster.wait_for(lambda: restarts(cluster, job_id), 90)
    cluster.wait_for_end(job_id)
    return cluster.job(job_id)


def restarts(cluster, job_id: str) -> int:
    return int(cluster.job(job_id)["Restarts"])


@pytest.fixture(scope="module")
def interruptions(cluster, request: pytest.FixtureRequest, tmp_path_factory) -> dict[tuple, tuple[Path, Future]]:
    """Start the interruption of every selected test."""
    cases = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.module is request.module and "case" in item.callspec.params
    ]
    folder = tmp_path_factory.mktemp("interruptions")
    pool = ThreadPoolExecutor(6)
    begun = {}
    for case in sorted(cases, key=lambda case: case[0] != "limit"):
        place = folder / "-".join(map(str, case))
        begun[case] = (place, pool.submit(interrupt, cluster, *case, place))
    yield begun
    pool.shutdown(cancel_futures=True)


def test_a_run_goes_on_to_its_end(interruptions, case) -> None:
    folder, ended = interruptions[case]
    job = ended.result(300)
    log = "".join(path.read_text() for path in folder.glob("*.log"))
    assert job["JobState"] == "COMPLETED", log
    assert job["ExitCode"] == "0:0"
    assert_sound(folder / "run", num_ranks=2, status="finished")
    run = open_run(folder / "run")
    assert sum(int(rank.updates["env_steps"][-1]) for rank in run.ranks) >= 4000
    for rank in run.ranks:
        # Slurm's pmi2 and MPICH now and then fail to start; then the job comes back once more, the run does not.
        assert len(rank.restarts["restart"]) == 1, log
        assert int(job["Restarts"]) in (1, 2), log
        assert rank.restarts["update"][0] >= 5
        print(case, rank.restarts["reason"][0])
