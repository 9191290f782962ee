"""A sweep on this machine: what it lacks is trained, one run after the other or several at once.

Folders, job files and states are those of a sweep on Slurm, so `status` and `submit` take it from here, and this from
them. The launcher of a run prints to SWEEP/logs/NUMBER.log, and that file is locked as long as it lives: so others see
that the run is on its way, and one whose parent was killed is known again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from galampi.errors import ResultsError, UnreadableError, UserError
from galampi.job import Job, difference_of, load_job, shipped_jobs
from galampi.launch import sweep
from galampi.launch.axes import combinations, parse_axes
from galampi.launch.mpirun import mpirun
from galampi.launch.status import has_begun, held
from galampi.launch.submit import clean_environment
from galampi.launch.sweep import SweptRun
from galampi.launch.sweep_display import SweepDisplay
from galampi.results import open_run
from galampi.results.schema import JOB_FILE_NAME
from galampi.results.sole import sole_writer

NUM_RANKS = 2
"""Ranks of a run, as in sweep.sbatch."""
_PERIOD_S = 0.5
_ASK_AGAIN_S = 10.0
_UNREADABLE_S = 300.0
STOPPED = 3
"""Exit code of what a signal has ended, and that can go on."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `sweep`.

    Attributes:
        folder: The sweep.
        job: Job file, of a sweep that is to begin; None for the built-in job.
        overrides: Settings over those of the file.
        sweeps: `key=a,b,c` texts.
        num_seeds: Sweep over this many seeds; None for the job's own.
        at_once: Most runs at the same time.
        num_ranks: Ranks of each run; None for as many as before.
    """

    folder: Path
    job: Path | None
    overrides: Mapping[str, str]
    sweeps: Sequence[str]
    num_seeds: int | None
    at_once: int
    num_ranks: int | None


def sweep_here(asked: Asked) -> int:
    """Lay out a sweep unless it is there, train what it lacks, and return the exit code.

    Raises:
        UserError: The sweep or a job of it is not allowed, another one lies there, or ranks cannot be started.
    """
    _lay_out(asked)
    code = train_sweep(asked.folder, asked.num_ranks, asked.at_once)
    print(sweep.table(sweep.read_sweep(asked.folder)))
    return code


def train_sweep(
    folder: Path,
    num_ranks: int | None,
    at_once: int,
    after_each: Callable[[], None] = lambda: None,
    started_by: Callable[[SweptRun], Sequence[str]] = lambda run: (),
    laid_out_by: Callable[[], None] = lambda: None,
) -> int:
    """Train what a sweep that is laid out lacks, and return the exit code.

    Args:
        folder: The sweep.
        num_ranks: Ranks of each run; None for as many as before.
        at_once: Most runs at the same time.
        after_each: Called when a run has ended.
        started_by: Returns the words of a program that is to start a run's launcher; none starts it directly.
        laid_out_by: Called before anything else, once nobody else trains or changes the sweep.

    Raises:
        UserError: Ranks cannot be started.
    """
    with sole_writer(folder):
        laid_out_by()
        launcher = mpirun(_ranks_of(folder, num_ranks))
        is_stopped = _train(folder, lambda run: [*started_by(run), *launcher], at_once, after_each)
    return STOPPED if is_stopped else sweep.exit_code(sweep.read_sweep(folder))


def _lay_out(asked: Asked) -> None:
    """Lay out a sweep, or see that what is asked for is the one that is there."""
    names_one = bool(asked.sweeps or asked.num_seeds is not None)
    is_there = sweep.is_sweep(asked.folder)
    if not names_one:
        if not is_there:
            raise UserError(f"{asked.folder}: no sweep there; --sweep KEY=A,B or --array-seeds K begins one")
        if asked.job is not None or asked.overrides:
            raise UserError(f"{asked.folder}: a sweep that is laid out keeps its settings; name its folder alone")
        return
    name = asked.folder.name
    if not is_there and asked.job is None and name in shipped_jobs() and asked.folder.parent == Path.cwd():
        raise UserError(f"{name}: is a job; a sweep wants its folder first, as `sweep runs/{name} {name} ...`")
    axes = parse_axes(asked.sweeps, asked.num_seeds, load_job(asked.job, asked.overrides).seed)
    jobs = combinations(asked.job, asked.overrides, axes)
    if not is_there:
        sweep.lay_out(asked.folder, jobs)
        return
    laid_out = {run.name: load_job(run.job_file) for run in sweep.read_sweep(asked.folder)}
    names = [*jobs, *laid_out]
    differing = next((name for name in names if not _are_alike(jobs.get(name), laid_out.get(name))), None)
    if differing is not None:
        raise UserError(
            f"{asked.folder}: holds another sweep: {differing} is not the same there; name its folder alone to go on "
            "with it, or choose another"
        )


def _are_alike(job: Job | None, other: Job | None) -> bool:
    return job is not None and other is not None and difference_of(job, other) is None


def _ranks_of(folder: Path, asked: int | None) -> int:
    """Return the number of ranks of each run, and let `submit` ask Slurm for as many.

    Where neither this command nor one before says it, it is that of the runs that have begun: a site's own batch file
    may have asked for it.
    """
    options = sweep.last_options(folder)
    nodes, on_each = options.resources.nodes, options.resources.ntasks_per_node
    before = None if nodes is None and on_each is None else (nodes or 1) * (on_each or NUM_RANKS)
    if asked is None and before is not None:
        return before
    if asked is None:
        for out in sweep.run_folders(folder):
            # One that is damaged, or of others, says nothing.
            with suppress(ResultsError, OSError):
                if (out / JOB_FILE_NAME).exists():
                    return open_run(out).num_ranks
    count = NUM_RANKS if asked is None else asked
    if count != before:
        resources = replace(options.resources, nodes=1, ntasks_per_node=count)
        sweep.record_options(folder, replace(options, resources=resources))
    return count


@dataclass
class _Started:
    """A run that is on its way.

    Attributes:
        run: The run.
        process: Its launcher; None if an earlier command has begun it.
    """

    run: SweptRun
    process: subprocess.Popen[bytes] | None

    @property
    def has_ended(self) -> bool:
        """Whether its launcher has."""
        return self.process.poll() is not None if self.process is not None else not held(self.run.local_log)


def _train(
    folder: Path, launcher: Callable[[SweptRun], Sequence[str]], at_once: int, after_each: Callable[[], None]
) -> bool:
    """Train what a sweep lacks, each run once, and return whether a signal has ended that."""
    runs = sweep.read_sweep(folder)
    started = [_Started(run, None) for run in runs if held(run.local_log)]
    tried: set[int] = set()
    num_told, is_any_left, look_again_s = 0, True, 0.0
    with _stop_signals() as signals, SweepDisplay(runs) as display:
        reader = _Reader(folder, display)
        for each in started:
            display.begin(each.run, "goes on, as an earlier command began it")
        while True:
            while is_any_left and not signals and len(started) < at_once and reader.is_due:
                if time.monotonic() < look_again_s:
                    break
                found = reader.read()
                if found is None:
                    break
                run, is_any_left = _next(found, tried)
                if run is None:
                    # What is left others train.
                    look_again_s = time.monotonic() + _ASK_AGAIN_S
                    break
                tried.add(run.index)
                display.begin(run, "begins" if run.state == "missing" else f"{run.state} before, goes on")
                started.append(_start(run, launcher(run)))
            # One that an earlier command began is not ours to stop.
            if all(each.process is None for each in started) if signals else not (started or is_any_left):
                return bool(signals)
            if len(signals) > num_told:
                for each in started:
                    _stop(each, by_force=num_told > 0)
                display.say("stops: runs save; once more kills them" if not num_told else "kills its runs")
                num_told = len(signals)
            time.sleep(_PERIOD_S)
            display.look()
            for each in [each for each in started if each.has_ended] if reader.is_due or signals else []:
                if signals and not has_begun(each.run.out):
                    # It has not failed: it was never let begin.
                    each.run.local_log.unlink(missing_ok=True)
                found = reader.read()
                if found is None and not signals:
                    break
                started.remove(each)
                is_any_left, look_again_s = True, 0.0
                # As it is now; one whose job file has gone as it was.
                display.end(next((run for run in found or () if run.index == each.run.index), each.run))
                after_each()


class _Reader:
    """Reads what became of the runs of a sweep; waits, and asks again, where Slurm does not say."""

    def __init__(self, folder: Path, display: SweepDisplay) -> None:
        self._folder = folder
        self._display = display
        self._due_s = self._unread_since_s = 0.0
        self._unanswered = False

    @property
    def is_due(self) -> bool:
        """Whether it is time to ask."""
        return time.monotonic() >= self._due_s

    def read(self) -> list[SweptRun] | None:
        """Return the runs; None if that cannot be told now, which is said once."""
        try:
            runs = sweep.read_sweep(self._folder)
        except (sweep.QueueError, UnreadableError) as error:
            now_s = time.monotonic()
            if not self._unanswered:
                self._display.say(f"{error}; asks again until that can be told")
            # A queue comes back, and files may; what is not allowed stays so.
            is_file = isinstance(error, UnreadableError)
            self._unread_since_s = (self._unread_since_s or now_s) if is_file else 0.0
            if is_file and now_s - self._unread_since_s > _UNREADABLE_S:
                raise
            self._due_s, self._unanswered = now_s + _ASK_AGAIN_S, True
            return None
        self._due_s = self._unread_since_s = 0.0
        self._unanswered = False
        return runs


def _next(runs: Sequence[SweptRun], tried: Set[int]) -> tuple[SweptRun | None, bool]:
    """Return the next run to train; and whether any is left.

    A folder is in use for a moment after its launcher was killed, or as long as somebody trains there by hand.
    """
    left = [run for run in runs if run.state in sweep.LACKING and run.index not in tried]
    return next((run for run in left if not held(run.out / "lock")), None), bool(left)


def _start(run: SweptRun, launcher: Sequence[str]) -> _Started:
    sweep.make_logs(run.local_log.parent.parent)
    with run.local_log.open("ab") as log:
        # The launcher inherits the lock with the file, and has it to its end.
        with suppress(OSError):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        train = [sys.executable, "-m", "galampi", "train", str(run.job_file), "--out", str(run.out), "--resume=auto"]
        process = subprocess.Popen(
            [*launcher, *train],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment(),
            # What is typed here is for this command, which tells the ranks what to do.
            start_new_session=True,
        )
    return _Started(run, process)


def _stop(started: _Started, *, by_force: bool) -> None:
    """Tell the ranks of a run to save and end; by force, kill them."""
    if started.process is None or started.process.poll() is not None:
        return
    if by_force:
        os.killpg(started.process.pid, signal.SIGKILL)
    else:
        # What the launchers of all MPI libraries hand on.
        started.process.send_signal(signal.SIGUSR1)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield the signals to stop that have come so far."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    # What `nohup` keeps away stays away.
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
