"""The hall: set up, train, end; the one room that sees learning, gossip and results together.

A job's story: `folder` claims its folder, `resuming` finds where it goes on, `setup` makes each rank, `loop` trains it,
`ending` drains and saves. `rank` is what they hand on. Nothing here may know how parameters are averaged, what a
policy is, or how a file is laid out.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from mpi4py import MPI

from galampi.errors import BrokenRunError, UserError, one_of, os_error_line
from galampi.job import Job, difference_of, import_again, one_line
from galampi.memory import keep_freed_memory
from galampi.paths import expanded, refuse_undecoded
from galampi.ranks.placement import end_with_launcher, place, refuse_singletons, together
from galampi.ranks.starting import end_failed, stop_before_training
from galampi.results import JobFile, new_folder, open_run
from galampi.signals import StopNow, StopSignals
from galampi.training.display import Display, no_return
from galampi.training.ending import PARTIAL_CODE, Outcome, end
from galampi.training.folder import claimed, put_back, refuse_unshared, set_aside
from galampi.training.loop import train_to_end
from galampi.training.resuming import find_start, new_start
from galampi.training.setup import begin, make_rank

__all__ = ["PARTIAL_CODE", "Outcome", "Resume", "no_return", "train"]

log = logging.getLogger(__name__)

Resume = Literal["no", "yes", "auto", "anew"]
"""Whether to go on with the run in a folder: no, yes, if there is one, or begin anew and keep its files beside."""


def train(
    job: Job,
    out: Path | str | None = None,
    *,
    resume: Resume = "no",
    argv: Sequence[str] = sys.argv,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
    origin: Path | None = None,
    quiet: bool = False,
    signals: StopSignals | None = None,
) -> tuple[Path, Outcome | None]:
    """Train a job, from its start or from its checkpoints. Collective over comm.

    Args:
        job: What to train.
        out: Folder of the run; None for a new one named after the job.
        resume: See `Resume`.
        argv: Command line, for the record.
        comm: The ranks of the job.
        origin: Run whose policy a new run begins with, absolute; None for fresh parameters.
        quiet: Show no progress.
        signals: What catches those that ask a job to stop; None to catch them until this returns.

    Returns:
        The folder, and what the run came to; None if it had been finished before.

    Raises:
        UserError: On every rank, before anything is written over. What one rank of several meets later ends the program
            on all, after a line that says what it was.
    """
    if not isinstance(job, Job):
        raise UserError(f"train takes a job, as load_job returns one, and not {job!r}")
    one_of("resume", resume, get_args(Resume))
    _refuse_simulators_process()
    # Environments are the user's code, and may change the folder.
    out = None if out is None else expanded(out).absolute()
    refuse_undecoded(out or Path.cwd())
    with ExitStack() as stack:
        if signals is None:
            signals = StopSignals()
            stack.callback(signals.release)
        if comm.size > 1:
            stack.push(_end_others)
        try:
            with signals:
                with together(comm):
                    refuse_singletons(comm)
                    if resume == "anew" and origin and out and origin.resolve() == out.resolve():
                        raise UserError(f"{out}: to begin anew with its own policy wants another --out")
                _refuse_other_jobs(job, comm)
                end_with_launcher(comm)
                placement = place(comm)
                keep_freed_memory()
                out, is_resumed = _claim(job, out, resume, comm, stack)
                start = find_start(job, out, comm) if is_resumed else new_start(job, origin, comm)
                total_before = start.total_env_steps(start.progress)
                if total_before >= job.total_env_steps or 0 < job.max_time_s <= start.time_s:
                    if comm.rank == 0:
                        # A kill between the last save and the change of the status leaves it at `running`.
                        JobFile.set_status(out, "finished")
                    return out, None
                with together(comm):
                    if is_resumed and comm.rank == 0:
                        import_again(job, open_run(out).attributes.get("modules", ()), log.info)
                rank = make_rank(job, out, placement, comm, start, signals)
                if taken := signals.hold():
                    log.warning(
                        "code of the job has taken %s, by which a job is asked to save; galampi takes it back",
                        ", ".join(taken),
                    )
        except StopNow:
            # The end of the other ranks is this one's too.
            stack.close()
            stop_before_training(signals)
        try:
            begin(rank, argv)
            shows = comm.rank == 0 and not quiet
            with Display(job, total_before, start.time_s) if shows else nullcontext() as display:
                train_to_end(rank, signals, display)
            return out, end(rank, signals)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            # Objects of HDF5 that a full disk keeps from closing would each say so, above the line that tells it.
            sys.unraisablehook = lambda unraisable: None
            rank.say_failed()
            # What this rank alone has met comes from outside; the others are told by the end of the job.
            if isinstance(error, OSError):
                raise BrokenRunError(os_error_line(error)) from error
            if isinstance(error, UserError):
                raise BrokenRunError(str(error)) from error
            if isinstance(error, SystemExit):
                raise BrokenRunError(f"code of the job left the program by {one_line(error)}") from error
            raise


def _end_others(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """End the job where this rank alone has failed: at its end Python would wait for the others."""
    if isinstance(error, Exception) and not isinstance(error, UserError):
        end_failed(error)


def _refuse_simulators_process() -> None:
    """End a process of simulators that runs the script of the user again, up to the line that trains."""
    # As multiprocessing knows it itself, when it refuses to start a process there.
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    print(
        'galampi: a script that trains does so under `if __name__ == "__main__":`; for processes of simulators run the '
        "rest of it too",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _refuse_other_jobs(job: Job, comm: MPI.Intracomm) -> None:
    """See that all ranks are to train the same. Collective over comm."""
    first = comm.bcast(job)
    with together(comm):
        if differing := difference_of(job, first):
            key, own, theirs = differing
            raise UserError(
                f"rank {comm.rank} is given another job than rank 0: {key} is {own!r}, and {theirs!r} there"
            )


def _claim(job: Job, out: Path | None, resume: Resume, comm: MPI.Intracomm, claim: ExitStack) -> tuple[Path, bool]:
    """Claim the folder on rank 0, until `claim` is closed. Collective over comm.

    Returns:
        The folder, and whether there is a run to go on with.
    """
    found: tuple[Path, bool] | None = None
    with together(comm):
        if comm.rank == 0:
            # The first rank's clock names the folder for all.
            folder = out or new_folder(job.name)
            is_resumed = resume == "yes" or (resume != "no" and (folder / "job.h5").exists())
            claim.enter_context(claimed(folder, resume=is_resumed, is_new=out is None))
            if is_resumed and resume == "anew":
                aside = set_aside(folder)
                claim.callback(put_back, folder, aside)
                log.info("the files of the run before are kept in %s", aside)
                is_resumed = False
            found = folder, is_resumed
    folder, is_resumed = comm.bcast(found)
    refuse_unshared(folder, comm)
    return folder, is_resumed
