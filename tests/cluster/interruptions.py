"""What Slurm does to jobs: each way on a job of its own, on nodes where it disturbs no other."""

import threading
from contextlib import nullcontext
from pathlib import Path

import psutil

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
EVENTS = ("limit", "cancel", "requeue", "preempt", "preempt-notice", "node", "launcher")
# Every event, and every launcher on one node and on two, at least once.
LIKELY = {
    ("limit", 1, "srun"),
    ("cancel", 2, "srun"),
    ("preempt", 1, "srun"),
    ("node", 2, "srun"),
    ("launcher", 1, "srun"),
    ("limit", 1, "mpirun"),
    ("cancel", 1, "mpirun"),
    ("requeue", 1, "mpirun"),
    ("preempt-notice", 2, "mpirun"),
    ("node", 1, "mpirun"),
    ("launcher", 2, "mpirun"),
}
# Those of them that are not marked slow; none that lets the controller read its settings again, when it answers nobody.
QUICK = {("limit", 1, "srun"), ("launcher", 2, "mpirun"), ("requeue", 1, "mpirun"), ("node", 1, "mpirun")}
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
        *("--time", 10, "--notice-s", 170, "--save-signal", "USR2" if event == "limit" else "USR1"),
    )
    # Saved once while it trained; before that is the checkpoint that a run begins with.
    cluster.wait_for(lambda: len(list((out / "checkpoint/previous").glob("rank-*.h5"))) == 2)
    if event == "limit":
        # The notice is due at once, the limit in two or three minutes. Slurm looks every 30 s.
        cluster.call("scontrol", "update", f"JobId={job_id}", "TimeLimit=3")
    elif event == "cancel":
        cluster.call("scancel", job_id)
    elif event == "requeue":
        cluster.call("scontrol", "requeue", job_id)
    elif event == "launcher":
        launcher_of(cluster, job_id, launcher).kill()
    elif event.startswith("preempt"):
        with notice:
            cluster.control("notice", "on" if event == "preempt-notice" else "off")
            cluster.call(
                *("sbatch", "--partition=high", "--exclusive", f"--nodelist={nodes[-1]}", "--output=/dev/null"),
                *("--wrap", "true"),
            )
            cluster.wait_for(lambda: restarts(cluster, job_id) or "T" in cluster.job(job_id).get("PreemptTime", ""))
    else:
        cluster.control("node", nodes[-1], "kill")
        cluster.wait_for(lambda: restarts(cluster, job_id))
        cluster.control("node", nodes[-1], "start")
    cluster.wait_for(lambda: restarts(cluster, job_id))
    if event == "limit":
        cluster.call("scontrol", "update", f"JobId={job_id}", "TimeLimit=10")
    cluster.wait_for_end(job_id)
    # Nobody is left behind, neither on a node that lives on nor of a stretch before the last.
    cluster.wait_for(lambda: not cluster.processes(job_id))
    return cluster.job(job_id)


def launcher_of(cluster, job_id: str, launcher: str) -> psutil.Process:
    """Return the process that the batch file has started: srun has a child of its name, mpirun may have an srun."""
    # Open MPI's mpirun becomes prterun.
    names = {launcher, "prterun"}
    found = {process.pid: process for process in cluster.processes(job_id) if process.name() in names}
    (first,) = (process for process in found.values() if process.ppid() not in found)
    return first


def restarts(cluster, job_id: str) -> int:
    return int(cluster.job(job_id)["Restarts"])
