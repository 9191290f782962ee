"""Asynchronous gossip: each update sends to out-peers and averages what has come, and waits for nobody.

Owns the order of an update: push-sum receives, then comes the optimizer step, then it sends; the paper's Algorithm 1
sends after the step, and averages last. Knows mailboxes only by what they do, so that a test can put memory in the
place of the MPI window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from galampi.errors import UserError
from galampi.gossip.mixing import Floats, Int64s, Message, PushSum, UniformAverage
from galampi.gossip.topology import Topology

_LOOK_PERIOD_S = 1e-3
"""Between two looks for what others still send, when the exchange ends."""


class MessagePassing(Protocol):
    """What gossip asks of mailboxes; `galampi.gossip.mailbox.Mailboxes` is the real one."""

    topology: Topology
    progress: Int64s

    def require(self, z: Floats) -> None:
        """Raise TypeError or ValueError unless `z` is a vector that these mailboxes can send and average into."""

    def push(self, edge: int, z: Floats, weight: float, update: int, time_s: float, moved: float) -> Floats | None:
        """Send along an out-edge unless its last message is unread; return what the peer reads, or None."""

    def poll(self) -> dict[int, Message]:
        """Return the messages that wait, by in-edge."""

    def acknowledge(self, edge: int) -> None:
        """Free an in-edge's mailbox for the next message."""

    def finish(self) -> bool:
        """Send no more; return whether every message of every rank has arrived."""


class Gossip:
    """One rank's part in asynchronous gossip.

    Attributes:
        mixing: Weights of the averaging.
        sent: Messages sent along each out-edge, [num_hops] int64.
        received: Messages averaged from each in-edge, [num_hops] int64.
        skipped: Pushes not made on each out-edge, its mailbox still full or the weight at its floor, [num_hops] int64.
    """

    def __init__(
        self,
        mailboxes: MessagePassing,
        mixing: PushSum | UniformAverage,
        *,
        all_peers: bool = False,
        delay_updates: int = 0,
    ) -> None:
        """Join the exchange.

        Args:
            mailboxes: The edges of this rank.
            mixing: Weights of the averaging.
            all_peers: Send to every out-peer each step, instead of to one in rotation.
            delay_updates: Updates that a message lies here before it is averaged, as if its way were so much longer.

        Raises:
            UserError: With this weight floor no message would ever be sent.
        """
        num_edges = len(mailboxes.topology.hops)
        if isinstance(mixing, PushSum):
            refuse_silence(mailboxes.topology, mixing.weight_floor, all_peers=all_peers)
        self.mixing = mixing
        self._mailboxes = mailboxes
        self._all_peers = all_peers
        self._delay_updates = delay_updates
        # In-edge whose message is not averaged yet -> round in which it was seen.
        self._seen_in: dict[int, int] = {}
        self._round = 0
        self._ages_s: list[float] = []
        self.sent = np.zeros(num_edges, dtype=np.int64)
        self.received = np.zeros(num_edges, dtype=np.int64)
        self.skipped = np.zeros(num_edges, dtype=np.int64)

    def before_step(self, z: Floats, time_s: float = 0.0) -> float:
        """Do what comes before the optimizer step of an update, and return the factor on that step.

        One-sided; waits for nobody.

        Args:
            z: De-biased parameters, [P], changed.
            time_s: Job time.

        Raises:
            TypeError: `z` is no numpy array of the mailboxes' type.
            ValueError: It is of another length, not contiguous, or cannot be written.
        """
        self._mailboxes.require(z)
        self._ages_s = []
        if self.mixing.receives_first:
            self._receive(z, time_s)
        return self.mixing.scale_step()

    def after_step(self, z: Floats, update: int = 0, time_s: float = 0.0) -> float:
        """Do what comes after the optimizer step of an update.

        One-sided; waits for nobody.

        Args:
            z: De-biased parameters, [P], changed by Algorithm 1, and by push-sum where messages are rounded.
            update: Stamp of the messages sent.
            time_s: Job time, stamp of the messages sent.

        Returns:
            Mean age of the messages averaged in this update, s; NaN if there was none.
        """
        self._send(z, update, time_s)
        if not self.mixing.receives_first:
            self._receive(z, time_s)
        # A skipped push advances the rotation too, so one full mailbox cannot starve the other peers.
        self._round += 1
        return sum(self._ages_s) / len(self._ages_s) if self._ages_s else float("nan")

    def step(self, z: Floats, update: int = 0, time_s: float = 0.0) -> float:
        """Do both without an optimizer step between: plain averaging; see `after_step`.

        Who learns takes its step between the two, scaled by what the first returns, as `z -= lr * scale * gradient`:
        before or after them it would count for less, by the weight that is under way.
        """
        self.before_step(z, time_s)
        return self.after_step(z, update, time_s)

    def drain(self, z: Floats, gives_up: Callable[[], bool] = lambda: False) -> bool:
        """Stop sending and take in all that is under way, so that no weight is left in a mailbox.

        Sleeps between looks. Collective over the mailboxes' comm, but for ranks that no longer answer: those are
        waited for until `gives_up` says so. Once: nothing is sent along these mailboxes any more.

        Returns:
            Whether every rank has come to its end, so that nothing is under way. If not, some may be lost, and leaving
            the mailboxes would wait for them: end the program by `MPI.COMM_WORLD.Abort()`.
        """
        while not (finished := self.take_in(z)) and not gives_up():
            time.sleep(_LOOK_PERIOD_S)
        return finished

    def take_in(self, z: Floats) -> bool:
        """Stop sending, take in what has come, and return whether that was all; a look of `drain`. Waits for nobody."""
        # Asked before the poll: what had arrived by then is polled once more after it.
        finished = self._mailboxes.finish()
        waiting = self._mailboxes.poll()
        self.mixing.settle(z, waiting)
        self._acknowledge(list(waiting))
        return finished

    def _receive(self, z: Floats, time_s: float) -> None:
        waiting = self._ripe(self._mailboxes.poll())
        used = self.mixing.receive(z, waiting, self._round_edges())
        self._ages_s = [time_s - waiting[edge].time_s for edge in used]
        self._acknowledge(used)

    def _ripe(self, waiting: dict[int, Message]) -> dict[int, Message]:
        """Return the messages that have lain here for long enough."""
        for edge in waiting:
            self._seen_in.setdefault(edge, self._round)
        came_by = self._round - self._delay_updates
        return {edge: message for edge, message in waiting.items() if self._seen_in[edge] <= came_by}

    def _send(self, z: Floats, update: int, time_s: float) -> None:
        edges = self._round_edges()
        share = self.mixing.share(len(edges))
        for edge in edges:
            read = None
            if share is not None:
                read = self._mailboxes.push(edge, z, share, update, time_s, self.mixing.moved)
            if share is None or read is None:
                self.skipped[edge] += 1
            else:
                self.mixing.give(share, z, read)
                self.sent[edge] += 1

    def _round_edges(self) -> Sequence[int]:
        """Return the edges that belong to this update: an edge is the same hop at both its ends."""
        num_edges = len(self.sent)
        if self._all_peers or not num_edges:
            return range(num_edges)
        return (self._round % num_edges,)

    def _acknowledge(self, edges: list[int]) -> None:
        for edge in edges:
            self._seen_in.pop(edge, None)
            self._mailboxes.acknowledge(edge)
            self.received[edge] += 1


def refuse_silence(topology: Topology, weight_floor: float, *, all_peers: bool) -> None:
    """Refuse an exchange by push-sum in which no rank could ever send, so that the ranks would train apart.

    Raises:
        UserError: A rank of weight 1 would keep less than the floor.
    """
    num_messages = len(topology.hops) if all_peers else min(1, len(topology.hops))
    if num_messages and 1 / (num_messages + 1) < weight_floor:
        raise UserError(
            f"gossip.weight_floor is {weight_floor:g}; must be at most 1/{num_messages + 1}: with {num_messages} "
            f"message{'s' * (num_messages > 1)} an update a rank keeps that part of its weight, so none would ever send"
            + ("; lower it, or use peers 'rotate'" if num_messages > 1 else "")
        )
