"""Write the results file of one rank.

It is written in HDF5's single-writer-multiple-reader mode from the moment it has its name. Rows are buffered in
memory; `RankWriter.flush` writes the rows first and the number of rows last. That number is the commit: a reader never
looks past it, so a process killed between the two leaves nothing torn.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from galampi.errors import ResultsError
from galampi.results.files import (
    create,
    is_still_at,
    move_into_place,
    open_for_reading,
    partial_name,
    require_room,
    writing,
)
from galampi.results.job_file import Attribute
from galampi.results.schema import (
    EDGES,
    ENERGY,
    EPISODES,
    FAILURES,
    MOST_NUMBERS,
    NUM_ROWS,
    RANK_FORMAT,
    RESTARTS,
    SKETCH,
    UPDATES,
    UpdateRow,
    with_numbers,
)
from galampi.results.sketch import Sketch
from galampi.results.table import TableWriter, own_numbers

MOST_TRACEBACK_BYTES = np.dtype(next(column.dtype for column in FAILURES if column.name == "traceback")).itemsize
_LEAST_ROOM_BYTES = 256 << 10
"""Several times what a file without rows takes."""


class Position(NamedTuple):
    """How many rows of each table are written."""

    num_updates: int
    num_episodes: int
    num_sketches: int


@dataclass(frozen=True, kw_only=True)
class Restart:
    """What a resume records in the `restarts` table; the time of day is added when it is written."""

    update: int
    """Number of the last update that counts, that of the checkpoint."""
    time_s: float
    """Job time of the checkpoint."""
    reason: str
    """Why and how the job was restarted, for people."""
    weights_restarted: bool
    """Whether push-sum begins anew with every weight 1."""
    changes: str = ""
    """Settings that hold since, where they differ from those before, for people."""

    def row(self) -> tuple[int, float, str, str, int, str]:
        """Return the columns of the table after the first, as of now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self.update, self.time_s, now, self.reason, int(self.weights_restarted), self.changes


class RankWriter:
    """The results file of one rank.

    The file appears under its name complete with all its (empty or copied) tables; until then it is being
    made beside it as `NAME.part`.
    """

    def __init__(
        self,
        path: Path,
        *,
        rank: int,
        thinning: int = 1,
        sketch: Sketch | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        resume_at: Position | None = None,
        restart: Restart | None = None,
    ) -> None:
        """Start a new file, or resume the one at `path`.

        To resume is to copy the rows up to `resume_at` into a fresh file that takes the old one's place: a
        file whose writer was killed cannot be opened for writing again. Until the new file is complete the
        old one stays.

        Args:
            path: The file, `OUT/rank-0000.h5`. Its folder is created.
            rank: Rank that writes it.
            thinning: Keep the rows of updates that are a multiple of it.
            sketch: The sketch whose values `write_sketch` gets; None if the job makes none.
            attributes: Further root attributes. When resuming they are added to the old ones.
            resume_at: Rows that count, as `position` gave them to the checkpoint; None for a new file.
            restart: What to record of the resume; given exactly if `resume_at` is.

        Raises:
            ResultsError: A new file would replace one; or the file to resume is missing, damaged, holds fewer
                rows than `resume_at`, or was written with another thinning or sketch.
        """
        if (resume_at is None) != (restart is None):
            raise ValueError("resume_at and restart belong together")
        if resume_at is None and path.exists():
            raise ResultsError(f"{path}: exists already; resume the run, or choose another directory")
        self.path = path
        self.thinning = thinning
        self._sketch = sketch
        self._numbers: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._new_file():
            own = {"rank": rank, "thinning": thinning}
            self._file.attrs.update({**(attributes or {}), **own})
            if resume_at is not None:
                self._numbers = _numbers_of(path)
            restarts = self._make_tables()
            if resume_at is not None and restart is not None:
                self._copy(resume_at, restart.update, restarts)
                restarts.rows.append((restarts.num_rows + 1, *restart.row()))
                restarts.write_rows()
                restarts.commit()

    def write_update(self, row: UpdateRow) -> None:
        """Buffer one row of `updates`, unless thinning drops it."""
        if row.update % self.thinning == 0:
            self._updates.rows.append(row)

    def write_episode(
        self,
        *,
        episodic_return: float,
        length: int,
        env_steps: int,
        time_s: float,
        simulator: int,
        numbers: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Buffer one row of `episodes`. `schema.EPISODES` says what each value is.

        Numbers of the environment's own become columns of these names, `MOST_NUMBERS` at most. Whenever a name is new,
        all that is written is copied into a file that has the column, for one that is read meanwhile cannot get it.
        """
        named = {_column_name(name): value for name, value in numbers.items()}
        if (new := [name for name in named if name not in self._numbers]) and len(self._numbers) < MOST_NUMBERS:
            self._add_numbers(new[: MOST_NUMBERS - len(self._numbers)])
        table = self._episodes
        number = table.num_rows + len(table.rows) + 1
        own = (named.get(name, math.nan) for name in self._numbers)
        table.rows.append((number, episodic_return, length, env_steps, time_s, simulator, *own))

    def write_failure(
        self, *, update: int, time_s: float, simulator: int, simulator_episode: int, error: str, traceback: str
    ) -> None:
        """Buffer one row of `failures`. `schema.FAILURES` says what each value is."""
        number = self._failures.num_rows + len(self._failures.rows) + 1
        texts = error.encode("ascii", "replace"), traceback.encode("ascii", "replace")[-MOST_TRACEBACK_BYTES:]
        self._failures.rows.append((number, update, time_s, simulator, simulator_episode, *texts))

    def write_sketch(self, update: int, time_s: float, values: ArrayLike) -> None:
        """Buffer one row of `sketch`: the `[size]` sketch of z after an update."""
        assert self._sketches is not None, "the writer was made without a sketch"
        # A copy, for the caller may use its array again before the next flush.
        self._sketches.rows.append((update, time_s, np.array(values, np.float32)))

    def write_edges(
        self,
        update: int,
        time_s: float,
        hops: Iterable[int],
        sent: Iterable[int],
        received: Iterable[int],
        skipped: Iterable[int],
    ) -> None:
        """Buffer one row of `edges` for each hop: its counts since the last (re)start, each `[num_hops]`."""
        for counts in zip(hops, sent, received, skipped, strict=True):
            self._edges.rows.append((self._edges.num_rows + len(self._edges.rows) + 1, update, time_s, *counts))

    def write_energy(self, time_s: float, host: str, energy_j: Mapping[str, float]) -> None:
        """Buffer one row of `energy` for each source: what it has counted since the last (re)start."""
        for source, joules in energy_j.items():
            number = self._energy.num_rows + len(self._energy.rows) + 1
            names = (name.encode("ascii", "replace") for name in (host, source))
            self._energy.rows.append((number, time_s, *names, joules))

    def flush(self) -> None:
        """Write what is buffered and commit it, so that readers see it and `kill -9` cannot take it.

        Local. The rows reach the operating system, not necessarily the disk; `position` waits for that.

        Raises:
            OSError: The disk is full or broken; what had been committed stays readable.
        """
        changed = [table for table in self._tables() if table.rows]
        if not changed:
            return
        with writing(self.path):
            for table in changed:
                table.write_rows()
            self._file.flush()
            for table in changed:
                table.commit()
            self._file.flush()

    def position(self) -> Position:
        """Flush, wait for the disk, and say how many rows there are; what a checkpoint stores to resume here.

        It flushes because a checkpoint must never count rows that are lost with the process.
        """
        self.flush()
        self._sync()
        num_sketches = self._sketches.num_rows if self._sketches is not None else 0
        return Position(self._updates.num_rows, self._episodes.num_rows, num_sketches)

    def close(self) -> None:
        """Flush and close. The writer cannot be used afterwards; closing twice does nothing."""
        if self._file:
            self.flush()
            with writing(self.path):
                self._file.close()

    def __enter__(self) -> Self:
        """Return the writer, to be closed at the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    @contextmanager
    def _new_file(self) -> Iterator[None]:
        """Make a file in the body, which then takes the place of one that is there."""
        # Where a file that does not fit cannot be closed, room is looked for before.
        copied_bytes = self.path.stat().st_size if self.path.exists() and not _can_close_unwritten() else 0
        require_room(partial_name(self.path), _LEAST_ROOM_BYTES + copied_bytes)
        with writing(partial_name(self.path)):
            self._file = create(partial_name(self.path), RANK_FORMAT)
            try:
                yield
                self._sync()
                self._file.swmr_mode = True
            except BaseException:
                partial_name(self.path).unlink(missing_ok=True)
                self._close_unwritten()
                raise
        move_into_place(self.path)

    def _close_unwritten(self) -> None:
        """Close a file that nobody is to read: what HDF5 has yet to write of it goes to memory, and is gone with it.

        On a full disk it would fail to, and end the process when the parts of the file are let go.
        """
        if _can_close_unwritten():
            elsewhere = os.memfd_create("galampi")
            os.ftruncate(elsewhere, os.fstat(self._file.id.get_vfd_handle()).st_size)
            os.dup2(elsewhere, self._file.id.get_vfd_handle(), inheritable=False)
            os.close(elsewhere)
        with suppress(OSError, RuntimeError):
            self._file.close()

    def _make_tables(self) -> TableWriter:
        """Create all tables, and return the one that is never written again."""
        self._updates = TableWriter(self._file, UPDATES)
        self._episodes = TableWriter(self._file, with_numbers(self._numbers))
        self._sketches = TableWriter(self._file, SKETCH, self._sketch) if self._sketch is not None else None
        self._edges = TableWriter(self._file, EDGES)
        self._energy = TableWriter(self._file, ENERGY)
        self._failures = TableWriter(self._file, FAILURES)
        return TableWriter(self._file, RESTARTS)

    def _add_numbers(self, names: Iterable[str]) -> None:
        self.flush()
        self._file.close()
        self._numbers += names
        with open_for_reading(self.path, RANK_FORMAT) as old, self._new_file():
            for name, value in old.attrs.items():
                self._file.attrs[name] = value
            restarts = self._make_tables()
            for table in (*self._tables(), restarts):
                table.copy(old, None)

    def _tables(self) -> list[TableWriter]:
        tables = (self._updates, self._episodes, self._sketches, self._edges, self._energy, self._failures)
        return [table for table in tables if table is not None]

    @property
    def is_in_place(self) -> bool:
        """Whether what lies at its path is the file that it writes: it may have been renamed or removed."""
        return is_still_at(self.path, os.fstat(self._file.id.get_vfd_handle()))

    def _sync(self) -> None:
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.id.get_vfd_handle())

    def _copy(self, position: Position, update: int, restarts: TableWriter) -> None:
        """Copy the rows up to `position`, all restarts, and the attributes that are not given anew."""
        try:
            old = open_for_reading(self.path, RANK_FORMAT)
        except FileNotFoundError as error:
            raise ResultsError(f"{self.path}: no such file; the checkpoint cannot be resumed without it") from error
        with old:
            for name, value in old.attrs.items():
                if name not in self._file.attrs:
                    self._file.attrs[name] = value
            if old.attrs["thinning"] != self.thinning:
                raise ResultsError(
                    f"{self.path}: thinning is {old.attrs['thinning']}, the job now asks for {self.thinning}"
                )
            lengths = zip((UPDATES, EPISODES, SKETCH), position, strict=True)
            for table, (schema, num_rows) in zip((self._updates, self._episodes, self._sketches), lengths, strict=True):
                if table is not None:
                    table.copy(old, num_rows)
                elif schema.name in old:
                    raise ResultsError(f"{self.path}: holds sketches, the job now asks for none")
            if EDGES.name in old:
                edges = old[EDGES.name]
                updates = edges["update"][: edges[NUM_ROWS][()]]
                self._edges.copy(old, int(np.searchsorted(updates, update, side="right")))
            if ENERGY.name in old:
                # What was used after the checkpoint was used all the same.
                self._energy.copy(old, None)
            if FAILURES.name in old:
                self._failures.copy(old, None)
            restarts.copy(old, None)


def _can_close_unwritten() -> bool:
    return hasattr(os, "memfd_create")  # Of Linux.


def _column_name(name: str) -> str:
    """Return the column of a number: HDF5 has no `/` in names; the schema's own, and data frames' `rank`, are taken."""
    column = name.replace("/", "_").replace("\0", "_").strip(".") or "_"
    return f"{column}_" if column in {*(column.name for column in EPISODES), NUM_ROWS, "rank"} else column


def _numbers_of(path: Path) -> list[str]:
    """Return the environment's own columns in the file to resume; none if it is not there, which is told later."""
    try:
        with open_for_reading(path, RANK_FORMAT) as old:
            return own_numbers(old)
    except FileNotFoundError:
        return []
