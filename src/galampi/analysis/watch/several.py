"""What is known of several runs that are watched together. Knows nothing of terminals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from galampi.analysis.shown import shown, span
from galampi.analysis.watch.view import RunView
from galampi.errors import ResultsError


class SeveralRuns:
    """Runs as they look from their files; one that has not begun is `missing`, one that is gone `unreadable`.

    Attributes:
        views: By folder, in the order given; None for a run that is not there, or cannot be read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look for the first time.

        Args:
            folders: Of the runs; those of a sweep may have to begin yet.
        """
        self.views: dict[Path, RunView | None] = dict.fromkeys(folders)
        self._unreadable: dict[Path, ResultsError] = {}
        self.look_again()

    def look_again(self) -> None:
        """Take in what is new; a run that cannot be read stays as it was for a minute.

        Raises:
            ResultsError: Of a run that cannot be read, once all others are finished.
        """
        for folder, view in self.views.items():
            # A finished run has nothing new.
            if view is not None and view.status == "finished":
                continue
            if view is None:
                with suppress(ResultsError):
                    self.views[folder] = RunView(folder)
                continue
            try:
                view.look_again()
                self._unreadable.pop(folder, None)
            except ResultsError as error:
                self._unreadable[folder] = error
        if self._unreadable and set(map(self.state, self.views)) <= {"finished", "unreadable"}:
            raise next(iter(self._unreadable.values()))

    def state(self, folder: Path) -> str:
        """Return the status of a run, or `missing` or `unreadable`."""
        view = self.views[folder]
        return "missing" if view is None else "unreadable" if folder in self._unreadable else view.status

    @property
    def status(self) -> str:
        """Return `running` if any run is, else what all are; `waiting` if they differ."""
        states = set(map(self.state, self.views))
        if "running" in states:
            return "running"
        return states.pop() if len(states) == 1 else "waiting"

    @property
    def left_s(self) -> float | None:
        """Seconds until the last of the running runs ends at the present rates; None if nothing moves."""
        left = [view.left_s for view in self._running]
        return max((each for each in left if each is not None), default=None)

    @property
    def _running(self) -> list[RunView]:
        return [view for folder, view in self.views.items() if view is not None and self.state(folder) == "running"]

    def line(self) -> str:
        """Say all in one line."""
        states = Counter(map(self.state, self.views))
        views = [view for view in self.views.values() if view is not None]
        rate = sum(view.env_steps_per_s for view in self._running)
        parts = [
            f"{len(self.views)} runs: " + ", ".join(f"{count} {shown(state)}" for state, count in states.most_common()),
            f"{sum(view.env_steps for view in views):,} steps",
            f"{rate:,.0f} steps/s" if states["running"] else "",
            f"left {span(self.left_s)}" if self.left_s is not None else "",
        ]
        return "  ".join(part for part in parts if part)
