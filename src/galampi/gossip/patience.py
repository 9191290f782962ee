"""How long a rank waits at its end for others that do not come. Knows no clock: moments are given to it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from galampi.gossip.mixing import Int64s
from galampi.gossip.rules import Stage

SIGNALLED_PATIENCE_S = 5.0
"""How long ranks that were told by a signal to stop wait for one that does not answer."""
SAVING_PATIENCE_S = 20.0
"""How long they wait for messages of one that saves: Slurm kills 30 s after it has asked, where it is told no more."""
TYPICAL_OF = 9
"""Updates whose median says how long one takes: a single stall says nothing."""


def silent_after_s(least_s: float, took_s: Sequence[float]) -> float:
    """Return the time after which another rank counts as silent: one that is as slow as this one is given two updates.

    Args:
        least_s: `gossip.silent_after_s`.
        took_s: Time that each of this rank's last `TYPICAL_OF` updates took; empty before its first.
    """
    return max(least_s, 2 * median(took_s or (0.0,)))


def is_heard_of(method: str) -> bool:
    """Whether ranks hear of one another while they train, by how they average messages, `gossip.method`.

    Where they do not, one that is slow is not told from one that is lost, and is waited for.
    """
    return method != "none"


class Patience:
    """How long a rank waits at its end."""

    def __init__(self, since_s: float, silent_after_s: float, *, hears: bool = True) -> None:
        """Begin to wait.

        Args:
            since_s: When the rank came to its end.
            silent_after_s: Time after which a rank that is not heard of counts as silent; 0 to wait no longer for one
                that is known to be lost.
            hears: As `is_heard_of` tells; without it a rank waits until a signal comes.
        """
        self._since_s = since_s
        self._silent_after_s = silent_after_s
        self._hears = hears
        self._over_s: float | None = None
        self._saved_s: float | None = None

    def is_over(self, now_s: float, signalled_s: float | None) -> bool:
        """Whether to wait no longer.

        Args:
            now_s: This moment.
            signalled_s: When a signal came; None if none has.
        """
        if signalled_s is not None and now_s - max(self._since_s, signalled_s) > SIGNALLED_PATIENCE_S:
            return True
        return self._hears and now_s - self._since_s > max(self._silent_after_s, SIGNALLED_PATIENCE_S)

    def is_over_for_messages(self, stages: Int64s, now_s: float, signalled_s: float | None) -> bool:
        """Whether to wait no longer for messages: once one has given up, the others need not wait as long again.

        One that saves is waited for longer: it answers, and a file system may be busy with what all save at once.

        Args:
            stages: How far each rank is, [n].
            now_s: This moment.
            signalled_s: When a signal came; None if none has.
        """
        if (stages == Stage.SAVED_ALONE).any():
            return True
        return self.is_over(now_s, signalled_s) and not self._lets_save(stages, now_s, signalled_s)

    def ends_job(self, rank: int, stages: Int64s, now_s: float, signalled_s: float | None) -> bool:
        """Whether a rank ends the job without those that have not saved.

        Those that are at their end too are given as much time again, and all are given a moment after this one has
        saved: who hears that it has given up saves at once. The first that has saved ends the job; should it not, any
        other does after as long again, for as long as somebody has not saved.

        Args:
            rank: This one, which has saved.
            stages: How far each rank is, [n].
            now_s: This moment.
            signalled_s: When a signal came; None if none has.
        """
        is_at_end = bool((stages == Stage.SENT_ALL).any()) or self._lets_save(stages, now_s, signalled_s)
        most_s = 2 * max(self._silent_after_s, SIGNALLED_PATIENCE_S)
        if self._saved_s is None:
            self._saved_s = now_s
        may_save_now = now_s - self._saved_s <= SIGNALLED_PATIENCE_S
        since_s = self._since_s
        if not self._hears:
            since_s = now_s if signalled_s is None else max(since_s, signalled_s)
        if now_s - since_s <= most_s and (is_at_end or may_save_now or not self.is_over(now_s, signalled_s)):
            self._over_s = None
            return False
        if self._over_s is None:
            self._over_s = now_s
        is_first = rank == int(np.flatnonzero(stages >= Stage.SAVED)[0])
        return is_first or now_s - self._over_s > max(self._over_s - since_s, SIGNALLED_PATIENCE_S)

    def _lets_save(self, stages: Int64s, now_s: float, signalled_s: float | None) -> bool:
        """Whether somebody saves who is still given time for it."""
        since_s = self._since_s if signalled_s is None else max(self._since_s, signalled_s)
        most_s = SAVING_PATIENCE_S if signalled_s is not None else 2 * max(self._silent_after_s, SIGNALLED_PATIENCE_S)
        return bool((stages == Stage.SAVING).any()) and now_s - since_s <= most_s
