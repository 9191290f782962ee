"""Submit a job to Slurm.

Builds the argument list of `sbatch`: a pure function, without a shell anywhere, so that no name can execute anything.
Batch files are those of `slurm/`; options on the command line of `sbatch` go before their `#SBATCH` lines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from galampi.errors import UserError

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")
# Not TERM or INT: srun takes both for itself, and ends.
SIGNALS = ("USR1", "USR2")
LAUNCHERS = ("srun", "mpirun")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of Slurm; None leaves the choice to the batch file.

    Attributes:
        nodes: Number of nodes.
        ntasks_per_node: Ranks on each.
        cpus_per_task: Cores of a rank.
        time: Time limit of one stretch, as Slurm writes it.
        partition: Partition.
        account: Account.
        gpus: GPUs of each node.
        launcher: `srun` or `mpirun`.
        mpi: PMI type of srun's --mpi.
        save_signal: Signal that makes ranks save, without SIG.
        notice_s: Seconds before the time limit at which saving starts.
        max_restarts: Most times that a run goes back to the queue.
        nodelist: Nodes to use, as Slurm writes them.
    """

    nodes: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus: int | None = None
    launcher: str | None = None
    mpi: str | None = None
    save_signal: str | None = None
    notice_s: int | None = None
    max_restarts: int | None = None
    nodelist: str | None = None

    def __post_init__(self) -> None:
        """Refuse what Slurm would take for something else.

        Raises:
            UserError: A value is not allowed.
        """
        for name in ("nodes", "ntasks_per_node", "cpus_per_task", "gpus", "notice_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_option(name)} is {value}; must be at least 1")
        if self.max_restarts is not None and self.max_restarts < 0:
            raise UserError(f"--max-restarts is {self.max_restarts}; must be at least 0")
        # These go into --export, where a comma would begin another variable.
        if self.mpi is not None and not _WORD.match(self.mpi):
            raise UserError(f"--mpi is {self.mpi!r}; must be a type that `srun --mpi=list` names")

    def options(self) -> list[str]:
        """Return the options of sbatch."""
        options = [
            f"{_option(name)}={value}"
            for name in ("nodes", "ntasks_per_node", "cpus_per_task", "time", "partition", "account", "nodelist")
            if (value := getattr(self, name)) is not None
        ]
        if self.gpus is not None:
            options.append(f"--gres=gpu:{self.gpus}")
        if self.notice_s is not None:
            options.append(f"--signal=B:USR1@{self.notice_s}")
        variables = {
            "GALAMPI_LAUNCHER": self.launcher,
            "GALAMPI_MPI": self.mpi,
            "GALAMPI_SIGNAL": self.save_signal,
            "GALAMPI_MAX_RESTARTS": self.max_restarts,
        }
        exported = [f"{name}={value}" for name, value in variables.items() if value is not None]
        # ALL, for some sites export nothing unless told to.
        return [*options, "--export=" + ",".join(["ALL", *exported])]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One call of sbatch.

    Attributes:
        script: Batch file.
        name: Job's name, any text.
        log: Log file, with Slurm's patterns such as %j.
        resources: What the job asks for.
        arguments: Arguments of the batch file.
        array: Indices of an array, as Slurm writes them; None for a single job.
    """

    script: Path
    name: str
    log: str
    resources: Resources = field(default_factory=Resources)
    arguments: Sequence[str] = ()
    array: str | None = None


def sbatch_arguments(submission: Submission) -> list[str]:
    """Return the argument list of sbatch, its own name first. Pure."""
    array = [f"--array={submission.array}"] if submission.array is not None else []
    return [
        "sbatch",
        "--parsable",
        f"--job-name={submission.name}",
        *array,
        *submission.resources.options(),
        f"--output={submission.log}",
        str(submission.script),
        *submission.arguments,
    ]


def as_typed(arguments: Sequence[str]) -> str:
    """Write an argument list as a shell would have to read it."""
    return " ".join(shlex.quote(argument) for argument in arguments)


def batch_file(name: str) -> Path:
    """Return a batch file of the checkout, or of the installation.

    Raises:
        UserError: It is not there.
    """
    folder = _batch_folder()
    if folder is None:
        raise UserError("the batch files of slurm/ are missing from this installation; give one with --script FILE")
    return folder / name


def sbatch(arguments: Sequence[str]) -> str:
    """Submit, and return the job's number.

    Args:
        arguments: From `sbatch_arguments`.

    Raises:
        UserError: sbatch is missing or refuses.
    """
    # The job finds the python that submitted it, and a batch file the one that it hands on to.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path}
    if (folder := _batch_folder()) is not None:
        environment["GALAMPI_SLURM"] = str(folder)
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise UserError("sbatch is not here; submit from a login node of a Slurm cluster, or use --dry-run") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"sbatch ended with exit code {done.returncode}"
        raise UserError(f"sbatch refused: {said}")
    # `number` or `number;cluster`, after whatever a site's plugins print.
    return done.stdout.strip().splitlines()[-1].split(";")[0]


def log_pattern(path: Path) -> str:
    """Return a path as Slurm's file name patterns write it: only a % means something there."""
    return str(path).replace("%", "%%")


def slug(text: str) -> str:
    """Return a text that is safe as part of a file name, in Slurm's patterns too."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "job"


def how_to_watch(job_id: str, out: Path, log: str) -> str:
    """Say how to follow a job and how to end it."""
    log_file = log.replace("%A", job_id).replace("%a", "*").replace("%j", job_id).replace("%%", "%")
    return (
        f"submitted job {job_id}; its run will be {out}\n"
        f"  in the queue   squeue -j {job_id}\n"
        f"  how far it is  python -m galampi status {shlex.quote(str(out))}\n"
        f"  its log        tail -f {shlex.quote(log_file)}\n"
        f"  to end it      scancel {job_id}; it saves and goes back to the queue: scancel it there once more"
    )


def _batch_folder() -> Path | None:
    for folder in (Path(__file__).parents[3] / "slurm", Path(sys.prefix) / "share" / "galampi" / "slurm"):
        if (folder / "requeue.sbatch").exists():
            return folder
    return None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
