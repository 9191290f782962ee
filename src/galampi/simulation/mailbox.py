"""Mailboxes in the memory of one process, and the simulated network between them.

Carries the messages of `galampi.gossip.rules` in virtual time: what goes to another node takes its time, may arrive in
pieces out of order, and does not arrive while its target is stopped, as where a library needs the target to move it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from galampi.errors import LostRankError
from galampi.gossip.forms import Form
from galampi.gossip.mixing import Floats, Int64s, Message
from galampi.gossip.rules import MailboxRules, Stage
from galampi.gossip.topology import Topology
from galampi.simulation.events import Events

_THREAD_DELAY_S = 0.5e-3
"""Half the period at which a thread looks."""
_MOST_LOOKS = 100
"""Most looks at one moment at what others write, for each edge: an update takes some, a rank that waits no end."""
_BLOCK = 1 << 14


class Network:
    """What carries messages between simulated ranks.

    Attributes:
        events: Virtual time.
        mailboxes: Those of every rank.
        in_flight: Receiver and in-edge -> the message that is sent and not yet acknowledged.
        resumes_s: When each rank that is stopped goes on, [n]; infinite for one that is dead.
        slowest_write_s: Longest time that a number took to another node, s.
    """

    def __init__(
        self,
        events: Events,
        num_ranks: int,
        random: np.random.Generator,
        *,
        ranks_per_node: int = 1 << 30,
        latency_s: float = 0.0,
        latency_spread: float = 0.0,
        node_bytes_per_s: float = np.inf,
        message_bytes: float = 0.0,
        num_pieces: int = 1,
        has_threads: bool = True,
    ) -> None:
        """Connect ranks that are yet to come.

        Args:
            events: Virtual time.
            num_ranks: Ranks.
            random: Source of latencies.
            ranks_per_node: Ranks that share memory, where a message is there at once.
            latency_s: Mean of the times between nodes, s, beside what the bytes take.
            latency_spread: Standard deviation of them over their mean.
            node_bytes_per_s: Rate at which a node sends.
            message_bytes: Size of a message.
            num_pieces: Pieces that a payload travels in, each with a latency of its own.
            has_threads: Whether ranks complete puts while they compute, or only when they poll.
        """
        self.events = events
        self.mailboxes: list[MemoryMailboxes] = []
        self.in_flight: dict[tuple[int, int], Letter] = {}
        self.resumes_s = [0.0] * num_ranks
        self.slowest_write_s = 0.0
        self.num_pieces = num_pieces
        self.has_threads = has_threads
        self._node_of = (np.arange(num_ranks) // ranks_per_node).tolist()
        self._free_s = [0.0] * (self._node_of[-1] + 1)
        self._put_s = message_bytes / node_bytes_per_s
        self._random = random
        self._latency_s, self._latency_spread = latency_s, latency_spread
        self._latencies: list[float] = []
        self._told_s: dict[tuple[int, int], float] = {}

    def is_near(self, rank: int, other: int) -> bool:
        """Whether two ranks share memory."""
        return bool(self._node_of[rank] == self._node_of[other])

    def put(self, letter: Letter, target: int) -> None:
        """Put a message into a mailbox of a rank on another node."""
        node = self._node_of[letter.sender.rank]
        sent_s = max(self.events.now_s, self._free_s[node]) + self._put_s
        self._free_s[node] = sent_s
        for piece in range(letter.num_left):
            self.events.at(sent_s + self._draw_latency_s(), self._arrive, letter, piece, target)

    def write(self, rank: int, target: int, into: Int64s, at: int, value: int) -> None:
        """Set a number in the memory of a rank."""
        if rank == target or self.is_near(rank, target):
            into[at] = value
        else:
            takes_s = self._draw_latency_s()
            self.slowest_write_s = max(self.slowest_write_s, takes_s)
            # What one rank tells another it tells in order: a flag is flushed before the next word.
            arrives_s = max(self.events.now_s + takes_s, self._told_s.get((rank, target), 0.0))
            self._told_s[rank, target] = arrives_s
            self.events.at(arrives_s, self._set, target, into, at, value)

    def _set(self, target: int, into: Int64s, at: int, value: int) -> None:
        if self.events.now_s < self.resumes_s[target]:
            if math.isfinite(self.resumes_s[target]):
                self.events.at(self.resumes_s[target], self._set, target, into, at, value)
            return
        into[at] = value

    def _arrive(self, letter: Letter, piece: int, target: int) -> None:
        if self.events.now_s < self.resumes_s[target]:
            if math.isfinite(self.resumes_s[target]):
                self.events.at(self.resumes_s[target], self._arrive, letter, piece, target)
            return
        self.mailboxes[target].slots[letter.edge].take(letter, piece)
        letter.num_left -= 1
        if not letter.num_left and self.has_threads:
            self.events.at(self.events.now_s + _THREAD_DELAY_S, letter.sender.complete, letter.edge)

    def _draw_latency_s(self) -> float:
        if not self._latencies:
            if not self._latency_spread:
                return self._latency_s
            shape = self._latency_spread**-2
            self._latencies = (self._random.standard_gamma(shape, _BLOCK) * (self._latency_s / shape)).tolist()
        return self._latencies.pop()


class Letter:
    """A message on its way.

    Attributes:
        sender: Mailboxes it comes from.
        edge: Along which.
        number: Of the message on its edge.
        message: As it was sent.
        read: What its receiver reads, [P].
        num_left: Pieces that have not arrived.
    """

    __slots__ = ("edge", "message", "num_left", "number", "read", "sender")

    def __init__(
        self, sender: MemoryMailboxes, edge: int, number: int, message: Message, read: Floats, num_pieces: int
    ) -> None:
        self.sender = sender
        self.edge = edge
        self.number = number
        self.message = message
        self.read = read
        self.num_left = num_pieces


class Slot:
    """What lies in a mailbox: a header, and pieces of a payload that may be those of several messages."""

    __slots__ = ("letter", "payload")

    def __init__(self) -> None:
        self.letter: Letter | None = None
        self.payload: NDArray[Any] | None = None

    def take(self, letter: Letter, piece: int) -> None:
        """Take in a piece; the header comes with the last one."""
        payload = letter.message.payload
        if letter.sender.network.num_pieces == 1:
            self.letter, self.payload = letter, payload
            return
        if self.payload is None or self.payload.dtype != payload.dtype:
            # The first is sent in full, whatever the form.
            self.payload = payload[::-1].copy()
        last = letter.sender.network.num_pieces - 1
        if piece == last:
            self.letter = letter
        start, stop = (payload.size * edge // (last + 1) for edge in (piece, piece + 1))
        self.payload[start:stop] = payload[start:stop]


class MemoryMailboxes(MailboxRules):
    """The mailboxes of one simulated rank.

    Attributes:
        network: What carries its messages.
        rank: Its number.
        slots: What lies in them, by in-edge.
        num_copied: Messages it has put, and averaged.
    """

    def __init__(
        self,
        network: Network,
        topology: Topology,
        rank: int,
        num_parameters: int,
        dtype: DTypeLike = np.float32,
        *,
        form: Form = "full",
        carries_progress: bool = True,
    ) -> None:
        """Join a network as its next rank.

        Args:
            network: What carries its messages.
            topology: Who sends to whom.
            rank: Its number.
            num_parameters: Length P of every vector that is sent.
            dtype: Type of its numbers.
            form: How it travels.
            carries_progress: Whether messages tell the counts of all ranks; without a budget nobody reads them.
        """
        super().__init__(topology, rank, num_parameters, dtype, form=form)
        if not carries_progress:
            self.progress = np.zeros(1, np.int64)
        num_edges = len(topology.hops)
        self._stop = np.zeros(1, np.int64)
        self._stages = np.zeros(topology.num_ranks, np.int64)
        self._acks = np.zeros(num_edges, np.int64)
        self._flags = np.zeros(num_edges, np.int64)
        self._letters: dict[int, Letter] = {}
        self.network = network
        self.rank = rank
        self.slots = [Slot() for _ in range(num_edges)]
        self.num_copied = 0
        self._looked_s, self._num_looks = -1.0, 0
        self._most_looks = _MOST_LOOKS * (1 + num_edges)
        assert rank == len(network.mailboxes), "ranks join in order"
        network.mailboxes.append(self)

    def complete(self, edge: int) -> None:
        """Do what the thread of an edge does once its message is through; later, if the rank is stopped then."""
        resumes_s = self.network.resumes_s[self.rank]
        if self.network.events.now_s < resumes_s:
            if math.isfinite(resumes_s):
                self.network.events.at(resumes_s, self.complete, edge)
        else:
            self._complete_put(edge)

    def _sync(self) -> None:
        if self.network.events.now_s != self._looked_s:
            self._looked_s, self._num_looks = self.network.events.now_s, 0
        self._num_looks += 1
        assert self._num_looks < self._most_looks, f"rank {self.rank} waits: it looks on and on at what others write"

    def _drive(self) -> None:
        if not self.network.has_threads:
            for edge in list(self._under_way):
                self._complete_put(edge)

    def _put(self, edge: int, number: int, message: Message) -> bool:
        network, peer = self.network, self._out_peers[edge]
        self.num_copied += 1
        message = Message(
            message.payload.copy(),
            message.weight,
            message.update,
            message.time_s,
            message.progress.copy(),
            message.moved,
        )
        is_near = network.is_near(self.rank, peer)
        known = self._writers[edge].known
        letter = Letter(self, edge, number, message, known.copy(), network.num_pieces)
        self._letters[edge] = network.in_flight[peer, edge] = letter
        if is_near:
            for piece in range(network.num_pieces):
                network.mailboxes[peer].slots[edge].take(letter, piece)
            return True
        network.put(letter, peer)
        return False

    def _is_whole(self, edge: int) -> bool:
        return self._letters[edge].num_left == 0

    def _raise_flag(self, edge: int, number: int) -> None:
        peer = self._out_peers[edge]
        self.network.write(self.rank, peer, self.network.mailboxes[peer]._flags, edge, number)

    def _read(self, edge: int) -> tuple[int, Message]:
        slot = self.slots[edge]
        letter, payload = slot.letter, slot.payload
        assert letter is not None and payload is not None, "a flag is up over an empty mailbox"
        sent = letter.message
        if payload is sent.payload:
            return letter.number, sent
        if not np.array_equal(payload, sent.payload):
            raise LostRankError(f"message {letter.number} of rank {letter.sender.rank} to {self.rank} is torn")
        return letter.number, Message(payload, sent.weight, sent.update, sent.time_s, sent.progress, sent.moved)

    def _send_ack(self, edge: int, number: int) -> None:
        self.num_copied += 1
        del self.network.in_flight[self.rank, edge]
        peer = self._in_peers[edge]
        self.network.write(self.rank, peer, self.network.mailboxes[peer]._acks, edge, number)

    def _tell_stop(self, rank: int) -> None:
        self.network.write(self.rank, rank, self.network.mailboxes[rank]._stop, 0, 1)

    def _tell_stage(self, rank: int, stage: Stage) -> None:
        self.network.write(self.rank, rank, self.network.mailboxes[rank]._stages, self.rank, stage)
