"""Mailboxes in a one-sided MPI window.

Owns the window and the protocol that keeps a message whole: a mailbox belongs to one directed edge, lies in the
receiver's window, and has one writer, one reader and room for one message. Knows no averaging.

A rank's window, every part on cache lines of its own:

    stop      int64      set by any rank: the job is to stop
    stage[r]  int64      written by rank r: how far it is with its end, see `Stage`
    ack[h]    int64      written by out-peer h: number of the last message it has read
    full[h]   int64      written by in-peer h: number of the last message it has put here
    header[h]            weight, sequence, update, time and progress of that message
    payload[h]           its parameters
"""

from __future__ import annotations

import os
import threading
import time
from enum import IntEnum
from types import TracebackType
from typing import Self

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from galampi.errors import LostRankError, UserError
from galampi.gossip.mixing import Floats, Int64s, Message
from galampi.gossip.topology import Topology

_LINE = 64
# Entry points of windows count in int; mpi4py has no big-count form of them (open-mpi/ompi#13151).
_MOST_BYTES_A_PUT = 1 << 30
_SHARED_MEMORY = "/dev/shm"
_NETWORK_PERIOD_S = 1e-3


class Stage(IntEnum):
    """How far a rank is with its end; it never goes back."""

    TRAINING = 0
    SENT_ALL = 1
    """It sends no more, and all it has sent has arrived."""
    SAVED = 2
    """It has received all, and its part of the results is whole on the disk."""
    SAVED_ALONE = 3
    """It waits no longer for somebody; its part of the results is whole, but not what is in flight."""


class Mailboxes:
    """The mailboxes of one rank and its ends of those of its peers.

    Attributes:
        topology: Who sends to whom.
        progress: What this rank knows of every rank's progress, [n] int64. It sets its own entry, which must never
            fall; the others come with messages, the larger value wins.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        topology: Topology,
        num_parameters: int,
        *,
        dtype: DTypeLike = np.float32,
        stage: bool | None = None,
    ) -> None:
        """Allocate the window. Collective over comm.

        Args:
            comm: Its ranks are the nodes of the topology.
            topology: Who sends to whom.
            num_parameters: Length P of every payload.
            dtype: Type of its numbers: float32 or float64.
            stage: Put from a copy of the payload and complete the put in a later call, as a network needs; None:
                for peers on other nodes.

        Raises:
            TypeError: Vectors of this type cannot be averaged.
            UserError: The shared memory of a node has too little room, or the window's memory is not unified.
        """
        self._dtype = np.dtype(dtype)
        if self._dtype not in (np.float32, np.float64):
            raise TypeError(f"mailboxes hold float32 or float64; dtype is {self._dtype}")
        self.topology = topology
        self.progress: Int64s = np.zeros(comm.size, dtype=np.int64)
        self._comm = comm.Dup()
        self._num_parameters = num_parameters
        num_edges = len(topology.hops)
        header = np.dtype(
            [
                ("weight", np.float64),
                ("sequence", np.int64),
                ("update", np.int64),
                ("time_s", np.float64),
                ("moved", np.float64),
                ("progress", np.int64, (comm.size,)),
            ]
        )
        # A slot is header and payload, so that one address and one size place them all.
        self._payload_at = _round_up(header.itemsize)
        payload_bytes = self._dtype.itemsize * num_parameters
        slot_bytes = self._payload_at + _round_up(payload_bytes)
        self._stages_at = _LINE
        self._acks_at = self._stages_at + _round_up(8 * comm.size)
        self._flags_at = self._acks_at + num_edges * _LINE
        self._slots_at = self._flags_at + num_edges * _LINE
        self._slot_bytes = slot_bytes
        num_bytes = self._slots_at + num_edges * slot_bytes

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        _check_shared_memory(comm, node, num_bytes)
        on_node = set(node.allgather(comm.rank))
        node.Free()

        self._window = MPI.Win.Allocate(num_bytes, 1, comm=self._comm)
        memory = np.asarray(self._window.tomemory()).view(np.uint8)
        memory[:] = 0
        self._stop = memory[:8].view(np.int64)
        self._stages = memory[self._stages_at : self._stages_at + 8 * comm.size].view(np.int64)
        self._acks = memory[self._acks_at : self._flags_at].view(np.int64)[:: _LINE // 8]
        self._flags = memory[self._flags_at : self._slots_at].view(np.int64)[:: _LINE // 8]
        slots = [memory[self._slot(edge) : self._slot(edge) + slot_bytes] for edge in range(num_edges)]
        self._headers = [slot[: header.itemsize].view(header) for slot in slots]
        self._payloads = [slot[self._payload_at : self._payload_at + payload_bytes].view(self._dtype) for slot in slots]
        self._out_peers = topology.out_peers(comm.rank)
        self._in_peers = topology.in_peers(comm.rank)
        self._num_sent = np.zeros(num_edges, dtype=np.int64)
        self._num_received = np.zeros(num_edges, dtype=np.int64)
        # Sources of puts and accumulates must hold still until they complete, so each edge has its own.
        self._header_out = np.zeros(num_edges, dtype=header)
        self._flag_out = np.zeros(num_edges, dtype=np.int64)
        self._ack_out = np.zeros(num_edges, dtype=np.int64)
        self._stop_out = np.ones(1, dtype=np.int64)
        self._stage_out = np.zeros(1, dtype=np.int64)
        self._staged = {
            edge: np.empty(num_parameters, dtype=self._dtype)
            for edge, peer in enumerate(self._out_peers)
            if (peer not in on_node if stage is None else stage)
        }
        # Edges whose put the network has not yet taken. Until its entry is gone an edge belongs to its thread.
        self._under_way: dict[int, list[MPI.Request]] = {}
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._thread_error: BaseException | None = None

        if self._window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED:
            self._window.Free()
            raise UserError("this MPI library keeps two copies of window memory; a unified memory model is needed")
        # Held for the window's life: no rank ever takes an exclusive lock, so nobody can wait for one.
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()
        crosses_network = bool(self._staged) or not on_node.issuperset(self._in_peers)
        if crosses_network and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            # A thread of its own for each edge: one whose peer does not answer holds up no other.
            for edge in (None, *self._staged):
                name = "galampi-network" if edge is None else f"galampi-edge-{edge}"
                thread = threading.Thread(target=self._drive_network, args=(edge,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

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

    def push(self, edge: int, z: Floats, weight: float, update: int, time_s: float, moved: float = 0.0) -> bool:
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
            Whether the message was sent.
        """
        self.require(z)
        self._window.Sync()
        if edge in self._under_way or self._acks[edge] != self._num_sent[edge]:
            return False
        self._num_sent[edge] += 1
        header = self._header_out[edge]
        header["weight"] = weight
        header["sequence"] = self._num_sent[edge]
        header["update"] = update
        header["time_s"] = time_s
        header["moved"] = moved
        header["progress"] = self.progress
        header_bytes = self._header_out[edge : edge + 1].view(np.uint8)
        peer = self._out_peers[edge]
        slot = self._slot(edge)
        staged = self._staged.get(edge)
        if staged is None:
            self._window.Put(header_bytes, peer, slot)
            for at, piece in _pieces(z):
                self._window.Put(piece, peer, slot + self._payload_at + at)
            self._raise_flag(edge)
        else:
            staged[:] = z
            self._under_way[edge] = [
                self._window.Rput(header_bytes, peer, slot),
                *(self._window.Rput(piece, peer, slot + self._payload_at + at) for at, piece in _pieces(staged)),
            ]
        return True

    def poll(self) -> dict[int, Message]:
        """Return the messages that wait, by in-edge.

        One-sided; waits for nobody. Payloads are views of the window, good until acknowledged.
        """
        self._drive_without_threads()
        self._window.Sync()
        edges = [int(edge) for edge in np.flatnonzero(self._flags != self._num_received)]
        # The flags are read: only now may the messages be.
        self._window.Sync()
        return {edge: self._message(edge) for edge in edges}

    def acknowledge(self, edge: int) -> None:
        """Free an in-edge's mailbox for the next message. One-sided; waits for nobody."""
        self._num_received[edge] += 1
        # The message has been read before its place is given back.
        self._window.Sync()
        self._ack_out[edge] = self._num_received[edge]
        self._replace(self._ack_out[edge : edge + 1], self._in_peers[edge], self._acks_at + edge * _LINE)

    def announce_stop(self) -> None:
        """Tell every rank that the job is to stop. One-sided; waits for nobody."""
        for rank in range(self._comm.size):
            self._replace(self._stop_out, rank, 0)

    @property
    def stop_announced(self) -> bool:
        """Whether some rank has announced a stop. Local."""
        self._window.Sync()
        return bool(self._stop[0])

    def finish(self) -> bool:
        """Send no more; return whether every message of every rank has arrived.

        Collective over comm, but does not wait: call it until it returns True, and poll once more after that.
        """
        self._drive_without_threads()
        if self._under_way:
            return False
        if self.stages[self._comm.rank] < Stage.SENT_ALL:
            self.announce(Stage.SENT_ALL)
        return bool((self.stages >= Stage.SENT_ALL).all())

    def announce(self, stage: Stage) -> None:
        """Tell every rank how far this one is with its end. One-sided; waits for nobody."""
        self._stage_out[0] = stage
        for rank in range(self._comm.size):
            self._replace(self._stage_out, rank, self._stages_at + 8 * self._comm.rank)

    @property
    def stages(self) -> Int64s:
        """How far every rank is with its end, as it has told this one, [n]. Local."""
        self._window.Sync()
        return self._stages.copy()

    def free(self) -> None:
        """Give the window back. Collective over comm; a second call does nothing."""
        if self._window != MPI.WIN_NULL:
            # A peer may still wait for a message that the network has not taken.
            while not self.finish():
                time.sleep(0)
            self._ended.set()
            for thread in self._threads:
                thread.join()
            self._window.Flush_all()
            self._comm.Barrier()
            self._stop = self._stages = self._acks = self._flags = np.empty(0, dtype=np.int64)
            self._headers, self._payloads = [], []
            self._window.Unlock_all()
            self._window.Free()
            self._comm.Free()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the window, unless an exception passes: the other ranks would not come to the collective call."""
        if error is None:
            self.free()

    def _message(self, edge: int) -> Message:
        header = self._headers[edge][0]
        number = self._num_received[edge] + 1
        if self._flags[edge] != number or header["sequence"] != number:
            raise LostRankError(
                f"message {number} of rank {self._in_peers[edge]} is torn: its flag says {self._flags[edge]} "
                f"and its header {header['sequence']}"
            )
        np.maximum(self.progress, header["progress"], out=self.progress)
        return Message(
            payload=self._payloads[edge],
            weight=float(header["weight"]),
            update=int(header["update"]),
            time_s=float(header["time_s"]),
            progress=header["progress"],
            moved=float(header["moved"]),
        )

    def _drive_network(self, edge: int | None) -> None:
        """Complete the puts along an edge, or move on those of others (None), while the rank computes.

        Without hardware for one-sided puts a library moves them only inside an MPI call, at both ends: with one call
        an update a message took a dozen updates over TCP, with these threads it takes one.
        """
        try:
            while not self._ended.wait(_NETWORK_PERIOD_S):
                if edge is None:
                    self._comm.Iprobe()
                else:
                    self._complete_put(edge)
        except BaseException as error:
            # The rank's next call raises it.
            self._thread_error = error

    def _drive_without_threads(self) -> None:
        """Do what the threads would do if there are none, and raise what has ended one."""
        if self._thread_error is not None:
            raise self._thread_error
        if not self._threads:
            for edge in self._staged:
                self._complete_put(edge)
            self._comm.Iprobe()

    def _complete_put(self, edge: int) -> None:
        """Raise the flag of a message once the network has taken it."""
        requests = self._under_way.get(edge)
        if requests is not None and MPI.Request.Testall(requests):
            self._raise_flag(edge)
            del self._under_way[edge]

    def _raise_flag(self, edge: int) -> None:
        peer = self._out_peers[edge]
        # The message must be whole at the target before the flag is there.
        self._window.Flush(peer)
        self._flag_out[edge] = self._num_sent[edge]
        self._window.Accumulate(self._flag_out[edge : edge + 1], peer, self._flags_at + edge * _LINE, MPI.REPLACE)
        # And the flag before this rank may say that it has sent all.
        self._window.Flush(peer)

    def _replace(self, value: Int64s, rank: int, at: int) -> None:
        self._window.Accumulate(value, rank, at, MPI.REPLACE)
        self._window.Flush_local(rank)

    def _slot(self, edge: int) -> int:
        return self._slots_at + edge * self._slot_bytes


def _pieces(z: Floats) -> list[tuple[int, Floats]]:
    """Cut a vector into puts of a countable size: pairs of byte offset and part."""
    step = _MOST_BYTES_A_PUT // z.itemsize
    return [(z.itemsize * start, z[start : start + step]) for start in range(0, z.size, step)]


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // _LINE) * _LINE


def _check_shared_memory(comm: MPI.Comm, node: MPI.Comm, num_bytes: int) -> None:
    """Raise on every rank when the windows of some node do not fit. Collective over comm."""
    if not os.path.isdir(_SHARED_MEMORY):
        free_bytes = None
    else:
        room = os.statvfs(_SHARED_MEMORY)
        free_bytes = room.f_bavail * room.f_frsize
    needed = node.size * num_bytes
    short = None
    if free_bytes is not None and needed > free_bytes:
        short = (
            f"{_SHARED_MEMORY} on {MPI.Get_processor_name()} has {free_bytes / 2**20:.0f} MiB free; the mailboxes of "
            f"the {node.size} ranks there need {needed / 2**20:.0f} MiB; enlarge it, or use topology 'ring'"
        )
    for line in comm.allgather(short):
        if line is not None:
            raise UserError(line)
