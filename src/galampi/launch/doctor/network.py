"""What lies between the nodes: the speed of messages, and the difference of clocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from galampi.launch.doctor.finding import Finding, mebibytes, plural
from galampi.launch.doctor.windows import what_makes_windows

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_PAIRS = 120
_MOST_SKEW_S = 0.5
_SLOW_PUT_BYTES_A_S = 1e8


def check_network(comm: MPI.Intracomm, message_bytes: int) -> Finding:
    """Measure Put and message latency between pairs of nodes, or two ranks of the only one. Collective over comm.

    All pairs of up to 16 nodes; of more, some in which every node appears.
    """
    from mpi4py import MPI

    if comm.size == 1:
        return Finding("network", "ok", "one rank: no messages")
    names = [f"rank {rank} on {name}" for rank, name in enumerate(comm.allgather(MPI.Get_processor_name()))]
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    leaders = [rank for rank, is_leader in enumerate(comm.allgather(node.rank == 0)) if is_leader]
    node.Free()
    between = "nodes" if len(leaders) > 1 else "ranks of the node"
    ends = leaders if len(leaders) > 1 else [0, 1]
    pairs = choose_pairs(ends)
    try:
        window = MPI.Win.Allocate(message_bytes, 1, comm=comm)
    except MPI.Exception as error:
        text = f"the MPI library makes no windows between {between} ({error})"
        return Finding("network", "failed", text, what_makes_windows())
    measured = _measure(comm, window, pairs, message_bytes)
    window.Free()
    results = [(*rates, names[a], names[b]) for (a, b), rates in measured]
    slowest, longest = min(results), max(results, key=lambda result: result[1])
    num_pairs = len(ends) * (len(ends) - 1) // 2
    counted = f"{len(pairs):,} of " if len(pairs) < num_pairs else ""
    text = (
        f"{counted}{plural(num_pairs, 'pair')} of {between}: Put of {mebibytes(message_bytes)} at least "
        f"{slowest[0] / 1e9:.2f} GB/s, latency at most {longest[1] * 1e6:,.0f} us"
    )
    if len(results) > 1:
        text += f" (slowest: {slowest[2]} to {slowest[3]}, {longest[2]} to {longest[3]})"
    names_of = ("put_bytes_per_s", "latency_s", "from", "to")
    figures = {"pairs": [dict(zip(names_of, result, strict=True)) for result in results]}
    # A small message is all latency.
    if slowest[0] < _SLOW_PUT_BYTES_A_S and message_bytes > 1 << 20:
        advice = "slow: is MPI on the fast network? (UCX_NET_DEVICES, FI_PROVIDER); --json has every pair"
        return Finding("network", "warning", text, advice, figures)
    return Finding("network", "ok", text, figures=figures)


def _measure(
    comm: MPI.Intracomm, window: MPI.Win, pairs: Sequence[tuple[int, int]], message_bytes: int
) -> list[tuple[tuple[int, int], tuple[float, float]]]:
    """Return of each pair of ranks the bytes a second of its fastest Put, and its least latency in s. Collective."""
    from mpi4py import MPI

    window.Lock_all(MPI.MODE_NOCHECK)
    payload = np.zeros(message_bytes, dtype=np.uint8)
    token = np.zeros(1, dtype=np.int64)
    measured = []
    for a, b in pairs:
        comm.Barrier()
        if comm.rank == a:
            put_s, latency_s = [], []
            for _ in range(20):
                began_s = time.perf_counter()
                comm.Send(token, b, 1)
                comm.Recv(token, b, 1)
                latency_s.append((time.perf_counter() - began_s) / 2)
            for _ in range(5):
                began_s = time.perf_counter()
                window.Put(payload, b)
                window.Flush(b)
                put_s.append(time.perf_counter() - began_s)
            measured.append(((a, b), (message_bytes / min(put_s), min(latency_s))))
        elif comm.rank == b:
            for _ in range(20):
                comm.Recv(token, a, 1)
                comm.Send(token, a, 1)
        # Ranks wait inside MPI, so a Put that needs its target's help gets it.
        comm.Barrier()
    window.Unlock_all()
    return [one for of_rank in comm.allgather(measured) for one in of_rank]


def choose_pairs(ends: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs to measure: all of few ends; of many, some in which every end appears. Local.

    Those farthest apart in the list come first, for they are likely to be the most switches apart. The pairs of one
    distance go round all ends, and half of them, rounded up, of the greatest distance reach every end.
    """
    num_ends = len(ends)
    pairs = []
    for distance in range(num_ends // 2, 0, -1):
        # At half way round the second half would repeat the first.
        for i in range(num_ends // 2 if 2 * distance == num_ends else num_ends):
            a, b = sorted((i, (i + distance) % num_ends))
            pairs.append((ends[a], ends[b]))
    return pairs[: max(_MOST_PAIRS, (num_ends + 1) // 2)]


def check_clocks(comm: MPI.Intracomm) -> Finding:
    """Compare all ranks' clocks, each with rank 0's by the quickest of some round trips. Collective over comm."""
    offsets_s = [0.0]
    for rank in range(1, comm.size):
        if comm.rank == 0:
            trips = []
            for _ in range(5):
                sent_s = time.time()
                theirs_s = comm.sendrecv(None, dest=rank, source=rank)
                back_s = time.time()
                trips.append((back_s - sent_s, theirs_s - (sent_s + back_s) / 2))
            offsets_s.append(min(trips)[1])
        elif comm.rank == rank:
            for _ in range(5):
                comm.recv(source=0)
                comm.send(time.time(), dest=0)
    skew_s = comm.bcast(max(offsets_s) - min(offsets_s))
    text = f"clocks at most {skew_s * 1e3:.1f} ms apart"
    figures = {"skew_s": skew_s}
    if skew_s > _MOST_SKEW_S:
        advice = (
            "times of files and in logs, and how long ago a run wrote (status, watch), will be wrong; "
            "what runs record will not, for it counts from their start: tell your site (NTP)"
        )
        return Finding("clocks", "warning", text, advice, figures)
    return Finding("clocks", "ok", text, figures=figures)
