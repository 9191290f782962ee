"""What is settled of a run before its job waits: that its folder will do, and which job it trains.

What is checked is what runs, so the job is laid down as it was understood: the file it came from may change meanwhile.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from galampi.errors import UserError
from galampi.job import Job, dump_job, fields, job_of_run, parse_job
from galampi.launch.status import SUBMITTED, run_status
from galampi.results import open_run
from galampi.results.folder import rank_files, refuse_results_without_run

# What a batch system or an editor puts there is no run's, and a start that was cut short leaves these.
_OF_NO_RUN = (".*", "*~", "*.log", "*.out", "*.err", "lock", "job.h5.part", "before-[1-9]*", SUBMITTED)


def job_to_train(job: Job, path: Path, overrides: Mapping[str, str], out: Path) -> Job:
    """Return the job that a run in `out` would train: the one that is asked for, or the own job of a run that is there.

    Args:
        job: What is asked for.
        path: Its file.
        overrides: Settings over those of the file, and over those of the run's own job.
        out: Folder of the run.

    Raises:
        UserError: The folder does not do, or there is nothing left to train.
    """
    if not _holds_run(out):
        if any(out.glob(SUBMITTED)):
            print(f"{out}: a job was submitted to begin it, and has not; `squeue --me` says whether it waits still")
        return job
    text = open_run(out).job_toml
    own = job_of_run(text, f"{out}/job.h5", overrides)
    if run_status(out) == "finished" and own == parse_job(text, f"{out}/job.h5"):
        raise UserError(f"{out}: finished already; raise --total_env_steps to train further, or choose another --out")
    if changed := [key for key, _ in fields() if _value(job, key) != _value(own, key)]:
        print(f"{out}: its run goes on by its own job, not by {path}, which has another {', '.join(changed)}")
    return own


def lay_down(job: Job, out: Path, *, dry_run: bool) -> Path:
    """Write a job into the folder of its run, and return where: `submitted.toml`, `submitted-2.toml`, ...

    One that is there never changes, for another submission may wait with it.

    Args:
        job: The job.
        out: Folder of the run; created if missing.
        dry_run: Only say where it would lie.

    Raises:
        UserError: It cannot be written.
    """
    text = dump_job(job).encode()
    paths = (out / f"submitted{f'-{number}' if number > 1 else ''}.toml" for number in itertools.count(1))
    try:
        path = next(path for path in paths if not path.exists() or (path.is_file() and path.read_bytes() == text))
        if not dry_run and not path.exists():
            out.mkdir(parents=True, exist_ok=True)
            # All of it is there under its name, and two that are submitted at once do not mix.
            part = out / f".{path.name}.{os.getpid()}"
            try:
                part.write_bytes(text)
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return path


def _holds_run(out: Path) -> bool:
    """Whether there is a run in a folder; refuse one where none is and none could begin."""
    try:
        if (out / "job.h5").exists():
            return True
        if not out.exists():
            return False
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"{out}: cannot be the folder of a run: {error.strerror}") from None
    known = {*(path.name for path in rank_files(out)), "checkpoint"}
    foreign = [name for name in names if name not in known and not any(map(Path(name).match, _OF_NO_RUN))]
    if foreign:
        raise UserError(f"{out}: not empty: it holds {foreign[0]}, and no run to go on with; choose another --out")
    refuse_results_without_run(out)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out}: cannot be written: Permission denied")
    return False


def _value(job: Job, key: str) -> object:
    value: object = job
    for part in key.split("."):
        value = getattr(value, part)
    return value
