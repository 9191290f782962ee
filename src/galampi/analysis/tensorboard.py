"""TensorBoard's event files, and the rows of a run as events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galampi.errors import UserError
from galampi.results.reader import Table

Floats = NDArray[np.float64]


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

    def add(self, tags: Sequence[str], rows: Floats, steps: NDArray[np.int64], times_s: Floats) -> int:
        """Add rows [R, T] as events with steps [R] and times [R], and return R; what is not finite is left out."""
        for row, step, time_s in zip(rows.tolist(), steps.tolist(), times_s.tolist(), strict=True):
            values = [
                self._summaries.Summary.Value(tag=tag, simple_value=value)
                for tag, value in zip(tags, row, strict=True)
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


def scalars(table: Table, start: int = 0) -> tuple[list[str], Floats, NDArray[np.int64], Floats]:
    """Return the tags of a table's columns, and its rows from one on: values [R, T], steps [R] and times [R].

    The step is the row's `env_steps`; the time is the job time, counted from 1970, so that TensorBoard's relative axis
    is right.
    """
    columns = table.read(start=start)
    steps, times_s = columns.pop("env_steps"), columns.pop("time_s")
    columns.pop(table.schema.scale if table.schema.name == "episodes" else "", None)
    tags = [f"{table.schema.name}/{name}" for name in columns]
    return tags, np.stack([np.asarray(values, np.float64) for values in columns.values()], axis=1), steps, times_s
