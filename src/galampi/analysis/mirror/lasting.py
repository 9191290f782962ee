"""Places that keep what they were given: how curves stay single-valued where nothing can be taken back.

A resume from a checkpoint replaces the rows after it. These places cannot forget them, so the rows that are done again
are sent only beyond the env steps that are there: each curve has one value at each env step, which the run did have,
and goes on with the run. A second curve for what follows a resume would put a run that is requeued every day, mostly at
its very last row, in as many pieces. Which stretch is of before a resume is told and noted at the place. Power is the
exception: its readings stay in the run's files through a resume, so all are sent, and its curve may go back.

A run that was begun anew in the same folder shares nothing with the one before, and gets a name of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from galampi.analysis.mirror.rows import RankRows, Scalars, Steps
from galampi.results.reader import Run

ENDS = ("finished", "stopped", "partial", "failed")
"""Statuses of a run whose ranks have ended; but for the first it may be resumed."""


@dataclass
class Sent:
    """What a place holds of one rank.

    Attributes:
        first_s: Of the rows that are there, as `RankRows` has it.
        num_restarts: Restarts of the rank that are allowed for.
        tables: Of each table the last env steps that are there, and how many rows of these.
        num_readings: How many values of power are there, by tag.
        num_rows: How many rows of all kinds.
    """

    first_s: float
    num_restarts: int
    tables: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_readings: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0

    def first_new(self, name: str, rows: RankRows) -> int:
        """Return the first row of a table that is not there."""
        last, number = self.tables.get(name, (-1, 0))
        return min(rows.first_row(name, last, "left") + number, rows.first_row(name, last, "right"))

    def add(self, name: str, steps: Steps) -> None:
        """Note that rows of a table are there now."""
        self.num_rows += len(steps)
        if len(steps):
            last, number = self.tables.get(name, (-1, 0))
            new = int(steps[-1])
            self.tables[name] = (new, int((steps == new).sum()) + (number if new == last else 0))


class LastingPlace(ABC):
    """A run at such a place, where each rank has curves of its own."""

    _what = ""
    _num_values_at_once = 1000

    def __init__(self) -> None:
        self.news: list[str] = []
        self._shield: Callable[[], AbstractContextManager[None]] = nullcontext
        """What a piece is sent under."""
        self._sent: dict[int, Sent] = {}

    def write(self, run: Run, ranks: Sequence[RankRows]) -> int:
        """Write what is not there yet, and the run's status; return how many rows that was."""
        begun = [rows for rows in ranks if rows.first_s is not None]
        if any(rows.rank in self._sent and rows.was_begun_anew_since(self._sent[rows.rank].first_s) for rows in begun):
            self._begin_anew(run)
            self._sent.clear()
        num_rows = sum(self._write_rank(run, rows) for rows in begun)
        self._note(run.status)
        return num_rows

    def _write_rank(self, run: Run, rows: RankRows) -> int:
        """Write the new rows of a rank that has some."""
        assert rows.first_s is not None
        if rows.rank not in self._sent:
            num_rows = self._create(run, rows)
            self._sent[rows.rank] = Sent(rows.first_s, rows.num_restarts, num_rows=num_rows)
        sent = self._sent[rows.rank]
        if rows.num_restarts != sent.num_restarts:
            last, resumed_at = sent.tables.get("updates", (0, 0))[0], rows.resumed_at(sent.num_restarts)
            if last > resumed_at:
                stretch = f"env steps {resumed_at:,} to {last:,} are as they were before a resume"
                self._mark(rows.rank, stretch)
                self.news.append(f"{run.path}: {rows.name}: {stretch} in {self._what}")
            sent.num_restarts = rows.num_restarts
        num_rows = 0
        for name in rows.tables:
            new = rows.read(name, sent.first_new(name, rows))
            for piece in self._pieces(new):
                with self._shield():
                    self._send(rows.rank, piece)
                    sent.add(name, piece.steps)
            num_rows += len(new)
        for tag, power in rows.power.items():
            new = power[sent.num_readings.get(tag, 0) :]
            for piece in self._pieces(new):
                with self._shield():
                    self._send(rows.rank, piece)
                    sent.num_readings[tag] = sent.num_readings.get(tag, 0) + len(piece)
                    sent.num_rows += len(piece)
            num_rows += len(new)
        return num_rows

    def _pieces(self, rows: Scalars) -> Iterator[Scalars]:
        """Yield the rows in pieces of whole rows, of so many values as the place takes at once."""
        size = max(1, self._num_values_at_once // len(rows.tags))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    @abstractmethod
    def _create(self, run: Run, rows: RankRows) -> int:
        """Make what holds a rank's curves; return how many rows are there already, of a mirror that noted none."""

    @abstractmethod
    def _send(self, rank: int, rows: Scalars) -> None:
        """Send rows; what is not finite is left out."""

    @abstractmethod
    def _mark(self, rank: int, stretch: str) -> None:
        """Note which stretch of a rank's curves is of before a resume."""

    @abstractmethod
    def _note(self, status: str) -> None:
        """Note what is there now, and that the run has this status."""

    @abstractmethod
    def _begin_anew(self, run: Run) -> None:
        """End what is there, and take another name for the run."""

    @abstractmethod
    def close(self) -> None:
        """Write all that was handed over, and end."""
