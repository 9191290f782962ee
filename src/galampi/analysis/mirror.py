"""Runs followed from their files into TensorBoard, on the login node: the job knows nothing of it.

What is in TensorBoard's folder already is kept in its `mirror.json`, for each rank the env steps up to which every row
is there. From there a mirror that was ended goes on. Where the run itself was resumed from a checkpoint, and the rows
after it are gone, TensorBoard is told to forget them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from galampi.analysis.tensorboard import EventFile, scalars
from galampi.errors import ResultsError, UserError
from galampi.results.reader import RankFile, Run, open_run
from galampi.results.sole import sole_writer

_PERIOD_S = 5.0
_GIVE_UP_AFTER_S = 60.0
_STATE = "mirror.json"


def mirror(paths: Sequence[Path], folder: Path, tell: Callable[[str], None] = print) -> None:
    """Follow runs until all are finished.

    Args:
        paths: Their folders.
        folder: TensorBoard's log folder; each rank becomes a TensorBoard run `RUN/rank-0000` there, as `export` has it.
        tell: Called with a line when a run's status is first seen or has changed.

    Raises:
        UserError: A file cannot be written, or another mirror writes there.
        ResultsError: There is no run, or a file of it is damaged, and still is after a minute.
    """
    with ExitStack() as stack:
        mirrors = [stack.enter_context(RunMirror(open_run(path), folder)) for path in paths]
        statuses = [""] * len(mirrors)
        while True:
            for i, each in enumerate(mirrors):
                if statuses[i] != "finished" and each.look() != statuses[i]:
                    statuses[i] = each.status
                    tell(f"{each.path}: {each.status}, {each.num_events:,} events so far")
            if all(status == "finished" for status in statuses):
                return
            time.sleep(_PERIOD_S)


@dataclass
class _Rank:
    """What is in TensorBoard of one rank.

    Attributes:
        up_to: Env steps up to which every row is there.
        num_restarts: Restarts of the rank that are allowed for.
        file: Where events go; None before the first.
        num_rows: Rows of each table that are there, by its name.
    """

    up_to: int = 0
    num_restarts: int = 0
    file: EventFile | None = None
    num_rows: dict[str, int] = field(default_factory=dict)


class RunMirror:
    """One run and its events.

    Attributes:
        path: Folder of the run.
        status: As last seen.
        num_events: Events written.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        """Note where an earlier mirror has ended, and write nothing.

        Raises:
            UserError: The folder cannot be written, another process writes there, or it holds events of something else.
        """
        self.path = run.path
        self.status = ""
        self.num_events = 0
        self._logs = _own_logs(run.path.resolve(), folder)
        self._ranks: dict[int, _Rank] = {}
        self._failing_since_s: float | None = None
        self._stack = ExitStack()
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._logs}: cannot be written: {error.strerror}") from None
        self._stack.enter_context(sole_writer(self._logs))
        state = self._logs / _STATE
        if state.exists():
            kept = json.loads(state.read_text(encoding="utf-8"))
            self._ranks = {int(rank): _Rank(*each) for rank, each in kept["ranks"].items()}
        elif any(self._logs.glob("rank-*")):
            self._stack.close()
            raise UserError(f"{self._logs}: holds events already; TensorBoard would show both")

    def __enter__(self) -> RunMirror:
        """Return the mirror, to be closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        for rank in self._ranks.values():
            if rank.file is not None:
                rank.file.close()
        self._stack.close()

    def look(self) -> str:
        """Write what is new, and return the run's status; while a resume replaces its files, nothing.

        Raises:
            ResultsError: The files could not be read for a minute.
            UserError: The events cannot be written.
        """
        try:
            self.status = self.write_new()
        except ResultsError:
            now_s = time.monotonic()
            self._failing_since_s = now_s if self._failing_since_s is None else self._failing_since_s
            if now_s - self._failing_since_s >= _GIVE_UP_AFTER_S:
                raise
        else:
            self._failing_since_s = None
        return self.status

    def write_new(self) -> str:
        """Write what is new, and return the run's status as it was before: rows that were there then are here now.

        Raises:
            ResultsError: A file is damaged, or being replaced.
            UserError: The events cannot be written.
        """
        run = open_run(self.path)
        try:
            for file in run.all_ranks:
                if file.exists:
                    self._follow(file, self._ranks.setdefault(file.rank, _Rank()))
            self._keep()
        except OSError as error:
            raise UserError(f"{self._logs}: cannot be written: {error.strerror}") from None
        return run.status

    def _follow(self, file: RankFile, rank: _Rank) -> None:
        """Write the new rows of a rank."""
        steps = {
            "updates": file.updates["env_steps"],
            "episodes": file.episodes["env_steps"],
            "energy": _energy_steps(file),
        }
        was_begun_anew = any(len(values) < rank.num_rows.get(name, 0) for name, values in steps.items())
        if file.restarts.num_rows != rank.num_restarts:
            # What lay beyond its checkpoint is gone, and is done again.
            rank.up_to = min(rank.up_to, *_resumed_at(file, rank.num_restarts))
        elif was_begun_anew:
            rank.up_to = 0
        new_energy = np.arange(len(steps["energy"])) >= rank.num_rows.get("energy", 0)
        if rank.file is None or was_begun_anew or file.restarts.num_rows != rank.num_restarts:
            rank.file = rank.file or EventFile(self._logs / file.path.stem)
            rank.file.start_over(rank.up_to)
            rank.num_rows = {name: int(np.searchsorted(values, rank.up_to)) for name, values in steps.items()}
            rank.num_restarts = file.restarts.num_rows
            # What was used after the checkpoint was used all the same: these rows stay, and are not in order.
            new_energy = steps["energy"] >= rank.up_to
        for table in (file.updates, file.episodes):
            self.num_events += rank.file.add(*scalars(table, rank.num_rows[table.schema.name]))
        self.num_events += _add_power(file, rank.file, steps["energy"], new_energy)
        rank.file.flush()
        rank.num_rows = {name: len(values) for name, values in steps.items()}
        # A table without rows yet may still get one of any step.
        rank.up_to = min(int(steps[name][-1]) if len(steps[name]) else 0 for name in ("updates", "episodes"))

    def _keep(self) -> None:
        """Note what is in TensorBoard now."""
        ranks = {str(rank): [each.up_to, each.num_restarts] for rank, each in self._ranks.items()}
        kept = {"run": str(self.path.resolve()), "ranks": ranks}
        part = self._logs / f"{_STATE}.part"
        part.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        part.rename(self._logs / _STATE)


def _own_logs(run: Path, folder: Path) -> Path:
    """Return the folder of a run's events: its name, with a number where another run of that name has the first."""
    for number in count(1):
        logs = folder / (run.name if number == 1 else f"{run.name}-{number}")
        state = logs / _STATE
        if not state.exists() or json.loads(state.read_text(encoding="utf-8"))["run"] == str(run):
            break
    return logs


def _energy_steps(file: RankFile) -> np.ndarray:
    """Return the env steps of a rank at its readings of energy, [R] int64."""
    rows = file.updates.read("time_s", "env_steps")
    at_s = file.energy["time_s"]
    if not len(rows["time_s"]):
        return np.zeros(len(at_s), np.int64)
    steps: np.ndarray = np.interp(at_s, rows["time_s"], rows["env_steps"]).astype(np.int64)
    return steps


def _resumed_at(file: RankFile, num_known: int) -> list[int]:
    """Return the env steps after which a rank began anew, of each restart that is not known yet."""
    rows = file.updates.read("update", "env_steps")
    last = np.searchsorted(rows["update"], file.restarts.read("update", start=num_known)["update"], side="right") - 1
    return [int(rows["env_steps"][i]) if i >= 0 else 0 for i in last] or [0]


def _add_power(file: RankFile, events: EventFile, steps: np.ndarray, new: np.ndarray) -> int:
    """Write the mean power of every source of energy up to its new readings [R] bool, and return how many."""
    rows = file.energy.read("time_s", "host", "source", "energy_j")
    readers = list(zip(rows["host"].tolist(), rows["source"].tolist(), strict=True))
    num_events = 0
    for reader in dict.fromkeys(readers):
        own = np.array([each == reader for each in readers])
        time_s = rows["time_s"][own]
        span_s, used_j = np.diff(time_s, prepend=np.nan), np.diff(rows["energy_j"][own], prepend=np.nan)
        # A restart counts from 0, and may go back in time.
        known = (span_s > 0) & (used_j >= 0)
        chosen = known & new[own]
        power_w = (used_j[chosen] / span_s[chosen])[:, None]
        num_events += events.add([f"energy/{reader[1]}_w"], power_w, steps[own][chosen], time_s[chosen])
    return num_events
