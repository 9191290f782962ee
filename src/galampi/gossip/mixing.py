"""How messages are weighed: push-sum and the uniform average.

Owns the arithmetic of an averaging step, and by how much an optimizer step is scaled. Knows numpy; neither MPI nor
mailboxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]
"""A vector that ranks average: float32 or float64."""
Int64s = NDArray[np.int64]
Lerp = Callable[[Floats, Floats, float], None]

# 256 KiB of float32: an operand, the other and the scratch stay within a core's second-level cache.
_CHUNK = 1 << 16
_WINDOW = 100
"""Optimizer steps over which the mean weight runs, and over which what is owed is paid."""


@dataclass(frozen=True)
class Message:
    """What one rank sends another.

    Attributes:
        payload: Sender's de-biased parameters z, [P]; in a mailbox whatever travels in their place.
        weight: Share omega of the sender's push-sum weight that travels with it.
        update: Sender's update.
        time_s: Sender's job time.
        progress: What the sender knew of every rank's progress, [n] int64.
        moved: How far the sender's parameters had moved; see `PushSum`.
    """

    payload: NDArray[Any]
    weight: float
    update: int
    time_s: float
    progress: Int64s
    moved: float = 0.0


@dataclass
class StepScale:
    """The factor on a rank's optimizer steps that lets the ensemble move by the learning rate.

    A step d of a rank with weight w moves the mean of all, sum_i w_i z_i / n, by w d / n, and a rank meets its steps
    with another mean weight than 1: with 4/3 in the long run, for between its receiving and its sending it holds what
    lies in a mailbox otherwise. So the k-th step is multiplied by

        s_k = (1 + o_k / W) / m_k,    m_k = m_{k-1} + (w_k - m_{k-1}) / min(k, W),    o_k = k - 1 - sum_{j<k} w_j s_j

    with the running mean m of the rank's weight at its own steps, W = 100 steps long, and with what it still owes of
    its steps so far, o, paid over as many. Then sum_k w_k s_k stays within a bounded distance of the number of steps,
    whatever the speeds of the ranks; and unlike 1 / w, which would do so at once, no step is multiplied by 8 because
    the rank has little weight at the moment (docs/protocol.md).

    Attributes:
        num_steps: Steps counted.
        mean_weight: Running mean m of the weight at them.
        owed: Steps o that the rank should have moved the mean by, and has not.
    """

    num_steps: int = 0
    mean_weight: float = 1.0
    owed: float = 0.0

    def next(self, weight: float) -> float:
        """Count a step taken at a weight, and return its factor."""
        self.num_steps += 1
        self.mean_weight += (weight - self.mean_weight) / min(self.num_steps, _WINDOW)
        factor = (1 + self.owed / _WINDOW) / self.mean_weight
        self.owed += 1 - weight * factor
        return factor

    def state(self) -> dict[str, int | float]:
        """Return what a checkpoint holds of it: the arguments of a new one."""
        return asdict(self)


def lerp(z: Floats, other: Floats, share: float) -> None:
    """Move `z` in place to z + share (other - z).

    Args:
        z: [P], changed.
        other: [P] of the same type.
        share: In [0, 1]; below 0, away from `other`.
    """
    scratch = np.empty(min(_CHUNK, z.size), dtype=z.dtype)
    for start in range(0, z.size, _CHUNK):
        part = z[start : start + _CHUNK]
        difference = scratch[: part.size]
        np.subtract(other[start : start + _CHUNK], part, out=difference)
        np.multiply(difference, z.dtype.type(share), out=difference)
        np.add(part, difference, out=part)


class PushSum:
    """Push-sum over de-biased parameters.

    The literature keeps biased parameters x and a weight w, and reads z = x / w (Assran & Rabbat, arXiv 1803.08950,
    Algorithm 1). Here z is kept and x = w z never formed:

        send share omega:     w <- w - omega;  message (z, omega);  z stays
        receive (z', omega):  z <- z + omega / (w + omega) (z' - z);  w <- w + omega

    The sums over ranks and messages of w and of w z are conserved, and every receive is a convex combination. An
    optimizer step comes between receiving and sending, scaled by `scale_step`.

    Attributes:
        receives_first: Whether an update averages before its optimizer step, rather than after it.
        weight: Push-sum weight w of this rank, starts at 1.
        weight_floor: Least weight kept; a push that would leave less is not made.
        step_weight: Weight at the last optimizer step.
        step_scale: What the next step is scaled by, and why.
        moved: A parameter that every optimizer step moves by 1, from 0: over the mean number of steps of a rank it is
            the effective step of the ensemble.
    """

    receives_first = True

    def __init__(self, weight_floor: float = 1 / 16, lerp: Lerp = lerp) -> None:
        """Start with weight 1.

        Args:
            weight_floor: Least weight kept.
            lerp: What computes `lerp`; numpy needs three passes where others need one.
        """
        self.weight = self.step_weight = 1.0
        self.weight_floor = weight_floor
        self.step_scale = StepScale()
        self.moved = 0.0
        self._lerp = lerp

    def share(self, num_peers: int) -> float | None:
        """Return the share for each of `num_peers` messages of a round, or None if too little weight would stay."""
        share = self.weight / (num_peers + 1)
        return share if share >= self.weight_floor else None

    def give(self, share: float, z: Floats, read: Floats) -> None:
        """Debit a share that has been sent, and keep of `z` what its message left out.

        Where the peer reads q in the place of z, w z is conserved by z <- z + omega / (w - omega) (z - q).

        Args:
            share: Share omega.
            z: [P], changed unless it is read as it is.
            read: What the peer reads, [P].
        """
        self.weight -= share
        if read is not z:
            self._lerp(z, read, -share / self.weight)

    def scale_step(self) -> float:
        """Return the factor on the optimizer step that is taken now, and count the step."""
        self.step_weight = self.weight
        factor = self.step_scale.next(self.weight)
        self.moved += factor
        return factor

    def receive(self, z: Floats, waiting: Mapping[int, Message], round_edges: Sequence[int]) -> list[int]:
        """Average every waiting message into `z`.

        Args:
            z: [P], changed.
            waiting: In-edge to the message that waits on it.
            round_edges: In-edges whose messages belong to this update's round.

        Returns:
            In-edges whose messages were used.
        """
        for message in waiting.values():
            total = self.weight + message.weight
            share = message.weight / total
            self._lerp(z, message.payload, share)
            self.moved += share * (message.moved - self.moved)
            self.weight = total
        return list(waiting)

    def settle(self, z: Floats, waiting: Mapping[int, Message]) -> None:
        """Take in what is left when the exchange ends: all of it, or weight would be lost."""
        self.receive(z, waiting, ())


class UniformAverage:
    """The averaging step of GALA (Assran et al., arXiv 1906.04585, Algorithm 1).

    Take the step and send the new parameters; then, when a message m_j of every in-peer j of the round is there:

        z <- (z + sum_j m_j) / (1 + number of in-peers of the round)

    Attributes:
        receives_first: Whether an update averages before its optimizer step, rather than after it.
        weight: Always 1; no weight is tracked.
        step_weight: Always 1.
        moved: As that of `PushSum`.
    """

    receives_first = False
    weight = step_weight = 1.0

    def __init__(self) -> None:
        """Start not moved."""
        self.moved = 0.0

    def share(self, num_peers: int) -> float | None:
        """Return 0: messages carry no weight."""
        return 0.0

    def give(self, share: float, z: Floats, read: Floats) -> None:
        """Debit nothing."""

    def scale_step(self) -> float:
        """Count a step, and return 1: the algorithm scales none."""
        self.moved += 1
        return 1.0

    def receive(self, z: Floats, waiting: Mapping[int, Message], round_edges: Sequence[int]) -> list[int]:
        """Average the messages of the round into `z` if all are there; see `PushSum.receive`."""
        if not round_edges or any(edge not in waiting for edge in round_edges):
            return []
        messages = [waiting[edge] for edge in round_edges]
        for start in range(0, z.size, _CHUNK):
            part = z[start : start + _CHUNK]
            for message in messages:
                part += message.payload[start : start + _CHUNK]
            part /= z.dtype.type(1 + len(messages))
        self.moved = (self.moved + sum(message.moved for message in messages)) / (1 + len(messages))
        return list(round_edges)

    def settle(self, z: Floats, waiting: Mapping[int, Message]) -> None:
        """Drop what is left when the exchange ends: the rule has no use for a part of the in-peers."""
