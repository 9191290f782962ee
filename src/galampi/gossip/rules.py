"""The rules of mailboxes, whatever memory they lie in.

Owns when a message may be sent, when one has come, and how a stop and the end of a job become known. A mailbox belongs
to one directed edge, has one writer, one reader and room for one message; what its bytes mean is in
`galampi.gossip.forms`. Knows no MPI: what carries the messages is a
subclass, of a one-sided window (`galampi.gossip.mailbox`) or of a simulated network (`galampi.simulation.mailbox`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from enum import IntEnum

import numpy as np
from numpy.typing import DTypeLike

from galampi.errors import LostRankError
from galampi.gossip.forms import Form, edge_end
from galampi.gossip.mixing import Floats, Int64s, Message
from galampi.gossip.topology import Topology, exponential


class Stage(IntEnum):
    """How far a rank is with its end; it never goes back."""

    TRAINING = 0
    SAVING = 1
    """It trains no more, and saves before it waits for anybody."""
    DRAINING = 2
    """It has saved what it had, and takes in what is under way."""
    SENT_ALL = 3
    """It sends no more, and all it has sent has arrived."""
    SAVED = 4
    """It has received all, and its part of the results is whole on the disk."""
    SAVED_ALONE = 5
    """It waits no longer for somebody; its part of the results is whole, but not what is in flight."""


class MailboxRules(ABC):
    """The mailboxes of one rank and its ends of those of its peers.

    A subclass holds what other ranks write to: `_stop` [1], `_stages` [n], and for each of H hops `_acks` [H] and
    `_flags` [H], all int64 and 0 at the start.

    Attributes:
        topology: Who sends to whom.
        progress: What this rank knows of every rank's progress, [n] int64. It sets its own entry, which must never
            fall; the others come with messages, the larger value wins.
    """

    _stop: Int64s
    _stages: Int64s
    _acks: Int64s
    _flags: Int64s

    def __init__(
        self,
        topology: Topology,
        rank: int,
        num_parameters: int,
        dtype: DTypeLike = np.float32,
        *,
        form: Form = "full",
        num_exact: int = 0,
    ) -> None:
        """Begin with every mailbox empty.

        Args:
            topology: Who sends to whom.
            rank: This one.
            num_parameters: Length P of every vector that is sent.
            dtype: Type of its numbers: float32 or float64.
            form: How it travels.
            num_exact: How many numbers at its end travel as they are, whatever the form.

        Raises:
            TypeError: Vectors of this type cannot be averaged.
        """
        self._dtype = np.dtype(dtype)
        if self._dtype not in (np.float32, np.float64):
            raise TypeError(f"mailboxes hold float32 or float64; dtype is {self._dtype}")
        self.topology = topology
        self.progress: Int64s = np.zeros(topology.num_ranks, dtype=np.int64)
        self._rank = rank
        self._num_parameters = num_parameters
        self._out_peers = topology.out_peers(rank)
        self._in_peers = topology.in_peers(rank)
        # Whatever the graph of the messages is, even none: a stop is to come round fast.
        self._told_of_stop = exponential(topology.num_ranks).out_peers(rank)
        self._has_told_of_stop = False
        self._has_ended = False
        self._num_sent = np.zeros(len(topology.hops), dtype=np.int64)
        self._num_received = np.zeros(len(topology.hops), dtype=np.int64)
        ends = [
            [
                edge_end(form, num_parameters, self._dtype, num_exact=num_exact, seed=(2 * rank + side) * 64 + edge)
                for edge in range(len(topology.hops))
            ]
            for side in range(2)
        ]
        self._writers, self._readers = ends
        # Read and not yet acknowledged: what is read as a change must be read once.
        self._taken: dict[int, Message] = {}
        # Edges whose message is not yet known to be whole at the peer.
        self._under_way: set[int] = set()

    def require(self, z: Floats) -> None:
        """Raise unless `z` is a vector that these mailboxes can send and average into. Local.

        Raises:
            TypeError: It is no numpy array of the mailboxes' type.
            ValueError: It is of another shape, not contiguous, or cannot be written.
        """
        if not isinstance(z, np.ndarray) or z.dtype != self._dtype:
            found = str(z.dtype) if isinstance(z, np.ndarray) else type(z).__name__
            raise TypeError(f"the vector is {found}; these mailboxes hold {self._dtype}: Mailboxes(..., dtype=...)")
        if z.shape != (self._num_parameters,):
            raise ValueError(f"the vector's shape is {z.shape}; these mailboxes hold ({self._num_parameters},)")
        if not z.flags.c_contiguous or not z.flags.writeable:
            raise ValueError("the vector must be contiguous and writeable: it is averaged in place")

    def push(
        self, edge: int, z: Floats, weight: float, update: int, time_s: float, moved: float = 0.0
    ) -> Floats | None:
        """Send along an out-edge, unless its last message is unread.

        One-sided; waits for nobody. Where the peer shares memory the message is there on return. Otherwise the put
        is begun here, from a copy of `z`, and the flag follows when the network has taken it all.

        Args:
            edge: Index of the hop.
            z: [P]; see `require`.
            weight: Share that travels with the message.
            update: Stamp.
            time_s: Stamp.
            moved: Stamp; see `PushSum`.

        Returns:
            What the peer reads, [P]: `z` itself or what its form leaves of it, good until the next call; None if the
            message was not sent.

        Raises:
            RuntimeError: The mailboxes were drained: others may have left for good, and would not read it.
        """
        self.require(z)
        if self._has_ended:
            raise RuntimeError("these mailboxes were drained; whoever goes on makes new ones")
        self._sync()
        if edge in self._under_way or self._acks[edge] != self._num_sent[edge]:
            return None
        self._num_sent[edge] += 1
        writer = self._writers[edge]
        sent = writer.write(z)
        # Before it is put, for then it may come to be whole at any moment, in another thread.
        self._under_way.add(edge)
        if self._put(edge, int(self._num_sent[edge]), Message(sent, weight, update, time_s, self.progress, moved)):
            self._raise_flag(edge, int(self._num_sent[edge]))
            self._under_way.discard(edge)
        return writer.known

    def poll(self) -> dict[int, Message]:
        """Return the messages that wait, by in-edge.

        One-sided; waits for nobody. Payloads are views of the mailboxes, good until acknowledged.
        """
        self._drive()
        self._sync()
        edges = (self._flags != self._num_received).nonzero()[0].tolist()
        # The flags are read: only now may the messages be.
        self._sync()
        return {edge: self._take(edge) for edge in edges}

    def acknowledge(self, edge: int) -> None:
        """Free an in-edge's mailbox for the next message. One-sided; waits for nobody."""
        self._taken.pop(edge, None)
        self._num_received[edge] += 1
        # The message has been read before its place is given back.
        self._sync()
        self._send_ack(edge, int(self._num_received[edge]))

    def announce_stop(self) -> None:
        """Tell all that the job is to stop: log2 n ranks here, which pass it on when they look. One-sided.

        Waits for nobody.
        """
        if not self._has_told_of_stop:
            self._has_told_of_stop = True
            for rank in (self._rank, *self._told_of_stop):
                self._tell_stop(rank)

    @property
    def stop_announced(self) -> bool:
        """Whether some rank has announced a stop, which is then passed on. One-sided; waits for nobody."""
        self._drive()
        self._sync()
        if self._stop[0]:
            self.announce_stop()
        return bool(self._stop[0])

    def is_to_stop(self, *, has_reason: bool) -> bool:
        """Whether this rank ends: another has announced a stop, or it has a reason of its own, and then tells all.

        One-sided; waits for nobody.
        """
        if not self.stop_announced and has_reason:
            self.announce_stop()
        return has_reason or bool(self._stop[0])

    def finish(self) -> bool:
        """Send no more; return whether every message of every rank has arrived.

        Collective over the ranks, but does not wait: call it until it returns True, and poll once more after that.
        """
        self._has_ended = True
        self._drive()
        if self._under_way:
            return False
        if self.stages[self._rank] < Stage.SENT_ALL:
            self.announce(Stage.SENT_ALL)
        return bool((self.stages >= Stage.SENT_ALL).all())

    def announce(self, stage: Stage) -> None:
        """Tell every rank how far this one is with its end. One-sided; waits for nobody."""
        for rank in range(self.topology.num_ranks):
            self._tell_stage(rank, stage)

    @property
    def stages(self) -> Int64s:
        """How far every rank is with its end, as it has told this one, [n]. One-sided; waits for nobody."""
        # A rank that is at its end may be the only way to others that are not.
        _ = self.stop_announced
        return self._stages.copy()

    def _take(self, edge: int) -> Message:
        """Return the message whose flag is up, once it is found whole."""
        if edge in self._taken:
            return self._taken[edge]
        number = int(self._num_received[edge]) + 1
        found, message = self._read(edge)
        if self._flags[edge] != number or found != number:
            raise LostRankError(
                f"message {number} of rank {self._in_peers[edge]} is torn: its flag says {self._flags[edge]} "
                f"and its header {found}"
            )
        np.maximum(self.progress, message.progress, out=self.progress)
        try:
            z = self._readers[edge].read(message.payload.view(np.uint8))
        except LostRankError as error:
            raise LostRankError(f"message {number} of rank {self._in_peers[edge]}: {error}") from None
        self._taken[edge] = replace(message, payload=z)
        return self._taken[edge]

    def _complete_put(self, edge: int) -> None:
        """Raise the flag of a message once the network has taken it."""
        if edge in self._under_way and self._is_whole(edge):
            self._raise_flag(edge, int(self._num_sent[edge]))
            self._under_way.discard(edge)

    @abstractmethod
    def _sync(self) -> None:
        """Make what others have written visible here, and order reads before it and after."""

    @abstractmethod
    def _drive(self) -> None:
        """Move on what is under way, if nothing else does."""

    @abstractmethod
    def _put(self, edge: int, number: int, message: Message) -> bool:
        """Begin to put a message, its payload as it travels, into the peer's mailbox; return whether it is on its way.

        Unless it is, what it is put from holds still until `_is_whole`.
        """

    @abstractmethod
    def _is_whole(self, edge: int) -> bool:
        """Whether the network has taken all of the message put last along an edge."""

    @abstractmethod
    def _raise_flag(self, edge: int, number: int) -> None:
        """Tell the peer the number of the message that lies in its mailbox, once it is whole there."""

    @abstractmethod
    def _read(self, edge: int) -> tuple[int, Message]:
        """Return number and message that lie in a mailbox of this rank, the payload as it has travelled or longer."""

    @abstractmethod
    def _send_ack(self, edge: int, number: int) -> None:
        """Tell the sender along an in-edge the number of the last message that was read."""

    @abstractmethod
    def _tell_stop(self, rank: int) -> None:
        """Set a rank's `_stop`."""

    @abstractmethod
    def _tell_stage(self, rank: int, stage: Stage) -> None:
        """Set this rank's entry in the `_stages` of a rank."""
