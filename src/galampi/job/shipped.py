"""The jobs and batch files that come with this package: where they lie, and a job by its name."""

from __future__ import annotations

import difflib
import os
import shutil
from pathlib import Path

from galampi.errors import JobError, UserError
from galampi.paths import expanded

# In a checkout both are links to the folders at its top.
JOBS = Path(__file__).parents[1] / "jobs"
BATCH_FILES = Path(__file__).parents[1] / "slurm"


def shipped_jobs() -> dict[str, Path]:
    """Return the file of every job that comes with this package, by its name."""
    return {path.stem: path for path in sorted(JOBS.glob("*.toml"), key=lambda path: path.stem)}


def find_job(text: str) -> Path:
    """Return the file of a job, or folder of a sweep, of this path; else that of a shipped job of this name.

    Raises:
        JobError: It is a bare name, and none of them.
    """
    path, jobs = expanded(text), shipped_jobs()
    # What is spelled as a path is none of ours, there or not. The folder of a run may well have the name of its job.
    if path.suffix or path.name != text or path.is_file() or (path / "jobs").is_dir():
        return path
    if text not in jobs:
        near = difflib.get_close_matches(text, jobs, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise JobError(f"{text}: no such file, and not the name of a shipped job: {', '.join(jobs)}{hint}")
    return jobs[text]


def describe_jobs() -> str:
    """Return a line for each shipped job: its name, and what the first line of its file says."""
    jobs = shipped_jobs()
    width = max(map(len, jobs))
    lines = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in jobs.items()}
    return "\n".join(f"{name:{width}}  {line.removeprefix('# ')}" for name, line in lines.items())


def copy_shipped(folder: Path) -> None:
    """Copy the shipped jobs, with the modules they name, to `folder/jobs`, and the batch files to `folder/slurm`.

    Raises:
        UserError: One of them is there already, or cannot be written.
    """
    jobs = sorted([*JOBS.glob("*.toml"), *JOBS.glob("*.py")])
    copies = {folder / "jobs": jobs, folder / "slurm": sorted(BATCH_FILES.glob("*.sbatch"))}
    for copy in copies:
        if os.path.exists(copy):  # False of what may not be looked at, where Path.exists raises.
            raise UserError(f"{copy}: is there already; choose another folder")
    try:
        for copy, files in copies.items():
            copy.mkdir(parents=True)
            for file in files:
                shutil.copyfile(file, copy / file.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
