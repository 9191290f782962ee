"""Mailboxes in one-sided MPI windows.

Owns the windows, and the order of what is done to them that keeps a message whole. What may be done when is in
`galampi.gossip.rules`. Knows no averaging.

A rank's memory, every part on cache lines of its own:

    stop      int64      set by any rank that reaches this one: the job is to stop
    stage[r]  int64      written by rank r: how far it is with its end, see `Stage`
    ack[h]    int64      written by out-peer h: number of the last message it has read
    full[h]   int64      written by in-peer h: number of the last message it has put here
    header[h]            weight, sequence, update, time, sum of steps and progress of that message
    payload[h]           its parameters, in the form in which they travel

It lies in a window that the ranks of a node share, where they store and load, without a call that could wait. Ranks of
other nodes reach it by puts, through a second window over the same memory; threads make them, and wait for the network
in the place of the rank.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from galampi.errors import UserError
from galampi.gossip.carriers import Carrier, Words
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
    ) -> None:
        """Allocate the windows. Collective over comm.

        Args:
            comm: Its ranks are the nodes of the topology.
            topology: Who sends to whom.
            num_parameters: Length P of every vector that is sent.
            dtype: Type of its numbers: float32 or float64.
            form: How it travels.
            num_exact: How many numbers at its end travel as they are, whatever the form.

        Raises:
            TypeError: Vectors of this type cannot be averaged.
            UserError: On every rank: the ranks do not ask for the same; the shared memory of a node has too little
                room; the library has no windows between nodes, or a window's memory is not unified.
        """
        _refuse_others(comm, topology, num_parameters, dtype, form, num_exact)
        super().__init__(topology, comm.rank, num_parameters, dtype, form=form, num_exact=num_exact)
        self._comm = comm.Dup()
        num_edges = len(topology.hops)
        header = _header(comm.size)
        # A slot is header and payload, so that one address and one size place them all.
        self._payload_at = _round_up(header.itemsize)
        payload_bytes = max((reader.num_bytes for reader in self._readers), default=0)
        self._slot_bytes = self._payload_at + _round_up(payload_bytes)
        self._stages_at = _LINE
        self._acks_at = self._stages_at + _round_up(8 * comm.size)
        self._flags_at = self._acks_at + num_edges * _LINE
        self._slots_at = self._flags_at + num_edges * _LINE
        num_bytes = self._slots_at + num_edges * self._slot_bytes

        self._node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED))
        _check_shared_memory(comm, self._node, num_bytes)
        # Each rank's part on pages of its own, near its processor.
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})
        self._shared = MPI.Win.Allocate_shared(num_bytes, 1, info=info, comm=self._node)
        info.Free()
        self._memories = {
            rank: np.asarray(self._shared.Shared_query(on_node)[0]).view(np.uint8)[:num_bytes]
            for on_node, rank in enumerate(self._node.allgather(comm.rank))
        }
        self._map(header, payload_bytes)
        # From and to here go headers, payloads and what comes back: they must hold still while they are under way.
        self._headers_out = np.zeros(num_edges, dtype=header)
        self._payloads_out: dict[int, Bytes] = {
            edge: np.empty(payload_bytes, dtype=np.uint8)
            for edge, peer in enumerate(self._out_peers)
            if peer not in self._memories
        }
        self._word_out = np.zeros(1, dtype=np.int64)
        self._puts: dict[int, list[MPI.Request]] = {}
        self._carriers: dict[int, Carrier] = {}
        self._words = Words(self._fail)
        self._ended = threading.Event()
        self._driver: threading.Thread | None = None
        self._thread_error: BaseException | None = None

        self.windows = [self._shared]
        """What carries the messages; they are the mailboxes' own."""
        if self._node.size < comm.size:
            try:
                self._far = MPI.Win.Create(self._memories[comm.rank], 1, comm=self._comm)
            except MPI.Exception as error:
                self._free_windows()
                raise UserError(f"this MPI library makes no windows between nodes ({error}); ask `doctor`") from error
            self.windows.append(self._far)
        else:
            self._far = MPI.WIN_NULL
        if any(window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED for window in self.windows):
            self._free_windows()
            raise UserError("this MPI library keeps two copies of window memory; a unified memory model is needed")
        # Held for the windows' life: no rank ever takes an exclusive lock, so nobody can wait for one.
        for window in self.windows:
            window.Lock_all(MPI.MODE_NOCHECK)
        self._sync()
        self._comm.Barrier()
        if self._far != MPI.WIN_NULL and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._driver = threading.Thread(target=self._drive_network, name="galampi-network", daemon=True)
            self._driver.start()

    def _map(self, header: np.dtype[Any], payload_bytes: int) -> None:
        """Clear this rank's memory, and name its parts."""
        memory = self._memories[self._comm.rank]
        memory[:] = 0
        num_edges = len(self.topology.hops)
        self._stop = memory[:8].view(np.int64)
        self._stages = memory[self._stages_at : self._stages_at + 8 * self._comm.size].view(np.int64)
        self._acks = memory[self._acks_at : self._flags_at].view(np.int64)[:: _LINE // 8]
        self._flags = memory[self._flags_at : self._slots_at].view(np.int64)[:: _LINE // 8]
        slots = [memory[self._slot(edge) : self._slot(edge) + self._slot_bytes] for edge in range(num_edges)]
        self._headers = [slot[: header.itemsize].view(header) for slot in slots]
        self._payloads = [slot[self._payload_at : self._payload_at + payload_bytes] for slot in slots]

    def free(self) -> None:
        """Give the windows back. Collective over comm; a second call does nothing."""
        if self._comm != MPI.COMM_NULL:
            # A peer may still wait for a message that the network has not taken.
            while not self.finish():
                time.sleep(_NETWORK_PERIOD_S)
            for carrier in self._carriers.values():
                carrier.finish()
            self._words.finish()
            self._comm.Barrier()
            self._ended.set()
            if self._driver is not None:
                self._driver.join()
            self._stop = self._stages = self._acks = self._flags = np.empty(0, dtype=np.int64)
            self._headers, self._payloads, self._memories = [], [], {}
            for window in self.windows:
                window.Unlock_all()
            self._free_windows()
            self._comm.Free()

    def _free_windows(self) -> None:
        for window in reversed(self.windows):
            window.Free()
        self._node.Free()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the windows, unless an exception passes: the other ranks would not come to the collective call."""
        if error is None:
            self.free()

    def _drive_network(self) -> None:
        """Move on the puts of others while the rank computes.

        Without hardware for one-sided puts a library moves them only inside an MPI call, at both ends: with one call
        an update a message took a dozen updates over TCP, with this thread it takes one.
        """
        try:
            while not self._ended.wait(_NETWORK_PERIOD_S):
                self._comm.Iprobe()
        except BaseException as error:
            self._fail(error)

    def _sync(self) -> None:
        for window in self.windows:
            window.Sync()

    def _drive(self) -> None:
        """Do what the threads would do if there are none, and raise what has ended one."""
        if self._thread_error is not None:
            raise self._thread_error
        self._words.look()
        if self._driver is None and self._far != MPI.WIN_NULL:
            for edge in self._payloads_out:
                self._complete_put(edge)
            self._comm.Iprobe()

    def _put(self, edge: int, number: int, message: Message) -> bool:
        header = self._headers_out[edge]
        header["weight"] = message.weight
        header["sequence"] = number
        header["update"] = message.update
        header["time_s"] = message.time_s
        header["moved"] = message.moved
        header["progress"] = message.progress
        header_out = self._headers_out[edge : edge + 1].view(np.uint8)
        payload = message.payload.view(np.uint8)
        peer, slot = self._out_peers[edge], self._slot(edge)
        if peer in self._memories:
            into = self._memories[peer][slot : slot + self._slot_bytes]
            into[: header_out.size] = header_out
            into[self._payload_at : self._payload_at + payload.size] = payload
            return True
        payload_out = self._payloads_out[edge][: payload.size]
        payload_out[:] = payload
        if self._driver is None:
            self._puts[edge] = self._begin_puts(edge, header_out, payload_out)
        else:
            self._carrier(edge).give(partial(self._carry, edge, header_out, payload_out))
        return False

    def _begin_puts(self, edge: int, header_out: Bytes, payload_out: Bytes) -> list[MPI.Request]:
        """Begin to put a message into a mailbox on another node."""
        peer, slot = self._out_peers[edge], self._slot(edge)
        pieces = _pieces(payload_out)
        return [
            self._far.Rput(header_out, peer, slot),
            *(self._far.Rput(piece, peer, slot + self._payload_at + at) for at, piece in pieces),
            # The peer answers this after it has got those, on a network that keeps the order. A flush that waited
            # meanwhile would do so at full speed, and in some libraries let no other thread in.
            self._far.Rget(np.empty(1, np.int64), peer, self._flags_at + edge * _LINE),
        ]

    def _carry(self, edge: int, header_out: Bytes, payload_out: Bytes) -> None:
        """Bring a message to another node. In the edge's own thread, so that a silent peer holds up no other edge."""
        self._puts[edge] = self._begin_puts(edge, header_out, payload_out)
        _wait(self._puts[edge])
        self._complete_put(edge)

    def _is_whole(self, edge: int) -> bool:
        return MPI.Request.Testall(self._puts[edge])

    def _raise_flag(self, edge: int, number: int) -> None:
        peer, at = self._out_peers[edge], self._flags_at + edge * _LINE
        # The message must be whole at the target before the flag is there.
        if peer in self._memories:
            self._shared.Sync()
            self._store(number, peer, at)
        else:
            self._far.Flush(peer)
            # And the flag before this rank may say that it has sent all.
            self._write_far(number, peer, at)

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
        """Write a word into a rank's memory; in a thread where it is elsewhere, for a network may need both ends."""
        if rank in self._memories:
            self._store(word, rank, at)
        elif self._driver is None:
            # From an array that holds still meanwhile.
            self._word_out[0] = word
            self._far.Accumulate(self._word_out, rank, at, MPI.REPLACE)
            self._far.Flush_local(rank)
        else:
            self._words.give(rank, partial(self._write_far, word, rank, at))

    def _store(self, word: int, rank: int, at: int) -> None:
        """Store a word in the memory of a rank of this node: eight bytes in their place are stored at once."""
        self._memories[rank][at : at + 8].view(np.int64)[0] = word

    def _write_far(self, word: int, rank: int, at: int) -> None:
        """Write a word on another node, and wait until it is there."""
        words = np.array([word, 0], dtype=np.int64)
        # What was there comes back, so it is done at the target when this is done here. A flush may wait for every rank
        # of the window, as Open MPI's does over TCP; a request is this word's.
        _wait([self._far.Rget_accumulate(words[:1], words[1:], rank, at, op=MPI.REPLACE)])

    def _carrier(self, edge: int) -> Carrier:
        """Return the thread of an edge's messages."""
        if edge not in self._carriers:
            self._carriers[edge] = Carrier(f"galampi-carrier-{edge}", self._fail)
        return self._carriers[edge]

    def _fail(self, error: BaseException) -> None:
        """Keep what has ended a thread; the rank's next call raises it."""
        self._thread_error = error

    def _slot(self, edge: int) -> int:
        return self._slots_at + edge * self._slot_bytes


def _wait(requests: Iterable[MPI.Request]) -> None:
    """Wait for requests and leave the processor meanwhile, as MPI's own waiting does not."""
    requests = list(requests)
    while not MPI.Request.Testall(requests):
        time.sleep(_NETWORK_PERIOD_S)


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


def _refuse_others(
    comm: MPI.Comm, topology: Topology, num_parameters: int, dtype: DTypeLike, form: Form, num_exact: int
) -> None:
    """Raise on every rank unless all ask for mailboxes of one kind. Collective over comm."""
    own = {
        "num_parameters": num_parameters,
        "dtype": np.dtype(dtype).name,
        "form": form,
        "num_exact": num_exact,
        "the topology's ranks": topology.num_ranks,
        "the topology's hops": topology.hops,
    }
    asked = comm.allgather(own)
    for rank, other in enumerate(asked):
        for name, value in asked[0].items():
            if other[name] != value:
                raise UserError(f"{name}: {other[name]} on rank {rank}, and {value} on rank 0; must be the same on all")
    if topology.num_ranks != comm.size:
        raise UserError(f"the topology is of {topology.num_ranks} ranks, and there are {comm.size}")


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
