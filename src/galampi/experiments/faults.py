"""Faults on a schedule: a job that is killed and begun again, a rank that is stopped for a while.

As a program, `python -m galampi.experiments.faults FAULTS OUT COMMAND ...`, FAULTS being a JSON list of `Fault`: starts
the command, hurts it as OUT shows that it gets on, starts it again where it was killed, and ends with its exit code.
What happened lies in OUT/faults.json.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import psutil

from galampi.errors import ResultsError
from galampi.job import parse_job
from galampi.results import open_run
from galampi.results.files import replace_text

FILE = "faults.json"
_PERIOD_S = 0.2
_KEEP_PERIOD_S = 2.0
_UNREAD = (0, 0)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a job once.

    Attributes:
        kind: All its processes are killed by SIGKILL, and it is begun again at once; or its last rank is stopped.
        after: Share of the budget of env steps after which it happens.
        stop_s: Time for which the rank is stopped, s.
    """

    kind: Literal["kill", "stop"]
    after: float
    stop_s: float = 10.0


@dataclass(frozen=True)
class Suffered:
    """What faults did to a run.

    Attributes:
        wall_s: Time for which the command was under way, s; of a job that was interrupted, in all its starts.
        num_faults: Faults that happened; one that was to come after the end did not.
        lost_env_steps: Env steps that were on the disk and had to be done again, to some seconds of flushing.
        faults: Those that were to happen, as `told` writes them; '' in files of an earlier galampi.
    """

    wall_s: float
    num_faults: int
    lost_env_steps: int
    faults: str = ""


def told(faults: Sequence[Fault]) -> str:
    """Write faults as JSON."""
    return json.dumps([asdict(fault) for fault in faults])


def read_suffered(out: Path) -> Suffered | None:
    """Return what faults did to a run; None if it was not started by this program."""
    try:
        return Suffered(**json.loads((out / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


class _Hurt:
    """A command that is started, hurt and started again."""

    def __init__(self, faults: Sequence[Fault], out: Path, command: Sequence[str]) -> None:
        # What happened before an interruption does not happen again.
        self._before = read_suffered(out) or Suffered(0.0, 0, 0)
        self._num_faults, self._lost_env_steps = self._before.num_faults, self._before.lost_env_steps
        self._faults = told(faults)
        self._left = sorted(faults, key=lambda fault: fault.after)[self._num_faults :]
        self._out = out
        self._command = command
        self._began_s = self._kept_s = time.monotonic()
        self._process = subprocess.Popen(command)
        self._is_to_end = False

    def run(self) -> int:
        """Do all of it, and return the command's last exit code."""
        for number in _STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # What `nohup` keeps away stays away.
                signal.signal(number, self._hand_on)
        while (code := self._process.poll()) is None:
            done, budget = _progress(self._out)
            if self._left and budget and done >= self._left[0].after * budget and not self._is_to_end:
                self._happen(self._left.pop(0), done)
            if time.monotonic() - self._kept_s > _KEEP_PERIOD_S:
                self._keep()
            time.sleep(_PERIOD_S)
        self._keep()
        return code

    def _keep(self) -> None:
        """Write what has happened so far, for whoever goes on if this is killed."""
        self._kept_s = time.monotonic()
        wall_s = self._before.wall_s + self._kept_s - self._began_s
        if (self._out / "job.h5").exists():
            suffered = Suffered(wall_s, self._num_faults, self._lost_env_steps, self._faults)
            replace_text(self._out / FILE, json.dumps(asdict(suffered)) + "\n")

    def _happen(self, fault: Fault, done: int) -> None:
        self._num_faults += 1
        # Before it happens, or it would again.
        self._keep()
        processes = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        if fault.kind == "stop":
            rank = next((process for process in reversed(processes) if _is_rank(process)), None)
            if rank is None:  # They are about to end.
                return
            rank.suspend()
            time.sleep(fault.stop_s)
            rank.resume()
            return
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(processes)
        self._process = subprocess.Popen(self._command)
        # Until its files are those of what goes on.
        while self._process.poll() is None and (now := _progress(self._out)) in ((done, now[1]), _UNREAD):
            time.sleep(_PERIOD_S)
        self._lost_env_steps += max(0, done - _progress(self._out)[0])

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._is_to_end = True
        self._process.send_signal(number)


def _is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank, and no launcher or process of simulators."""
    with suppress(psutil.Error, ValueError):
        python, *words = process.cmdline()
        return words[:3] == ["-m", "galampi", "train"] and Path(python).name.startswith("python")
    return False


def _progress(out: Path) -> tuple[int, int]:
    """Return the env steps that all ranks have done and are to do; 0 of 0 while there is nothing to read."""
    try:
        run = open_run(out)
        done = sum(int(steps[-1]) for rank in run.ranks if len(steps := rank.updates["env_steps"]))
        return done, parse_job(run.job_toml, str(out)).total_env_steps
    except (ResultsError, FileNotFoundError):
        return _UNREAD


def main() -> int:
    """Do what the command line says."""
    faults, out, *command = sys.argv[1:]
    return _Hurt([Fault(**each) for each in json.loads(faults)], Path(out), command).run()


if __name__ == "__main__":
    sys.exit(main())
