"""One run followed: what its files hold that the places do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from galampi.analysis.mirror.place import OpenPlace
from galampi.analysis.mirror.rows import RankRows
from galampi.errors import ResultsError
from galampi.results.reader import Run, open_run

GIVE_UP_AFTER_S = 60.0


class RunMirror:
    """One run and the places it is mirrored to.

    Attributes:
        path: Folder of the run.
        status: As last seen.
        num_events: Rows written, to all places together.
    """

    def __init__(self, run: Run, places: Sequence[OpenPlace], num_ranks: int | None = None) -> None:
        """Find where an earlier mirror has ended, and send nothing.

        Args:
            run: The run.
            places: Where to.
            num_ranks: Only so many of its first ranks; None for all.

        Raises:
            UserError: A place cannot be written, or another process writes there.
        """
        self.path = run.path
        self.status = ""
        self.num_events = 0
        self._num_ranks = num_ranks
        self._failing_since_s: float | None = None
        self._rows: dict[int, RankRows] = {}
        with ExitStack() as stack:
            self._places = []
            for each in places:
                self._places.append(each(run))
                stack.callback(self._places[-1].close)
            self._stack = stack.pop_all()

    def __enter__(self) -> RunMirror:
        """Return the mirror, to be closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close every place."""
        self.close()

    def close(self) -> None:
        """Write all that was handed over, and hold no file any more. A second call does nothing."""
        self._stack.close()

    def look(self) -> str:
        """Write what is new, and return the run's status; while a resume replaces its files, nothing.

        Raises:
            ResultsError: The files could not be read for a minute.
            UserError: A place cannot be written.
        """
        try:
            self.status = self.write_new()
        except ResultsError:
            now_s = time.monotonic()
            self._failing_since_s = now_s if self._failing_since_s is None else self._failing_since_s
            if now_s - self._failing_since_s >= GIVE_UP_AFTER_S:
                raise
        else:
            self._failing_since_s = None
        return self.status

    def write_new(self) -> str:
        """Write what is new, and return the run's status as it was before: rows that were there then are here now.

        Raises:
            ResultsError: A file is damaged, or being replaced.
            UserError: A place cannot be written.
        """
        run = open_run(self.path)
        ranks = [file for file in run.all_ranks if self._num_ranks is None or file.rank < self._num_ranks]
        self._rows = {file.rank: RankRows(file, self._rows.get(file.rank)) for file in ranks if file.exists}
        rows = list(self._rows.values())
        for place in self._places:
            self.num_events += place.write(run, rows)
        return run.status

    def news(self) -> list[str]:
        """Return the lines that the places have for the user since they were asked last."""
        lines = []
        for place in self._places:
            lines += place.news
            place.news = []
        return lines
