"""How messages are weighed: push-sum and the uniform average.

Owns the arithmetic of an averaging step. Knows numpy; neither MPI nor mailboxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]
Lerp = Callable[[Float32s, Float32s, float], None]

# 256 KiB of float32: an operand, the other and the scratch stay within a core's second-level cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Message:
    """What one rank sends another.

    Attributes:
        payload: Sender's de-biased parameters z, [P] float32.
        weight: Share omega of the sender's push-sum weight that travels with it.
        update: Sender's update.
        time_s: Sender's job time.
        progress: What the sender knew of every rank's progress, [n] int64.
    """

    payload: Float32s
    weight: float
    update: int
    time_s: float
    progress: Int64s


def lerp(z: Float32s, other: Float32s, share: float) -> None:
    """Move `z` in place to z + share (other - z).

    Args:
        z: [P] float32, changed.
        other: [P] float32.
        share: In [0, 1].
    """
    scratch = np.empty(min(_CHUNK, z.size), dtype=np.float32)
    for start in range(0, z.size, _CHUNK):
        part = z[start : start + _CHUNK]
        difference = scratch[: part.size]
        np.subtract(other[start : start + _CHUNK], part, out=difference)
        np.multiply(difference, np.float32(share), out=difference)
        np.add(part, difference, out=part)


class PushSum:
    """Push-sum over de-biased parameters.

    The literature keeps biased parameters x and a weight w, and reads z = x / w (Assran & Rabbat, arXiv 1803.08950,
    Algorithm 1). Here z is kept and x = w z never formed:

        send share omega:     w <- w - omega;  message (z, omega);  z stays
        receive (z', omega):  z <- z + omega / (w + omega) (z' - z);  w <- w + omega

    The sums over ranks and messages of w and of w z are conserved, and every receive is a convex combination.

    Attributes:
        weight: Push-sum weight w of this rank, starts at 1.
        weight_floor: Least weight kept; a push that would leave less is not made.
    """

    def __init__(self, weight_floor: float = 1 / 16, lerp: Lerp = lerp) -> None:
        """Start with weight 1.

        Args:
            weight_floor: Least weight kept.
            lerp: What computes `lerp`; numpy needs three passes where others need one.
        """
        self.weight = 1.0
        self.weight_floor = weight_floor
        self._lerp = lerp

    def share(self, num_peers: int) -> float | None:
        """Return the share for each of `num_peers` messages of a round, or None if too little weight would stay."""
        share = self.weight / (num_peers + 1)
        return share if share >= self.weight_floor else None

    def give(self, share: float) -> None:
        """Debit a share that has been sent."""
        self.weight -= share

    def receive(self, z: Float32s, waiting: Mapping[int, Message], num_in_peers: int) -> list[int]:
        """Average every waiting message into `z`.

        Args:
            z: [P] float32, changed.
            waiting: In-edge to the message that waits on it.
            num_in_peers: In-edges of this rank.

        Returns:
            In-edges whose messages were used.
        """
        for message in waiting.values():
            total = self.weight + message.weight
            self._lerp(z, message.payload, message.weight / total)
            self.weight = total
        return list(waiting)

    def settle(self, z: Float32s, waiting: Mapping[int, Message]) -> None:
        """Take in what is left when the exchange ends: all of it, or weight would be lost."""
        self.receive(z, waiting, len(waiting))


class UniformAverage:
    """The averaging step of GALA (Assran et al., arXiv 1906.04585, Algorithm 1).

    When a message m_j of every in-peer is there:  z <- (z + sum_j m_j) / (1 + number of in-peers).

    Attributes:
        weight: Always 1; no weight is tracked.
    """

    weight = 1.0

    def share(self, num_peers: int) -> float | None:
        """Return 0: messages carry no weight."""
        return 0.0

    def give(self, share: float) -> None:
        """Debit nothing."""

    def receive(self, z: Float32s, waiting: Mapping[int, Message], num_in_peers: int) -> list[int]:
        """Average the messages into `z` if there is one of every in-peer; see `PushSum.receive`."""
        if not waiting or len(waiting) < num_in_peers:
            return []
        for start in range(0, z.size, _CHUNK):
            part = z[start : start + _CHUNK]
            for message in waiting.values():
                part += message.payload[start : start + _CHUNK]
            part /= np.float32(1 + num_in_peers)
        return list(waiting)

    def settle(self, z: Float32s, waiting: Mapping[int, Message]) -> None:
        """Drop what is left when the exchange ends: the rule has no use for a part of the in-peers."""
