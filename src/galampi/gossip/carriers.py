"""Threads that wait for a network in the place of a rank. They know no MPI: what they do is given to them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

_WORD_THREADS = 64
_STUCK_S = 1.0
"""Time after which threads of which none has come to an end count as stuck."""


class Carrier:
    """Does one task after the other, and waits for the network in the place of the giver."""

    def __init__(self, name: str, fail: Callable[[BaseException], None]) -> None:
        """Start the thread; `fail` is given what ends it."""
        self._fail = fail
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def give(self, task: Callable[[], None]) -> None:
        """Give a task. Waits for nobody."""
        self._tasks.put(task)

    def finish(self) -> None:
        """Wait until all are done."""
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while (task := self._tasks.get()) is not None:
                task()
        except BaseException as error:
            self._fail(error)


class Words:
    """Writes words to ranks, each rank's in their order, in threads that wait for the network in the giver's place.

    A rank that does not answer holds up one of them. A job of a thousand ranks has no thread for each, unless many, as
    those of a whole node, do not.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        """Start no thread yet; `fail` is given what ends one."""
        self._fail = fail
        self._lock = threading.Condition()
        self._tasks: dict[int, deque[Callable[[], None]]] = {}
        self._ranks: SimpleQueue[int] = SimpleQueue()
        self._num_threads, self._most_threads = 0, _WORD_THREADS
        self._has_failed = False
        self._done_s = time.monotonic()

    def give(self, rank: int, task: Callable[[], None]) -> None:
        """Give a task for a rank. Waits for nobody."""
        with self._lock:
            tasks = self._tasks.setdefault(rank, deque())
            tasks.append(task)
            if len(tasks) > 1:
                return
            if len(self._tasks) == 1:
                self._done_s = time.monotonic()
            self._ranks.put(rank)
            self._add_threads()

    def look(self) -> None:
        """Let more threads work if all are stuck."""
        if self._ranks.empty() or time.monotonic() - self._done_s < _STUCK_S:
            return
        with self._lock:
            self._done_s = time.monotonic()
            self._most_threads += _WORD_THREADS
            self._add_threads()

    def _add_threads(self) -> None:
        for _ in range(self._num_threads, min(len(self._tasks), self._most_threads)):
            self._num_threads += 1
            threading.Thread(target=self._work, name=f"galampi-words-{self._num_threads}", daemon=True).start()

    def finish(self) -> None:
        """Wait until all are done, and take no more."""
        with self._lock:
            self._lock.wait_for(lambda: not self._tasks or self._has_failed)
            for _ in range(self._num_threads):
                self._ranks.put(-1)

    def _work(self) -> None:
        try:
            while (rank := self._ranks.get()) >= 0:
                self._do_all(rank)
        except BaseException as error:
            self._fail(error)
            with self._lock:
                self._has_failed = True
                self._lock.notify_all()

    def _do_all(self, rank: int) -> None:
        while True:
            # It stays in its place until it is done, so that no other thread takes the rank's next.
            self._tasks[rank][0]()
            with self._lock:
                self._done_s = time.monotonic()
                self._tasks[rank].popleft()
                if not self._tasks[rank]:
                    del self._tasks[rank]
                    self._lock.notify_all()
                    return
