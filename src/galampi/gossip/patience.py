"""How long a rank waits at its end for others that do not come. Knows no clock: moments are given to it."""

from __future__ import annotations

from dataclasses import dataclass

from galampi.gossip.mixing import Int64s
from galampi.gossip.rules import Stage

SIGNALLED_PATIENCE_S = 5.0
"""How long ranks that were told by a signal to stop wait for one that does not answer."""


@dataclass(frozen=True)
class Patience:
    """How long a rank waits at its end.

    Attributes:
        since_s: When it came to its end.
        silent_after_s: Time after which a rank that is not heard of counts as silent; 0 to wait no longer for one
            that is known to be lost.
    """

    since_s: float
    silent_after_s: float

    def is_over(self, now_s: float, signalled_s: float | None) -> bool:
        """Whether to wait no longer.

        Args:
            now_s: This moment.
            signalled_s: When a signal came; None if none has.
        """
        if signalled_s is not None and now_s - max(self.since_s, signalled_s) > SIGNALLED_PATIENCE_S:
            return True
        return now_s - self.since_s > max(self.silent_after_s, SIGNALLED_PATIENCE_S)

    def is_over_for_messages(self, stages: Int64s, now_s: float, signalled_s: float | None) -> bool:
        """Whether to wait no longer for messages: once one has given up, the others need not wait as long again."""
        return self.is_over(now_s, signalled_s) or bool((stages == Stage.SAVED_ALONE).any())

    def is_over_for_saving(self, stages: Int64s, now_s: float, signalled_s: float | None) -> bool:
        """Whether to wait no longer for others to save: those that are at their end too are given as much again."""
        is_at_end = bool((stages == Stage.SENT_ALL).any())
        most_s = 2 * max(self.silent_after_s, SIGNALLED_PATIENCE_S)
        return now_s - self.since_s > most_s or (self.is_over(now_s, signalled_s) and not is_at_end)
