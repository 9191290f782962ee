"""Asynchronous gossip: each update sends to out-peers and averages what has come, and waits for nobody.

Owns the order of a step: receive, then send. Knows mailboxes only by what they do, so that a test can put memory
in the place of the MPI window.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from galampi.gossip.mixing import Float32s, Int64s, Message, PushSum, UniformAverage
from galampi.gossip.topology import Topology


class MessagePassing(Protocol):
    """What gossip asks of mailboxes; `galampi.gossip.mailbox.Mailboxes` is the real one."""

    topology: Topology
    progress: Int64s

    def push(self, edge: int, z: Float32s, weight: float, update: int, time_s: float) -> bool:
        """Send along an out-edge unless its last message is unread; return whether it was sent."""

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

    def __init__(self, mailboxes: MessagePassing, mixing: PushSum | UniformAverage, *, all_peers: bool = False) -> None:
        """Join the exchange.

        Args:
            mailboxes: The edges of this rank.
            mixing: Weights of the averaging.
            all_peers: Send to every out-peer each step, instead of to one in rotation.
        """
        self.mixing = mixing
        self._mailboxes = mailboxes
        self._all_peers = all_peers
        self._round = 0
        num_edges = len(mailboxes.topology.hops)
        self.sent = np.zeros(num_edges, dtype=np.int64)
        self.received = np.zeros(num_edges, dtype=np.int64)
        self.skipped = np.zeros(num_edges, dtype=np.int64)

    def step(self, z: Float32s, update: int = 0, time_s: float = 0.0) -> float:
        """Average the waiting messages into `z`, then send `z` on.

        One-sided; waits for nobody where peers share memory, and for the network's completion of a put otherwise.

        Args:
            z: De-biased parameters, [P] float32, changed.
            update: Stamp of the messages sent.
            time_s: Job time, stamp of the messages sent.

        Returns:
            Mean age of the messages averaged, s; NaN if there was none.
        """
        ages = self._receive(z, time_s)
        self._send(z, update, time_s)
        return float(np.mean(ages)) if ages else float("nan")

    def drain(self, z: Float32s) -> None:
        """Stop sending and take in all that is under way, so that no weight is left in a mailbox.

        Collective over the mailboxes' comm.
        """
        finished = False
        while not finished:
            # Asked before the poll: what had arrived by then is polled once more after it.
            finished = self._mailboxes.finish()
            waiting = self._mailboxes.poll()
            self.mixing.settle(z, waiting)
            self._acknowledge(list(waiting))

    def _receive(self, z: Float32s, time_s: float) -> list[float]:
        waiting = self._mailboxes.poll()
        used = self.mixing.receive(z, waiting, len(self._mailboxes.topology.hops))
        ages = [time_s - waiting[edge].time_s for edge in used]
        self._acknowledge(used)
        return ages

    def _send(self, z: Float32s, update: int, time_s: float) -> None:
        num_edges = len(self._mailboxes.topology.hops)
        if not num_edges:
            return
        edges = range(num_edges) if self._all_peers else (self._round % num_edges,)
        # A skipped push advances the rotation too, so one full mailbox cannot starve the other peers.
        self._round += 1
        share = self.mixing.share(len(edges))
        for edge in edges:
            if share is not None and self._mailboxes.push(edge, z, share, update, time_s):
                self.mixing.give(share)
                self.sent[edge] += 1
            else:
                self.skipped[edge] += 1

    def _acknowledge(self, edges: list[int]) -> None:
        for edge in edges:
            self._mailboxes.acknowledge(edge)
            self.received[edge] += 1
