"""Which ranks have fallen silent, and whether this one's messages get through.

Knows counts and times, not what they mean.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from galampi.gossip import Gossip
from galampi.gossip.mixing import Int64s

log = logging.getLogger(__name__)


class Silence:
    """Notices ranks that make no progress, as gossip tells it, and says so while they do not."""

    def __init__(self, hostnames: Sequence[str], rank: int) -> None:
        """Begin with every rank heard.

        Args:
            hostnames: Of every rank.
            rank: This one.
        """
        self._hostnames = hostnames
        self._rank = rank
        self._after_s = math.inf
        now_s = time.monotonic()
        self._heard_s = np.full(len(hostnames), now_s)
        self._said_s = np.zeros(len(hostnames))
        self._progress = np.full(len(hostnames), -1, dtype=np.int64)
        self._moved_s = now_s
        self._moves = (-1, -1)

    def look(self, progress: Int64s, gossip: Gossip, after_s: float) -> None:
        """Take in every rank's progress and this one's counts of messages, and say who has fallen silent. Local.

        Args:
            progress: Of every rank, as gossip tells it, [n].
            gossip: This rank's part in the exchange.
            after_s: Time without progress after which a rank is silent, s, and between two lines about it.
        """
        now_s = time.monotonic()
        self._after_s = after_s
        is_heard = progress != self._progress
        for rank in np.flatnonzero(is_heard & (self._said_s > 0)).tolist():
            if self._speaks(now_s):
                log.warning("rank %d on %s is heard again", rank, self._hostnames[rank])
            self._said_s[rank] = 0
        self._heard_s[is_heard] = now_s
        self._progress[:] = progress
        for rank in np.flatnonzero(self.silent_s(now_s) >= self._after_s).tolist():
            if rank != self._rank and now_s - self._said_s[rank] >= self._after_s:
                self._said_s[rank] = now_s
                if self._speaks(now_s):
                    log.warning("%s", self.describe(rank))
        self._look_at_own(gossip, now_s)

    def silent_s(self, now_s: float) -> np.ndarray:
        """Return for how long each rank has made no progress that is known here, [n] s."""
        return now_s - self._heard_s

    def describe(self, rank: int) -> str:
        """Say where a rank is and for how long it has been silent."""
        return f"rank {rank} on {self._hostnames[rank]} silent for {self.silent_s(time.monotonic())[rank]:.0f} s"

    def _speaks(self, now_s: float) -> bool:
        """Whether this rank is the first of those that are heard, which speaks for all."""
        heard = self.silent_s(now_s) < self._after_s
        heard[self._rank] = True
        return bool(np.argmax(heard) == self._rank)

    def _look_at_own(self, gossip: Gossip, now_s: float) -> None:
        moves = int(gossip.sent.sum()), int(gossip.received.sum())
        if not len(gossip.sent) or (moves[0] != self._moves[0] and moves[1] != self._moves[1]):
            self._moves, self._moved_s = moves, now_s
        elif now_s - self._moved_s >= self._after_s:
            stuck = [
                word for word, new, old in zip(("sent", "received"), moves, self._moves, strict=True) if new == old
            ]
            log.warning("no message has been %s for %.0f s", " or ".join(stuck), now_s - self._moved_s)
            self._moves, self._moved_s = moves, now_s
