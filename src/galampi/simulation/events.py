"""Virtual time: what happens when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

_Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class Events:
    """Calls in the order of their moments; those of one moment in the order they were asked for.

    Attributes:
        now_s: This moment, s.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.now_s = 0.0
        self._queue: list[_Event] = []
        self._num_asked = 0

    def at(self, moment_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at a moment, which is not before this one."""
        self._num_asked += 1
        heapq.heappush(self._queue, (moment_s, self._num_asked, call, arguments))

    def run(self, until_s: float, most: int | None = None) -> bool:
        """Make the calls up to a moment, and those that they ask for.

        Args:
            until_s: The moment.
            most: Make so many at most; None for all.

        Returns:
            Whether there is more to do until then.
        """
        queue, left = self._queue, -1 if most is None else most
        while left and queue and queue[0][0] <= until_s:
            self.now_s, _, call, arguments = heapq.heappop(queue)
            call(*arguments)
            left -= 1
        if queue and queue[0][0] <= until_s:
            return True
        if queue:
            self.now_s = until_s
        return False
