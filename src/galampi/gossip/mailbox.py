"""Mailboxes in a one-sided MPI window.

Owns the window, and the order of its operations that keeps a message whole. What may be done when is in
`galampi.gossip.rules`. Knows no averaging.

A rank's window, every part on cache lines of its own:

    stop      int64      set by any rank that reaches this one: the job is to stop
    stage[r]  int64      written by rank r: how far it is with its end, see `Stage`
    ack[h]    int64      written by out-peer h: number of the last message it has read
    full[h]   int64      written by in-peer h: number of the last message it has put here
    header[h]            weight, sequence, update, time and progress of that message
    payload[h]           its parameters, in the form in which they travel
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from galampi.errors import UserError
from galampi.gossip.forms import Bytes, Form
from galampi.gossip.mixing import Message
from galampi.gossip.rules import MailboxRules, Stage
from galampi.gossip.topology import Topology

_LINE = 64
# Entry points of windows count in int; mpi4py has no big-count form of them (open-mpi/ompi#13151).
_MOST_BYTES_A_PUT = 1 << 30
_SHARED_MEMORY = "/dev/shm"
_NETWORK_PERIOD_S = 1e-3


class Mailboxes(MailboxRules):
    """The mailboxes of one rank and its ends of those of its peers, in windows of MPI."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        topology: Topology,
        num_parameters: int,
        *,
        dtype: DTypeLike = np.float32,
        form: Form = "full",
        num_exact: int = 0,
        stage: bool | None = None,
    ) -> None:
        """Allocate the window. Collective over comm.

        Args:
            comm: Its ranks are the nodes of the topology.
            topology: Who sends to whom.
            num_parameters: Length P of every vector that is sent.
            dtype: Type of its numbers: float32 or float64.
            form: How it travels.
            num_exact: How many numbers at its end travel as they are, whatever the form.
            stage: Put from a copy of the payload and complete the put in a later call, as a network needs; None:
                for peers on other nodes.

        Raises:
            TypeError: Vectors of this type cannot be averaged.
            UserError: The shared memory of a node has too little room, or the window's memory is not unified.
        """
        super().__init__(topology, comm.rank, num_parameters, dtype, form=form, num_exact=num_exact)
        self._comm = comm.Dup()
        num_edges = len(topology.hops)
        header = _header(comm.size)
        # A slot is header and payload, so that one address and one size place them all.
        self._payload_at = _round_up(header.itemsize)
        payload_bytes = max((reader.num_bytes for reader in self._readers), default=0)
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
        self._map(np.asarray(self._window.tomemory()).view(np.uint8), header, payload_bytes)
        # Sources of puts and accumulates must hold still until they complete, so each edge has its own.
        self._header_out = np.zeros(num_edges, dtype=header)
        self._flag_out = np.zeros(num_edges, dtype=np.int64)
        self._word_out = np.zeros(1, dtype=np.int64)
        self._staged = {
            edge: np.empty(payload_bytes, dtype=np.uint8)
            for edge, peer in enumerate(self._out_peers)
            if (peer not in on_node if stage is None else stage)
        }
        # Puts the network has not yet taken. While an edge is under way it belongs to its thread.
        self._requests: dict[int, list[MPI.Request]] = {}
        # Ranks that may not answer a word, each with who waits for it in the place of this rank.
        self._off_node = {
            rank for rank in range(comm.size) if rank != comm.rank and (rank not in on_node if stage is None else stage)
        }
        self._couriers: dict[int, _Courier] = {}
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
        if self._staged or not on_node.issuperset(self._in_peers):
            self._start_network()

    def _map(self, memory: np.ndarray, header: np.dtype[Any], payload_bytes: int) -> None:
        """Clear the window's memory, [num_bytes] uint8, and name its parts."""
        memory[:] = 0
        self._memory = memory
        num_edges = len(self.topology.hops)
        self._stop = memory[:8].view(np.int64)
        self._stages = memory[self._stages_at : self._stages_at + 8 * self._comm.size].view(np.int64)
        self._acks = memory[self._acks_at : self._flags_at].view(np.int64)[:: _LINE // 8]
        self._flags = memory[self._flags_at : self._slots_at].view(np.int64)[:: _LINE // 8]
        slots = [memory[self._slot(edge) : self._slot(edge) + self._slot_bytes] for edge in range(num_edges)]
        self._headers = [slot[: header.itemsize].view(header) for slot in slots]
        self._payloads = [slot[self._payload_at : self._payload_at + payload_bytes] for slot in slots]

    def _start_network(self) -> None:
        """Start what drives the network: a thread for each edge, so that one whose peer is silent holds up no other."""
        if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
            return
        for edge in (None, *self._staged):
            name = "galampi-network" if edge is None else f"galampi-edge-{edge}"
            thread = threading.Thread(target=self._drive_network, args=(edge,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def free(self) -> None:
        """Give the window back. Collective over comm; a second call does nothing."""
        if self._window != MPI.WIN_NULL:
            # A peer may still wait for a message that the network has not taken.
            while not self.finish():
                time.sleep(0)
            self._ended.set()
            for thread in self._threads:
                thread.join()
            for courier in self._couriers.values():
                courier.finish()
            self._window.Flush_all()
            self._comm.Barrier()
            self._stop = self._stages = self._acks = self._flags = self._memory = np.empty(0, dtype=np.int64)
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
            self._fail(error)

    def _sync(self) -> None:
        self._window.Sync()

    def _drive(self) -> None:
        """Do what the threads would do if there are none, and raise what has ended one."""
        if self._thread_error is not None:
            raise self._thread_error
        if not self._threads:
            for edge in self._staged:
                self._complete_put(edge)
            self._comm.Iprobe()

    def _put(self, edge: int, number: int, message: Message) -> bool:
        header = self._header_out[edge]
        header["weight"] = message.weight
        header["sequence"] = number
        header["update"] = message.update
        header["time_s"] = message.time_s
        header["moved"] = message.moved
        header["progress"] = message.progress
        header_bytes = self._header_out[edge : edge + 1].view(np.uint8)
        peer = self._out_peers[edge]
        slot = self._slot(edge)
        payload = message.payload.view(np.uint8)
        if edge not in self._staged:
            self._window.Put(header_bytes, peer, slot)
            for at, piece in _pieces(payload):
                self._window.Put(piece, peer, slot + self._payload_at + at)
            return True
        staged = self._staged[edge][: payload.size]
        staged[:] = payload
        self._requests[edge] = [
            self._window.Rput(header_bytes, peer, slot),
            *(self._window.Rput(piece, peer, slot + self._payload_at + at) for at, piece in _pieces(staged)),
        ]
        return False

    def _is_whole(self, edge: int) -> bool:
        return MPI.Request.Testall(self._requests[edge])

    def _raise_flag(self, edge: int, number: int) -> None:
        peer = self._out_peers[edge]
        # The message must be whole at the target before the flag is there.
        self._window.Flush(peer)
        self._flag_out[edge] = number
        self._window.Accumulate(self._flag_out[edge : edge + 1], peer, self._flags_at + edge * _LINE, MPI.REPLACE)
        # And the flag before this rank may say that it has sent all.
        self._window.Flush(peer)

    def _read(self, edge: int) -> tuple[int, Message]:
        header = self._headers[edge][0]
        return int(header["sequence"]), Message(
            payload=self._payloads[edge],
            weight=float(header["weight"]),
            update=int(header["update"]),
            time_s=float(header["time_s"]),
            progress=header["progress"],
            moved=float(header["moved"]),
        )

    def _send_ack(self, edge: int, number: int) -> None:
        self._write(number, self._in_peers[edge], self._acks_at + edge * _LINE)

    def _tell_stop(self, rank: int) -> None:
        self._write(1, rank, 0)

    def _tell_stage(self, rank: int, stage: Stage) -> None:
        self._write(stage, rank, self._stages_at + 8 * self._comm.rank)

    def _write(self, word: int, rank: int, at: int) -> None:
        """Write a word into a rank's window; by a courier where it is elsewhere, for a network may need both ends."""
        if rank == self._comm.rank:
            self._memory[at : at + 8].view(np.int64)[0] = word
            return
        if rank not in self._off_node or not self._threads:
            # From an array that holds still meanwhile.
            self._word_out[0] = word
            self._window.Accumulate(self._word_out, rank, at, MPI.REPLACE)
            self._window.Flush_local(rank)
            return
        if rank not in self._couriers:
            self._couriers[rank] = _Courier(self._window, rank, self._fail)
        self._couriers[rank].send(word, at)

    def _fail(self, error: BaseException) -> None:
        """Keep what has ended a thread; the rank's next call raises it."""
        self._thread_error = error

    def _slot(self, edge: int) -> int:
        return self._slots_at + edge * self._slot_bytes


class _Courier:
    """Writes words into one rank's window, in the order they are given, and waits there in the place of the giver."""

    def __init__(self, window: MPI.Win, rank: int, fail: Callable[[BaseException], None]) -> None:
        self._window = window
        self._rank = rank
        self._fail = fail
        self._words: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=f"galampi-words-{rank}", daemon=True)
        self._thread.start()

    def send(self, word: int, at: int) -> None:
        """Give a word to be written at a place of the window. Waits for nobody."""
        self._words.put((word, at))

    def finish(self) -> None:
        """Wait until all are written."""
        self._words.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        word_out = np.zeros(1, dtype=np.int64)
        try:
            while (item := self._words.get()) is not None:
                word_out[0], at = item
                # A flush may wait for every rank of the window, as Open MPI's does over TCP; a request is this word's.
                self._window.Raccumulate(word_out, self._rank, at, MPI.REPLACE).Wait()
        except BaseException as error:
            self._fail(error)


def _pieces(payload: Bytes) -> list[tuple[int, Bytes]]:
    """Cut a payload into puts of a countable size: pairs of offset and part."""
    return [(start, payload[start : start + _MOST_BYTES_A_PUT]) for start in range(0, payload.size, _MOST_BYTES_A_PUT)]


def _header(num_ranks: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("weight", np.float64),
            ("sequence", np.int64),
            ("update", np.int64),
            ("time_s", np.float64),
            ("moved", np.float64),
            ("progress", np.int64, (num_ranks,)),
        ]
    )


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
