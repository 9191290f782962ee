"""TensorBoard as a place: event files, and how it is made to forget rows that a resume has replaced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from galampi.analysis.mirror.place import own_folder, read_state, write_state
from galampi.analysis.mirror.rows import RankRows, Scalars
from galampi.errors import UserError
from galampi.results.reader import Run
from galampi.results.sole import sole_writer


class EventFile:
    """A new event file in a folder; what others there hold stays."""

    def __init__(self, folder: Path) -> None:
        """Create it, and its folder if missing.

        Raises:
            UserError: tensorboardX is not installed, or the file cannot be written.
        """
        try:
            # Not EventFileWriter, whose flush leaves behind what another thread has yet to write.
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ModuleNotFoundError:
            raise UserError("--tensorboard needs tensorboardX: pip install 'galampi[export]'") from None
        self._events, self._summaries = event_pb2, summary_pb2
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names, which else tell but the second.
            number = len(list(folder.iterdir()))
            self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{number:06}")
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None

    def add(self, rows: Scalars) -> int:
        """Add rows as events, and return how many; what is not finite is left out.

        The time is the job time, counted from 1970, so that TensorBoard's relative axis is right.
        """
        for row, step, time_s in zip(rows.values.tolist(), rows.steps.tolist(), rows.times_s.tolist(), strict=True):
            values = [
                self._summaries.Summary.Value(tag=tag, simple_value=value)
                for tag, value in zip(rows.tags, row, strict=True)
                if np.isfinite(value)
            ]
            summary = self._summaries.Summary(value=values)
            self._writer.write_event(self._events.Event(wall_time=time_s, step=step, summary=summary))
        return len(rows)

    def start_over(self, step: int) -> None:
        """Let TensorBoard forget every event of this step and later ones that it has read before."""
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.write_event(self._events.Event(step=step, session_log=log))

    def flush(self) -> None:
        """Write all that was added."""
        self._writer.flush()

    def close(self) -> None:
        """Write all that was added, and end."""
        self._writer.close()


@dataclass
class _Rank:
    """What is in TensorBoard of one rank.

    Attributes:
        up_to: Env steps up to which every row is there.
        num_restarts: Restarts of the rank that are allowed for.
        first_s: Of the rows that are there; None if not known.
        file: Where events go; None before the first.
        num_rows: Rows of each table that are there, by its name or tag.
    """

    up_to: int = 0
    num_restarts: int = 0
    first_s: float | None = None
    file: EventFile | None = None
    num_rows: dict[str, int] = field(default_factory=dict)


class TensorBoardPlace:
    """One run in TensorBoard's log folder; each rank becomes a TensorBoard run `RUN/rank-0000` there.

    What is there already is kept in `mirror.json`: for each rank the env steps up to which every row is there. From
    there a mirror that was ended goes on. Where the run itself was resumed from a checkpoint, and the rows after it are
    gone, TensorBoard is told to forget them.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        """Find where an earlier mirror has ended, or take a folder for the run.

        Raises:
            UserError: The folder cannot be written, another process writes there, or it holds events of something else.
        """
        self.news: list[str] = []
        self._run = run.path.resolve()
        self._logs = own_folder(self._run, folder)
        self._ranks: dict[int, _Rank] = {}
        self._stack = ExitStack()
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._logs}: cannot be written: {error.strerror}") from None
        self._stack.enter_context(sole_writer(self._logs))
        if (kept := read_state(self._logs)) is not None:
            self._ranks = {int(rank): _Rank(*each) for rank, each in kept["ranks"].items()}
        elif any(self._logs.glob("rank-*")):
            self._stack.close()
            raise UserError(f"{self._logs}: holds events already; TensorBoard would show both")
        self._keep()

    def write(self, run: Run, ranks: Sequence[RankRows]) -> int:
        """Write what is new; TensorBoard knows no status of a run."""
        try:
            num_events = sum(self._follow(rows, self._ranks.setdefault(rows.rank, _Rank())) for rows in ranks)
            self._keep()
        except OSError as error:
            raise UserError(f"{self._logs}: cannot be written: {error.strerror}") from None
        return num_events

    def close(self) -> None:
        """Close every file, and let others write."""
        for rank in self._ranks.values():
            if rank.file is not None:
                rank.file.close()
        self._stack.close()

    def _keep(self) -> None:
        """Note what is in TensorBoard now."""
        ranks = {str(rank): [each.up_to, each.num_restarts, each.first_s] for rank, each in self._ranks.items()}
        first_s = self._ranks[0].first_s if 0 in self._ranks else None
        write_state(self._logs, {"run": str(self._run), "first_s": first_s, "ranks": ranks})

    def _follow(self, rows: RankRows, rank: _Rank) -> int:
        """Write the new rows of a rank."""
        lengths = {name: rows.num_rows(name) for name in rows.tables}
        lengths |= {tag: len(power) for tag, power in rows.power.items()}
        was_begun_anew = rows.was_begun_anew_since(rank.first_s)
        was_resumed = rows.num_restarts != rank.num_restarts
        lacks_rows = any(lengths.get(name, 0) < number for name, number in rank.num_rows.items())
        if was_begun_anew or (lacks_rows and not was_resumed):
            rank.up_to = 0
        elif was_resumed:
            # What lay beyond its checkpoint is gone, and is done again.
            rank.up_to = min(rank.up_to, rows.resumed_at(rank.num_restarts))
        starts_over = rank.file is None or was_begun_anew or was_resumed or lacks_rows
        rank.file = rank.file or EventFile(self._logs / rows.name)
        if starts_over:
            rank.file.start_over(rank.up_to)
            rank.num_rows = {name: rows.first_row(name, rank.up_to) for name in rows.tables}
            rank.num_restarts = rows.num_restarts
        num_events = sum(rank.file.add(rows.read(name, rank.num_rows[name])) for name in rows.tables)
        for tag, power in rows.power.items():
            new = power.steps >= rank.up_to if starts_over else np.arange(len(power)) >= rank.num_rows.get(tag, 0)
            num_events += rank.file.add(power[new])
        rank.file.flush()
        rank.num_rows = lengths
        rank.first_s = rank.first_s if rows.first_s is None else rows.first_s
        # A table without rows yet may still get one of any step.
        rank.up_to = min(rows.last_step(name) for name in rows.tables)
        return num_events
