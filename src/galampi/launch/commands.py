"""What `submit` and `status` do with their arguments, and what they print."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from galampi.errors import UnreadableError, UserError
from galampi.job import find_modules, load_job
from galampi.launch import rehearsal, status, sweep
from galampi.launch.axes import combinations, parse_axes
from galampi.launch.folder import job_to_train, lay_down
from galampi.launch.status import SUBMITTED
from galampi.launch.submit import (
    Resources,
    Submission,
    UnansweredError,
    as_typed,
    batch_file,
    cluster_of,
    how_to_watch,
    log_of,
    log_pattern,
    notice_of,
    number_of,
    refuse_short_stretches,
    sbatch,
    sbatch_arguments,
    slug,
)
from galampi.results import new_folder
from galampi.results.schema import JOB_FILE_NAME


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `submit`. Paths are absolute: neither the job nor the next submission need be in this folder.

    Attributes:
        job: Job file, or the folder of a sweep.
        overrides: Settings over those of the file.
        out: Folder of the run or of the sweep; None for one named after the job and the time.
        script: Batch file that trains the run, or each of a sweep; None for requeue.sbatch.
        resources: Fields of `Resources` that were given.
        sweeps: `key=a,b,c` texts.
        num_seeds: Sweep over this many seeds; None for the job's own.
        at_once: Most runs of a sweep at the same time; None for all.
        dry_run: Print, and do nothing.
        rehearse: Submit short jobs that are interrupted in every way, and say what comes of each.
    """

    job: Path
    overrides: Mapping[str, str]
    out: Path | None
    script: Path | None
    resources: Mapping[str, Any]
    sweeps: Sequence[str]
    num_seeds: int | None
    at_once: int | None
    dry_run: bool
    rehearse: bool


def submit(request: Request) -> int:
    """Submit a run, a sweep, or what a sweep lacks; return the exit code.

    Raises:
        UserError: The request or the job is not allowed, or Slurm refuses.
    """
    if request.rehearse:
        return _rehearse(request)
    if os.path.isdir(request.job):  # False of what may not be looked at, where Path.is_dir raises.
        return _submit_rest_of_sweep(request)
    if request.sweeps or request.num_seeds is not None:
        return _submit_new_sweep(request)
    script, resources = _script_of(request) or batch_file("requeue.sbatch"), Resources(**request.resources)
    refuse_short_stretches(script, resources)
    # Read here, so that a mistake shows before the wait.
    job = load_job(request.job, request.overrides)
    out = _folder_of(request, job.name)
    job = job_to_train(job, request.job, request.overrides, out)
    find_modules(job)
    is_new = request.out is None or not out.exists()
    waiting = set(out.glob(SUBMITTED))
    job_file = lay_down(job, out, dry_run=request.dry_run)
    submission = Submission(
        script=script,
        name=job.name,
        log=f"{log_pattern(out.parent)}/{slug(out.name)}-%j.log",
        resources=resources,
        arguments=[
            str(job_file),
            str(out),
            *(word for key, value in request.overrides.items() for word in (f"--{key}", value)),
        ],
    )
    job_ids: list[str] = []
    try:
        for job_id in _submit(submission, dry_run=request.dry_run):
            job_ids.append(job_id)
    except UnansweredError:
        raise  # The job may be there, and read its file.
    except UserError:
        if not job_ids and job_file not in waiting:
            job_file.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    out.rmdir()  # If nothing else lies there.
        raise
    if job_ids:
        print(how_to_watch(job_ids, out, log_of(submission)))
    return 0


def status_of(folders: Sequence[Path], *, failed: bool) -> tuple[str, int]:
    """Return what to print of what became of runs and sweeps, and the exit code.

    Args:
        folders: Folders of runs and of sweeps.
        failed: First record that the job of each run has failed.

    Raises:
        UserError: Slurm does not say what is in its queue.
    """
    lines, code = [], 0
    for given in sweep.runs_among(folders):
        folder = given.parent if given.name == JOB_FILE_NAME else given
        try:
            if sweep.is_sweep(folder):
                runs = sweep.read_sweep(folder)
                lines.append(sweep.table(runs))
                code = max(code, sweep.exit_code(runs))
            elif sweep.run_folders(folder):  # None for what else lies in a sweep, as `SWEEP/*` names it.
                if failed:
                    status.mark_failed(folder)
                lines.append(status.describe(folder))
                code = max(code, status.EXIT_CODES[status.run_status(folder)])
        except UnreadableError as error:
            lines.append(str(error))
            code = max(code, status.EXIT_CODES["missing"])
    return "\n".join(lines), code


def _submit(submission: Submission, *, dry_run: bool) -> Iterator[str]:
    """Print and submit a job, or all of a chain; yield the number of each, none of a dry run."""
    before: str | None = None
    for stretch in range(1, (submission.resources.chain or 1) + 1):
        call = sbatch_arguments(replace(submission, stretch=stretch, after=before))
        print(as_typed(call))
        if dry_run:
            before = "PREVIOUS"
            continue
        try:
            job_id = sbatch(call)
        except UserError as error:
            raise type(error)(f"{error}{f'; {before} is the last of the chain' if before else ''}") from None
        before = number_of(job_id)
        yield job_id


def _rehearse(request: Request) -> int:
    """Submit a short job for each way to interrupt it, and return 0 if every run went on."""
    if request.job.is_dir() or request.sweeps or request.num_seeds is not None:
        raise UserError("--rehearse is of one run: give a job file, and no --sweep")
    script, resources = _script_of(request) or batch_file("requeue.sbatch"), Resources(**request.resources)
    notice = notice_of(script, resources)
    resources = replace(
        resources,
        time=str(rehearsal.LENGTH_MIN + -(-notice.before_s // 60)),
        chain=2 if resources.chain is not None else None,
    )
    job = load_job(request.job, {**request.overrides, **rehearsal.OVERRIDES})
    out = _folder_of(request, f"{job.name}-rehearsal")
    if there := next((out / event for event in rehearsal.EVENTS if (out / event / "job.h5").exists()), None):
        raise UserError(
            f"{there}: holds the run of an earlier rehearsal, which would pass for this; give another --out"
        )
    jobs: list[rehearsal.Rehearsed] = []
    try:
        for event in rehearsal.EVENTS:
            if event == "requeue" and resources.chain is not None:
                continue
            folder = out / event
            submission = Submission(
                script=script,
                name=job.name,
                log=f"{log_pattern(out)}/{event}-%j.log",
                resources=resources,
                arguments=[
                    str(lay_down(job_to_train(job, request.job, {}, folder), folder, dry_run=request.dry_run)),
                    str(folder),
                ],
            )
            rehearsed = rehearsal.Rehearsed(event, folder, [])
            jobs.append(rehearsed)
            for job_id in _submit(submission, dry_run=request.dry_run):
                rehearsed.job_ids.append(number_of(job_id))
                if cluster_of(job_id):
                    os.environ["SLURM_CLUSTERS"] = cluster_of(job_id)  # Which all commands of Slurm heed.
    except BaseException:
        rehearsal.cancel([job_id for each in jobs for job_id in each.job_ids])
        raise
    if request.dry_run:
        return 0
    print(f"each job is interrupted as soon as it trains; runs and logs will be in {out}", flush=True)
    return 0 if rehearsal.watch(jobs, notice) else 1


def _submit_new_sweep(request: Request) -> int:
    job = load_job(request.job, request.overrides)
    axes = parse_axes(request.sweeps, request.num_seeds, job.seed)
    jobs = combinations(request.job, request.overrides, axes)
    options = _options_of(request, sweep.Options())
    folder = _folder_of(request, job.name)
    if not request.dry_run:
        sweep.lay_out(folder, jobs)
    return _submit_arrays(folder, range(len(jobs)), options, job.name, dry_run=request.dry_run)


def _submit_rest_of_sweep(request: Request) -> int:
    folder = request.job
    if not sweep.is_sweep(folder):
        raise UserError(f"{folder}: neither a job file nor the folder of a sweep")
    if request.sweeps or request.num_seeds is not None or request.out or request.overrides:
        raise UserError(f"{folder}: a sweep that is laid out keeps its settings; name a job file to begin another")
    runs = sweep.read_sweep(folder)
    print(sweep.table(runs))
    indices = [run.index for run in runs if run.state in sweep.LACKING]
    if not indices:
        print("nothing to submit")
        return 0
    options = _options_of(request, sweep.last_options(folder))
    return _submit_arrays(folder, indices, options, folder.resolve().name, dry_run=request.dry_run)


def _options_of(request: Request, before: sweep.Options) -> sweep.Options:
    """Return the options of a sweep: those of the request, and where it has none those of before."""
    script = _script_of(request)
    # One way to go on takes the place of the other.
    ways = {"chain": "max_restarts", "max_restarts": "chain"}
    dropped = {ways[way]: None for way in ways if request.resources.get(way) is not None}
    resources = replace(before.resources, **{**dropped, **request.resources})
    refuse_short_stretches(batch_file("sweep.sbatch"), resources)
    return sweep.Options(
        resources=resources,
        script=script if script is not None else before.script,
        at_once=request.at_once if request.at_once is not None else before.at_once,
    )


def _script_of(request: Request) -> Path | None:
    # Of a sweep sbatch would not look at it, and every run would fail.
    if request.script is not None and not request.script.is_file():
        raise UserError(f"--script {request.script}: no such file")
    return request.script


def _submit_arrays(folder: Path, indices: Sequence[int], options: sweep.Options, name: str, *, dry_run: bool) -> int:
    if not dry_run:
        # Before Slurm is asked, which may refuse.
        sweep.record_options(folder, options)
        sweep.make_logs(folder)
    for offset, submission in sweep.arrays(
        folder,
        indices,
        options=options,
        script=batch_file("sweep.sbatch"),
        name=name,
        max_index=sweep.max_array_index(),
    ):
        job_ids = []
        for job_id in _submit(submission, dry_run=dry_run):
            sweep.record_submission(folder, job_id, offset)
            job_ids.append(job_id)
        if job_ids:
            print(how_to_watch(job_ids, folder, log_of(submission)))
    return 0


def _folder_of(request: Request, name: str) -> Path:
    """Return the folder of what is submitted: the one that is given, or a new one of this name."""
    out = request.out or new_folder(slug(name), dry_run=request.dry_run)
    if "\\" in str(out):
        # Beside one no pattern of Slurm's log file names means anything.
        raise UserError(f"{out}: Slurm has no name for a log there, for the backslash; choose another --out")
    return out
