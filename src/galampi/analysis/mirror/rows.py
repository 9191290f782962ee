"""The rows of a rank as points of curves over its env steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from galampi.results.reader import RankFile, Table
from galampi.results.schema import EPISODES, UPDATES

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

_TAIL_ROWS = 4096


@dataclass(frozen=True)
class Scalars:
    """Rows of one table.

    Attributes:
        tags: Name of each column, as `updates/entropy`.
        values: [R, T]; not finite where there is none.
        steps: Env steps of the rank, [R].
        times_s: Job time, [R].
    """

    tags: list[str]
    values: Floats
    steps: Steps
    times_s: Floats

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.steps)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Scalars:
        """Return some of the rows."""
        return Scalars(self.tags, self.values[rows], self.steps[rows], self.times_s[rows])


class RankRows:
    """What a rank has recorded by now.

    Attributes:
        rank: Its number.
        name: `rank-0000`.
        num_restarts: How often it was resumed.
        first_s: Job time of its first update that is recorded; None if there is none. It stays through every resume,
            so another one tells of a run that was begun anew.
        tables: Names of those whose rows are curves, `updates` and `episodes`; env steps ascend in them.
        power: Mean power of each source since the reading before, by its tag. A resume takes none of these rows away:
            what was used after the checkpoint was used all the same. So their steps may go back.
    """

    tables = (UPDATES.name, EPISODES.name)

    def __init__(self, file: RankFile, before: RankRows | None = None) -> None:
        """Read the power, and of the rows no more than is asked for: a run of days has millions.

        Args:
            file: Of the rank.
            before: What was there when it was looked at last; None the first time.

        Raises:
            ResultsError: The file is damaged, or being replaced.
        """
        self._file = file
        self.rank = file.rank
        self.name = file.path.stem
        self.num_restarts = file.restarts.num_rows
        first = file.updates.read("time_s", stop=1)["time_s"]
        self.first_s = float(first[0]) if len(first) else None
        self._tables = {table.schema.name: table for table in (file.updates, file.episodes)}
        is_same = before is not None and (before.num_restarts, before.first_s) == (self.num_restarts, self.first_s)
        self._clock: tuple[Floats, Floats] = np.zeros(0), np.zeros(0)
        if before is not None and is_same:
            self._clock = before._clock
        self.power = self._power()

    def num_rows(self, name: str) -> int:
        """Return how many rows a table has."""
        return self._tables[name].num_rows

    def last_step(self, name: str) -> int:
        """Return the env steps of a table's last row; 0 if it has none.

        Raises:
            ResultsError: The file is damaged, or being replaced.
        """
        last = self._tables[name].read("env_steps", start=-1)["env_steps"]
        return int(last[-1]) if len(last) else 0

    def first_row(self, name: str, step: int, side: Literal["left", "right"] = "left") -> int:
        """Return the first row of a table that has these env steps, or on the right more; see `numpy.searchsorted`.

        Raises:
            ResultsError: The file is damaged, or being replaced.
        """
        table = self._tables[name]
        # What is asked for is nearly always near the end.
        start = max(0, table.num_rows - _TAIL_ROWS)
        steps = table.read("env_steps", start=start)["env_steps"]
        if start and steps[0] >= step:
            start, steps = 0, table["env_steps"]
        return start + int(np.searchsorted(steps, step, side))

    def was_begun_anew_since(self, first_s: float | None) -> bool:
        """Whether the rows are of another run than those whose first had this time; False while one is not known."""
        return None not in (first_s, self.first_s) and first_s != self.first_s

    def read(self, name: str, start: int) -> Scalars:
        """Read the rows of `updates` or `episodes` from one on.

        Raises:
            ResultsError: The file is damaged, or being replaced.
        """
        return _scalars(self._tables[name], start)

    def resumed_at(self, num_known: int) -> int:
        """Return the least env steps after which the rank went on, of the restarts that are not known yet."""
        rows = self._file.updates.read("update", "env_steps")
        restarts = self._file.restarts.read("update", start=num_known)["update"]
        last = np.searchsorted(rows["update"], restarts, side="right") - 1
        return min([int(rows["env_steps"][i]) if i >= 0 else 0 for i in last], default=0)

    def _power(self) -> dict[str, Scalars]:
        """Return the mean power of every source at its readings but the first, which has none before it."""
        rows = self._file.energy.read("time_s", "host", "source", "energy_j")
        if not len(rows["time_s"]):
            return {}
        new = self._file.updates.read("time_s", "env_steps", start=len(self._clock[0]))
        times_s, of_updates = self._clock
        self._clock = np.append(times_s, new["time_s"]), np.append(of_updates, new["env_steps"])
        steps = np.zeros(len(rows["time_s"]), np.int64)
        if len(self._clock[0]):
            steps = np.interp(rows["time_s"], *self._clock).astype(np.int64)
        return _power_of(rows, steps)


def _scalars(table: Table, start: int) -> Scalars:
    """Read rows of a table; the time is the job time, which counts from 0."""
    columns = table.read(start=start)
    steps, times_s = columns.pop("env_steps"), columns.pop("time_s")
    columns.pop(table.schema.scale if table.schema.name == "episodes" else "", None)
    tags = [f"{table.schema.name}/{name}" for name in columns]
    values = [np.asarray(column, np.float64) for column in columns.values()]
    return Scalars(tags, np.stack(values, axis=1), steps, times_s)


def _power_of(rows: dict[str, NDArray[Any]], steps: Steps) -> dict[str, Scalars]:
    """Return the mean power of every source that was read, at its readings but the first.

    Args:
        rows: Columns of `/energy`, [E] each.
        steps: Env steps at each reading, [E].
    """
    readers = np.array([f"{host}\n{source}" for host, source in zip(rows["host"], rows["source"], strict=True)])
    power_w = np.full(len(readers), np.nan)
    for reader in np.unique(readers):
        own = np.flatnonzero(readers == reader)
        span_s, used_j = np.diff(rows["time_s"][own]), np.diff(rows["energy_j"][own])
        # A restart counts from 0, and may go back in time.
        known = (span_s > 0) & (used_j >= 0)
        power_w[own[1:][known]] = used_j[known] / span_s[known]
    found = {}
    for source in dict.fromkeys(rows["source"].tolist()):
        own = np.flatnonzero((rows["source"] == source) & np.isfinite(power_w))
        tag = f"energy/{source}_w"
        found[tag] = Scalars([tag], power_w[own][:, None], steps[own], rows["time_s"][own])
    return found
