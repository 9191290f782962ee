"""Submit a job to Slurm.

Builds the argument list of `sbatch`: a pure function, without a shell anywhere, so that no name can execute anything.
Batch files are those that come with this package, or those of the folder that GALAMPI_SLURM names; options on the
command line of `sbatch` go before their `#SBATCH` lines.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from galampi.errors import UserError
from galampi.job.shipped import BATCH_FILES

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\Z")
# Not TERM or INT: srun takes both for itself, and ends.
SIGNALS = ("USR1", "USR2")
LAUNCHERS = ("srun", "mpirun")
# A controller that is busy may take a job and say so too late.
_UNANSWERED = re.compile(
    "timed out|zero bytes|unexpected message|reset by peer|(send|recv|receive|shutdown) (operation|failure)",
    re.IGNORECASE,
)


class UnansweredError(UserError):
    """Slurm did not say whether it took a job."""


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
        chain: Jobs that train one run, each after the one before; None for one that goes back to the queue.
        sbatch_options: Further options of sbatch, as they are. They count over all others.
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
    chain: int | None = None
    sbatch_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what Slurm would take for something else.

        Raises:
            UserError: A value is not allowed.
        """
        for name in ("nodes", "ntasks_per_node", "cpus_per_task", "gpus", "notice_s", "chain"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_option(name)} is {value}; must be at least 1")
        if self.max_restarts is not None and self.max_restarts < 0:
            raise UserError(f"--max-restarts is {self.max_restarts}; must be at least 0")
        if self.chain is not None and self.max_restarts is not None:
            raise UserError("--chain and --max-restarts are two ways to go on; give one")
        # These go into --export, where a comma would begin another variable.
        if self.mpi is not None and not _WORD.match(self.mpi):
            raise UserError(f"--mpi is {self.mpi!r}; must be a type that `srun --mpi=list` names")

    def options(self) -> list[str]:
        """Return the options of sbatch that have a name here."""
        options = [
            f"{_option(name)}={value}"
            for name in ("nodes", "ntasks_per_node", "cpus_per_task", "time", "partition", "account", "nodelist")
            if (value := getattr(self, name)) is not None
        ]
        if self.gpus is not None:
            options.append(f"--gres=gpu:{self.gpus}")
        if self.notice_s is not None:
            options.append(f"--signal=B:USR1@{self.notice_s}")
        if self.chain is not None:
            options.append("--no-requeue")
        return options

    def variables(self) -> dict[str, object]:
        """Return what batch files read from their environment."""
        named = {
            "GALAMPI_LAUNCHER": self.launcher,
            "GALAMPI_MPI": self.mpi,
            "GALAMPI_SIGNAL": self.save_signal,
            "GALAMPI_MAX_RESTARTS": self.max_restarts,
        }
        return {name: value for name, value in named.items() if value is not None}


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
        stretch: Number of this job in its chain, from 1.
        after: Job whose end this one waits for, the one before it in its chain; None for the first.
    """

    script: Path
    name: str
    log: str
    resources: Resources = field(default_factory=Resources)
    arguments: Sequence[str] = ()
    array: str | None = None
    stretch: int = 1
    after: str | None = None


def sbatch_arguments(submission: Submission) -> list[str]:
    """Return the argument list of sbatch, its own name first. Pure."""
    resources = submission.resources
    array = [f"--array={submission.array}"] if submission.array is not None else []
    variables = resources.variables()
    if resources.chain is not None:
        variables["GALAMPI_CHAIN"] = f"{submission.stretch}/{resources.chain}"
    # Of an option that is given twice sbatch takes the last: what two say becomes one. ALL, for some sites export
    # nothing unless told to.
    export, others = _taken(resources.sbatch_options, "--export")
    dependency = []
    if submission.after is not None:
        given, others = _taken(others, "--dependency", "-d")
        dependency = ["--dependency=" + ",".join(filter(None, (given, f"afterany:{submission.after}")))]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={submission.name}",
        *array,
        *resources.options(),
        "--export=" + _exported("ALL" if export is None else export, variables),
        *dependency,
        f"--output={submission.log}",
        *others,
        str(submission.script),
        *submission.arguments,
    ]


@dataclass(frozen=True)
class Notice:
    """What Slurm sends before the time limit of a job.

    Attributes:
        signal: The signal.
        before_s: Seconds before the limit.
        to_batch: Whether the batch file gets it, rather than the steps.
    """

    signal: str = "TERM"
    before_s: int = 0
    to_batch: bool = False


def notice_of(script: Path, resources: Resources) -> Notice:
    """Return what a batch file and what is asked beside it want to be sent."""
    signal, _ = _taken(_asked(script, resources), "--signal")
    found = re.fullmatch(r"(?:([RB]+):)?(\w+)(?:@(\d+))?", signal or "")
    return Notice(found[2], int(found[3] or 60), "B" in (found[1] or "")) if found else Notice()


def refuse_short_stretches(script: Path, resources: Resources) -> None:
    """Refuse a time limit that the notice before it uses up: every stretch would end as it begins.

    Args:
        script: Batch file, whose #SBATCH lines count where the resources say nothing.
        resources: What the job asks for.

    Raises:
        UserError: The limit is known, and no longer than the notice.
    """
    time, _ = _taken(_asked(script, resources), "--time", "-t")
    limit_s, notice = _seconds(time or ""), notice_of(script, resources)
    if limit_s is not None and limit_s <= notice.before_s:
        raise UserError(
            f"--time is {time}, {limit_s} s; must be longer than the notice before it, {notice.before_s} s "
            f"(--notice-s, else --signal in {script})"
        )


def log_of(submission: Submission) -> str:
    """Return the log file of a job, with Slurm's patterns."""
    return _taken(submission.resources.sbatch_options, "--output", "-o")[0] or submission.log


def as_typed(arguments: Sequence[str]) -> str:
    """Write an argument list as a shell would have to read it."""
    return " ".join(shlex.quote(argument) for argument in arguments)


def batch_file(name: str) -> Path:
    """Return a batch file: that of the folder that GALAMPI_SLURM names, or the one of this package.

    Raises:
        UserError: It is not there.
    """
    path = _batch_folder() / name
    if not path.is_file():
        raise UserError(f"GALAMPI_SLURM is {path.parent}; must be a folder of batch files, and holds no {name}")
    return path


def clean_environment() -> dict[str, str]:
    """Return an environment that tells nothing of a job or a rank that this process is part of.

    sbatch would hand that on, and the new job take another's number of restarts or task of an array for its own.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    foreign = ["PMI_", "PMIX_", "OMPI_COMM_WORLD_"]
    if "SLURM_JOB_ID" in os.environ:
        foreign += ["SLURM_", "SLURMD_"]
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(tuple(foreign))}


def queue_environment() -> dict[str, str]:
    """Return an environment in which squeue leaves out no job, whatever its user likes to see."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}


def sbatch(arguments: Sequence[str]) -> str:
    """Submit, and return the job's number; of a job of another cluster `NUMBER;CLUSTER`.

    Args:
        arguments: From `sbatch_arguments`.

    Raises:
        UnansweredError: Slurm did not answer in time, and may have taken the job.
        UserError: sbatch is missing or refuses.
    """
    environment = clean_environment()
    # The job finds the python that submitted it, and a batch file the one that it hands on to.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment["GALAMPI_SLURM"] = str(_batch_folder())
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise UserError("sbatch is not here; submit from a login node of a Slurm cluster, or use --dry-run") from None
    said = " ".join(done.stderr.split())
    if done.returncode and _UNANSWERED.search(said):
        raise UnansweredError(f"sbatch got no answer: {said}; `squeue --me` says whether the job waits all the same")
    if done.returncode:
        raise UserError(f"sbatch refused: {said or f'it ended with exit code {done.returncode}'}")
    # `number` or `number;cluster`, after whatever a site's plugins print.
    number = re.search(r"^(\d+(?:;\S+)?)\s*\Z", done.stdout, re.MULTILINE)
    if number is None:
        raise UserError(f"sbatch has submitted nothing: {said or ' '.join(done.stdout.split())}")
    return number[1]


def number_of(job_id: str) -> str:
    """Return the number of what `sbatch` has returned."""
    return job_id.partition(";")[0]


def cluster_of(job_id: str) -> str:
    """Return the cluster of what `sbatch` has returned; '' for the own."""
    return job_id.partition(";")[2]


def log_pattern(path: Path) -> str:
    """Return a path as Slurm's file name patterns write it: only a % means something there."""
    return str(path).replace("%", "%%")


def slug(text: str) -> str:
    """Return a text that is safe as part of a file name, in Slurm's patterns too."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100] or "job"


def how_to_watch(job_ids: Sequence[str], out: Path, log: str) -> str:
    """Say how to follow a job, or those of a chain, and how to end it."""
    numbers = [number_of(job_id) for job_id in job_ids]
    number = numbers[0] if len(numbers) == 1 else "\0"
    there = next((f" --clusters={cluster}" for job_id in job_ids if (cluster := cluster_of(job_id))), "")
    # What is not known yet is for the shell to find.
    parts = re.sub("%[%Aja]", lambda found: {"%%": "%", "%a": "\0"}.get(found[0], number), log).split("\0")
    log_file = "*".join(shlex.quote(part) if part else "" for part in parts)
    ids = " ".join(numbers)
    end = (
        f"scancel{there} {ids}; it saves and goes back to the queue: scancel it there once more"
        if len(job_ids) == 1
        else f"scancel{there} {ids}; the last first, or each begins when the one before it ends"
    )
    return (
        f"submitted job{'s' * (len(job_ids) > 1)} {ids}; its run will be {out}\n"
        f"  in the queue   squeue{there} -j {','.join(numbers)}\n"
        f"  how far it is  python -m galampi status {shlex.quote(str(out))}\n"
        f"  its log        tail -f {log_file}\n"
        f"  to end it      {end}"
    )


def _exported(asked: str, variables: Mapping[str, object]) -> str:
    """Return the value of --export that exports what is asked for, and variables too."""
    named = [f"{name}={value}" for name, value in variables.items()]
    # Without ALL a list is nothing but itself: so NONE is what else it may be.
    return ",".join([*([] if named and asked.upper() in ("NONE", "NIL") else [asked]), *named])


def _taken(words: Iterable[str], option: str, letter: str | None = None) -> tuple[str | None, list[str]]:
    """Take an option out of words for sbatch: return its last value, and the other words.

    Args:
        words: `--option=value`, `--option value`, `-ovalue` or `-o value`, and others.
        option: Its name; sbatch knows it by its first letters too.
        letter: Its short name, `-o`.
    """
    value: str | None = None
    others: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, text = word.partition("=")
        if option.startswith(name) and len(name) > len("--xx"):
            value = text if equals else next(left, "")
        elif letter is not None and word.startswith(letter):
            value = word[len(letter) :] or next(left, "")
        else:
            others.append(word)
    return value, others


def _asked(script: Path, resources: Resources) -> list[str]:
    """Return the options that sbatch would find: first those of the batch file's #SBATCH lines."""
    try:
        lines = script.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        # sbatch has the word on that.
        lines = []
    words = [line.split()[1:] for line in lines if line.startswith("#SBATCH")]
    in_file = [word for line in words for word in itertools.takewhile(lambda word: word[0] != "#", line)]
    return [*in_file, *resources.options(), *resources.sbatch_options]


def _seconds(time: str) -> int | None:
    """Return a time limit in seconds, whole minutes as Slurm keeps it; None for one that is none or not understood."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    # Minutes, minutes:seconds or hours:minutes:seconds; after days hours, hours:minutes or hours:minutes:seconds.
    units = [3600, 60, 1] if days is not None or len(numbers) == 3 else [60, 1]
    seconds = int(days or 0) * 86_400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return -(-seconds // 60) * 60 or None


def _batch_folder() -> Path:
    named = os.environ.get("GALAMPI_SLURM")
    return Path(named).absolute() if named else BATCH_FILES


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
