"""Sweeps: every combination of some settings, a folder for each run; trained as one job array, or on this machine.

    SWEEP/jobs/0-Pong-v5_seed-1.toml     the resolved job of run 0; the array's task 0 trains it
    SWEEP/Pong-v5_seed-1/                run 0
    SWEEP/logs/123_0.log                 what it printed as task 0 of Slurm's job 123
    SWEEP/logs/0.log                     what it printed on this machine; locked while its launcher lives
    SWEEP/options.json                   what the last submission asked of Slurm; the next asks the same
    SWEEP/submissions.jsonl              the arrays submitted so far

The job files are the sweep: whoever adds or removes one changes it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from galampi.errors import UnreadableError, UserError
from galampi.job import Job, dump_job
from galampi.launch.status import held, run_status
from galampi.launch.submit import Resources, Submission, cluster_of, log_pattern, number_of, queue_environment
from galampi.results.files import replace_text
from galampi.results.schema import JOB_FILE_NAME

OPTIONS, SUBMISSIONS = "options.json", "submissions.jsonl"
STATES = ("done", "running", "queued", "failed", "stopped", "lost", "missing", "unreadable")
LACKING = ("failed", "stopped", "lost", "missing")
"""States in which a run is trained again when the rest of a sweep is asked for."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


class QueueError(UserError):
    """Slurm does not say what is in its queue."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the arrays of a sweep ask for, the later ones too.

    Attributes:
        resources: What each run asks of Slurm.
        script: Batch file that trains one run; None for requeue.sbatch.
        at_once: Most runs of an array at the same time; None for all.
    """

    resources: Resources = field(default_factory=Resources)
    script: Path | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep.

    Attributes:
        index: Its number in the sweep.
        name: Name of its folder.
        job_file: Its resolved job.
        out: Its folder.
        state: `done`; `running` here or by Slurm, or `queued`; `failed` by itself; `stopped`: saved, and not on
            its way; `lost`: begun, and neither; `missing`: never begun; `unreadable`: its files may not be read.
        log: Where its last job has printed; None if it never began.
        local_log: Where it prints on this machine.
    """

    index: int
    name: str
    job_file: Path
    out: Path
    state: str
    log: Path | None
    local_log: Path


def lay_out(folder: Path, jobs: Mapping[str, Job]) -> None:
    """Write the job files of a sweep; all are there or none.

    Raises:
        UserError: The folder cannot be written, or holds a sweep already.
    """
    # Of a folder that may not be looked into, Path.exists raises.
    if os.path.exists(folder / "job.h5"):
        raise UserError(f"{folder}: holds a run; choose another folder")
    if is_sweep(folder):
        raise UserError(
            f"{folder}: holds a sweep; `submit {folder}` submits what is missing of it, `sweep {folder}` trains it here"
        )
    if os.path.exists(folder / "jobs"):
        raise UserError(f"{folder}: has a `jobs` that is no sweep's; choose another folder")
    part = folder / "jobs.part"
    try:
        # Of a layout that was cut short.
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make_logs(folder)
        for index, (name, job) in enumerate(jobs.items()):
            (part / f"{index}-{name}.toml").write_text(dump_job(job), encoding="utf-8")
        part.rename(folder / "jobs")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def make_logs(folder: Path) -> None:
    """Make the folder of the logs, which somebody may have removed."""
    (folder / "logs").mkdir(exist_ok=True)


def change(folder: Path, jobs: Mapping[str, Job]) -> None:
    """Make a sweep that is laid out one of other jobs: those that both have stay the runs they are.

    Folders of runs that it has no more stay where they are.

    Raises:
        UserError: The folder cannot be written.
    """
    there = {name: (int(number), job_file) for number, job_file, name in _numbered(folder)}
    first_free = max((number for number, _ in there.values()), default=-1) + 1
    numbers = itertools.count(first_free)
    try:
        for name, job in jobs.items():
            index = there[name][0] if name in there else next(numbers)
            replace_text(folder / "jobs" / f"{index}-{name}.toml", dump_job(job))
        for name in there.keys() - jobs.keys():
            there[name][1].unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep."""
    return any(_numbered(folder)) and not (folder / "job.h5").exists()


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the runs of a sweep, in their order; of a run its own; of a sweep's own folders none."""
    if folder.name in ("jobs", "logs", OPTIONS, SUBMISSIONS) and is_sweep(folder.parent):
        # As `SWEEP/*` names them.
        return []
    if not is_sweep(folder):
        return [folder]
    numbered = sorted((int(number), name) for number, _, name in _numbered(folder))
    return [folder / name for _, name in numbered]


def runs_among(given: Sequence[Path]) -> Sequence[Path]:
    """Return what may be a run or a sweep of what is given; files beside them, as logs in `runs/*`, are none."""
    return [path for path in given if path.name == JOB_FILE_NAME or not path.is_file()] or given


def read_sweep(folder: Path) -> list[SweptRun]:
    """Return the runs of a sweep with what became of each.

    Raises:
        QueueError: squeue does not answer.
        UserError: It is not here, or a file of the sweep is damaged.
    """
    recorded = _submissions(folder)
    in_queue = _in_queue(recorded, _users_of(folder)) if recorded else {}
    runs = []
    for number, job_file, name in _numbered(folder):
        index, out = int(number), folder / name
        local_log = folder / "logs" / f"{index}.log"
        tasks = [(number_of(str(line["job_id"])), index - int(str(line["offset"]))) for line in recorded]
        logs = [folder / "logs" / f"{job_id}_{task}.log" for job_id, task in tasks]
        log = max(
            (path for path in (*logs, local_log) if path.exists()), key=lambda path: path.stat().st_mtime, default=None
        )
        on_its_way = in_queue.get(index, "RUNNING" if held(local_log) else None)
        try:
            state = _state(run_status(out), on_its_way, log is not None)
        except UnreadableError:
            state = "unreadable"
        runs.append(SweptRun(index, name, job_file, out, state, log, local_log))
    return sorted(runs, key=lambda run: run.index)


def _numbered(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield number, job file and name of every run of a sweep.

    Raises:
        UnreadableError: The folder may not be read.
    """
    try:
        job_files = list((folder / "jobs").glob("*-*.toml"))
    except OSError as error:
        raise UnreadableError(f"{folder}: cannot be read: {error.strerror}") from None
    for job_file in job_files:
        number, _, name = job_file.stem.partition("-")
        if number.isdigit():
            yield number, job_file, name


def table(runs: Sequence[SweptRun]) -> str:
    """Write the runs as lines of text, and how many are in each state."""
    lines = [
        f"{run.index:>5}  {run.state:<8}  {run.out}"
        + (f"  (its log: {run.log})" if run.log is not None and run.state in ("failed", "lost") else "")
        for run in runs
    ]
    counts = Counter(run.state for run in runs)
    total = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return "\n".join([*lines, f"{len(runs)} runs: {total}"])


def exit_code(runs: Sequence[SweptRun]) -> int:
    """Return 0 if all are done, 1 if one has failed, 2 if one may not be read, else 4."""
    states = {run.state for run in runs}
    if "failed" in states:
        return 1
    if "unreadable" in states:
        return 2
    return 0 if states <= {"done"} else 4


def arrays(
    folder: Path,
    indices: Iterable[int],
    *,
    options: Options,
    script: Path,
    name: str,
    max_index: int,
) -> list[tuple[int, Submission]]:
    """Return the arrays that train some runs of a sweep, each with its offset. Pure.

    Slurm's array indices stay below a limit (MaxArraySize), so a large sweep is several arrays.

    Args:
        folder: The sweep.
        indices: Numbers of the runs.
        options: What each asks for.
        script: sweep.sbatch.
        name: Job's name.
        max_index: Largest index of an array.
    """
    trained_by = () if options.script is None else (str(options.script),)
    by_block: dict[int, list[int]] = {}
    for index in sorted(indices):
        by_block.setdefault(index // (max_index + 1), []).append(index % (max_index + 1))
    return [
        (
            block * (max_index + 1),
            Submission(
                script=script,
                name=name,
                log=f"{log_pattern(folder / 'logs')}/%A_%a.log",
                resources=options.resources,
                arguments=(str(folder), str(block * (max_index + 1)), *trained_by),
                array=_ranges(tasks) + (f"%{options.at_once}" if options.at_once else ""),
            ),
        )
        for block, tasks in by_block.items()
    ]


def record_submission(folder: Path, job_id: str, offset: int) -> None:
    """Remember an array, so that its jobs are found in the queue.

    Args:
        folder: The sweep.
        job_id: What `sbatch` has returned.
        offset: Number of the run that its task 0 trains.
    """
    lines = [*_submissions(folder), {"job_id": job_id, "offset": offset}]
    replace_text(folder / SUBMISSIONS, "".join(f"{json.dumps(line)}\n" for line in lines))


def record_options(folder: Path, options: Options) -> None:
    """Remember what a submission asks for, so that the next asks for the same."""
    script = None if options.script is None else str(options.script)
    text = json.dumps({"resources": asdict(options.resources), "script": script, "at_once": options.at_once})
    replace_text(folder / OPTIONS, text + "\n")


def last_options(folder: Path) -> Options:
    """Return what the last submission of a sweep asked for."""
    path = folder / OPTIONS
    if not path.exists():
        return Options()
    with _told_if_damaged(path):
        recorded = json.loads(path.read_text(encoding="utf-8"))
        script = None if recorded["script"] is None else Path(recorded["script"])
        # JSON has no tuples.
        words = tuple(recorded["resources"].pop("sbatch_options", ()))
        resources = Resources(**recorded["resources"], sbatch_options=words)
        return Options(resources=resources, script=script, at_once=recorded["at_once"])


def max_array_index() -> int:
    """Return the largest index that Slurm takes in an array; 1000 if it does not say."""
    try:
        text = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        text = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) - 1 if found else 1000


def _submissions(folder: Path) -> list[dict[str, object]]:
    path = folder / SUBMISSIONS
    if not path.exists():
        return []
    with _told_if_damaged(path):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{"job_id": str(line["job_id"]), "offset": int(line["offset"])} for line in lines]


@contextmanager
def _told_if_damaged(path: Path) -> Iterator[None]:
    """Say in a line that a file of a sweep is not as it was written."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def _users_of(folder: Path) -> str:
    """Return who may have submitted a sweep: whoever asks, and whoever recorded the last array."""
    # By number: not every user of a container has a name.
    users = {os.getuid()}
    with suppress(OSError):
        users.add((folder / SUBMISSIONS).stat().st_uid)
    return ",".join(map(str, sorted(users)))


def _in_queue(recorded: Sequence[Mapping[str, object]], users: str) -> dict[int, str]:
    """Return Slurm's state of each run that is in the queue."""
    states: dict[int, str] = {}
    for cluster in dict.fromkeys(cluster_of(str(line["job_id"])) for line in recorded):
        there = [f"--clusters={cluster}"] if cluster else []
        try:
            done = subprocess.run(
                # Also in partitions that are hidden from who does not ask.
                ["squeue", *there, "--noheader", "--all", "--array", "--user", users, "--format", "%F %K %T"],
                capture_output=True,
                text=True,
                check=False,
                env=queue_environment(),
            )
        except FileNotFoundError:
            raise UserError("squeue is not here; only Slurm knows which runs wait or run") from None
        if done.returncode:
            raise QueueError(f"squeue refused: {' '.join(done.stderr.split())}")
        own = [line for line in recorded if cluster_of(str(line["job_id"])) == cluster]
        offsets = {number_of(str(line["job_id"])): int(str(line["offset"])) for line in own}
        for line in done.stdout.splitlines():
            job_id, task, state = [*line.split(), "", "", ""][:3]  # A line of fewer words tells clusters apart.
            if job_id in offsets and task.isdigit():
                index = offsets[job_id] + int(task)
                # Of a chain one runs and others wait.
                if index not in states or state not in _WAITING:
                    states[index] = state
    return states


def _state(status: str, on_its_way: str | None, has_log: bool) -> str:
    if status == "finished":
        return "done"
    if on_its_way is not None:
        return "queued" if on_its_way in _WAITING else "running"
    if status == "failed":
        return "failed"
    if status == "missing":
        # Its job began, and came to an end before there was a run.
        return "failed" if has_log else "missing"
    return "stopped" if status in ("stopped", "partial") else "lost"


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers as Slurm does: 0-3,5,7-8."""
    texts = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        texts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(texts)
