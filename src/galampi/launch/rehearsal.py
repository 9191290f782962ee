"""A rehearsal on Slurm: short jobs, each interrupted in one of the ways a cluster has, and what comes of each.

Every job is the user's own, as it would be submitted, but for its length. All wait and run at the same time.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galampi.errors import ResultsError
from galampi.launch.status import run_status
from galampi.launch.submit import Notice, clean_environment, queue_environment
from galampi.results import open_run
from galampi.results.schema import rank_file_name

EVENTS = {
    "limit": "notice of the time limit",
    "preemption": "notice of a preemption",
    "cancel": "scancel",
    "requeue": "scontrol requeue",
    "kill": "a rank is killed",
}
"""What happens to each job, by the name of its folder."""
LENGTH_MIN = 10
"""Minutes a job has before the notice of its own time limit."""
OVERRIDES = {"total_env_steps": str(10**12), "checkpoint.every_updates": "20"}
"""A job that does not end by itself, and has a checkpoint soon."""

_PERIOD_S = 1.0
_PATIENCE_S = 90.0
_MOST_CANCELS = 60
_ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
# A process of python that has the folder of the run among its words is a rank.
_KILL_A_RANK = """
for file in $(grep -lzxF -e "$0" /proc/[0-9]*/cmdline 2>/dev/null); do
    process=$(dirname "$file")
    if [[ $(readlink "$process/exe") == *python* ]]; then rank=${process#/proc/}; fi
done
kill -KILL "$rank"
"""


@dataclass
class Rehearsed:
    """One job of a rehearsal.

    Attributes:
        event: What is to happen to it, a key of `EVENTS`.
        out: Folder of its run.
        job_ids: Numbers of its jobs: one that goes back to the queue, or those of a chain.
        begun_s: When it was first seen to run.
        sent_s: When it was interrupted.
        saved_s: When its run was first seen to be saved.
        outcome: What came of it; None while that is open.
        goes_on: Whether it came back.
    """

    event: str
    out: Path
    job_ids: list[str]
    begun_s: float | None = None
    sent_s: float | None = None
    saved_s: float | None = None
    outcome: str | None = None
    goes_on: bool = False


def watch(jobs: Sequence[Rehearsed], notice: Notice) -> bool:
    """Interrupt each job once it trains, print what comes of it, and cancel all in the end.

    Args:
        jobs: The jobs, submitted.
        notice: What Slurm sends before their time limit.

    Returns:
        Whether every run would have gone on.
    """
    try:
        while any(job.outcome is None for job in jobs):
            states = _states([job_id for job in jobs for job_id in job.job_ids])
            for job in jobs:
                if states is not None and job.outcome is None:
                    # What Slurm has forgotten has ended.
                    _look(job, [states.get(job_id, "COMPLETED") for job_id in job.job_ids], notice)
                    if job.outcome is not None:
                        verdict = "ok" if job.goes_on else "FAILED"
                        print(f"  {EVENTS[job.event]:<24}  {verdict:<6}  {job.outcome}", flush=True)
            time.sleep(_PERIOD_S)
    finally:
        cancel([job_id for job in jobs for job_id in job.job_ids])
    return all(job.goes_on for job in jobs)


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs for good: by KILL, for one that is told only would save and come back."""
    if not job_ids:
        return
    left = list(job_ids)
    for _ in range(_MOST_CANCELS):
        # One that was on its way back to the queue is there again after the first time.
        states = _states(job_ids)
        if states is not None:
            left = [job_id for job_id, state in states.items() if state not in _ENDED]
        if not left:
            return
        for signal in (["--full", "--signal=KILL"], []):
            subprocess.run(["scancel", "--quiet", *signal, *left], check=False, capture_output=True)
        time.sleep(_PERIOD_S)
    print(f"still in the queue: {' '.join(left)}; scancel them", flush=True)


def _look(job: Rehearsed, states: Sequence[str], notice: Notice) -> None:
    """Take a job a step further: interrupt it, or see what has come of that."""
    now_s = time.monotonic()
    if job.begun_s is None:
        if any(state != "PENDING" for state in states):
            job.begun_s = now_s
    elif job.sent_s is None:
        if states[0] in _ENDED:
            job.outcome = f"its job ended before it had trained: {states[0]}"
        elif _has_checkpoints(job.out):
            job.sent_s = now_s
            refused = _interrupt(job, notice)
            if refused:
                job.outcome = refused
        elif now_s - job.begun_s > LENGTH_MIN * 60:
            job.outcome = "has not trained"
    else:
        _see_what_came(job, states, now_s)


def _see_what_came(job: Rehearsed, states: Sequence[str], now_s: float) -> None:
    assert job.sent_s is not None
    status = run_status(job.out)
    if job.saved_s is None and status in ("stopped", "partial"):
        job.saved_s = now_s
    saved = (
        f"saved in {job.saved_s - job.sent_s:.0f} s" if job.saved_s is not None else "not saved since its checkpoint"
    )
    restart = _restart(job.out)
    is_over = now_s - job.sent_s > _PATIENCE_S
    if restart is not None:
        job.outcome, job.goes_on = f"{saved}; went on from update {restart}", True
    elif is_over and "PENDING" in states:
        job.outcome, job.goes_on = f"{saved}; waits in the queue to go on", True
    elif is_over or all(state in _ENDED for state in states):
        job.outcome = f"{saved}; did not go on: its run is {status}, its job {states[-1]}"


def _interrupt(job: Rehearsed, notice: Notice) -> str:
    """Let it happen to the first of a run's jobs; return why it could not, or ''."""
    job_id = job.job_ids[0]
    command = {
        "limit": ["scancel", *(["--batch"] if notice.to_batch else []), f"--signal={notice.signal}", job_id],
        "preemption": ["scancel", "--full", f"--signal={notice.signal}", job_id],
        "cancel": ["scancel", job_id],
        "requeue": ["scontrol", "requeue", job_id],
        "kill": [
            *("srun", f"--jobid={job_id}", "--overlap", "--nodes=1", "--ntasks=1", "--mpi=none"),
            *("bash", "-c", _KILL_A_RANK, str(job.out)),
        ],
    }[job.event]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    # The job may be gone before srun has heard of its step's end.
    return "" if done.returncode == 0 or job.event == "kill" else f"refused: {' '.join(done.stderr.split())}"


def _states(job_ids: Sequence[str]) -> dict[str, str] | None:
    """Return Slurm's state of each job it still knows of; None while it does not answer."""
    done = subprocess.run(
        ["squeue", "--noheader", "--all", "--states=all", f"--jobs={','.join(job_ids)}", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=False,
        env=queue_environment(),
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    # Of several clusters it names each before its jobs.
    lines = (line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("CLUSTER:"))
    return {words[0]: words[1] for words in lines if len(words) == 2}


def _has_checkpoints(out: Path) -> bool:
    """Whether every rank of a run has saved while it trained."""
    try:
        num_ranks = int(open_run(out).attributes["num_ranks"]) if (out / "job.h5").exists() else 0
    except ResultsError:
        return False
    # The first is saved before training begins; by the second it is the one before the newest.
    return num_ranks > 0 and all(
        (out / "checkpoint" / "previous" / rank_file_name(rank)).exists() for rank in range(num_ranks)
    )


def _restart(out: Path) -> int | None:
    """Return the update from which a run has gone on; None if it has not."""
    try:
        run = open_run(out)
        return int(run.ranks[0].restarts["update"][0]) if int(run.attributes["num_restarts"]) else None
    except (ResultsError, IndexError):
        return None
