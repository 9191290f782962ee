"""Program: gossip without learning, and the parts it is made of.

Started as `mpirun -n N python -m galampi.bench.exchange SETTINGS`, SETTINGS being JSON: `cores`, `sizes_bytes`,
`seconds` (of each measurement) and `network`, whether messages leave shared memory. Rank 0 prints one line of JSON a
size. All ranks measure at the same time, for that is how they train. Times are medians, but for that of a gossip
step, which averages a message and sends one: it is the mean, which with more ranks than cores holds the waiting for a
core. Steps that do one of the two count half.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from galampi.ranks.launched import launched_rank

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_CALLS = 2000


def main() -> None:
    """Measure every size."""
    settings = json.loads(sys.argv[1])
    cores = settings["cores"]
    os.sched_setaffinity(0, {cores[launched_rank() % len(cores)]})

    from mpi4py import MPI

    from galampi.ranks.placement import end_with_launcher

    # Who has nothing to do leaves the core to a rank that shares it. Where there is a network thread it leaves it the
    # interpreter too, as a rank that trains does; this takes 60 us.
    wait = partial(time.sleep, 0) if settings["network"] else os.sched_yield
    comm = MPI.COMM_WORLD
    end_with_launcher(comm)
    for num_bytes in settings["sizes_bytes"]:
        measured = {"num_bytes": num_bytes, **_raw(comm, num_bytes, settings["seconds"])}
        measured |= _gossip(comm, num_bytes // 4, settings["seconds"], wait)
        if comm.rank == 0:
            print(json.dumps(measured), flush=True)


def _raw(comm: MPI.Intracomm, num_bytes: int, seconds: float) -> dict[str, float]:
    """Time a copy in memory, a Put of the same bytes, a flag, and an Allreduce. Collective over comm."""
    from mpi4py import MPI

    source = np.ones(num_bytes // 4, np.float32)
    # Not a distance of whole pages from the source, at which some processors copy slowly.
    target = np.zeros(source.size + 512, np.float32)[512:]
    flag = np.ones(1, np.int64)
    peer = (comm.rank + 1) % comm.size
    window = MPI.Win.Allocate(num_bytes + 64, 1, comm=comm)
    np.asarray(window.tomemory()).view(np.uint8)[:] = 0
    window.Lock_all(MPI.MODE_NOCHECK)
    comm.Barrier()

    def put() -> None:
        window.Put(source, peer, 64)
        window.Flush(peer)

    def put_flag() -> None:
        window.Accumulate(flag, peer, 0, MPI.REPLACE)
        window.Flush(peer)

    def copy() -> None:
        np.copyto(target, source)

    # In turns, so that copy and put meet the same moments.
    copy_s, put_s, flag_s = _times((copy, put, put_flag), seconds)
    # Over a network a put moves only while its target is inside MPI too.
    waiting = comm.Ibarrier()
    while not waiting.Test():
        pass
    calls = comm.bcast(max(3, min(_MOST_CALLS, int(seconds / max(copy_s + put_s, 1e-6)))))
    allreduce_s = []
    for _ in range(calls):
        start_s = time.perf_counter()
        comm.Allreduce(MPI.IN_PLACE, target)
        allreduce_s.append(time.perf_counter() - start_s)
    window.Unlock_all()
    window.Free()
    return {
        "copy_s": copy_s,
        "put_s": put_s,
        "flag_s": flag_s,
        "allreduce_s": float(np.median(allreduce_s)),
    }


def _times(calls: tuple[Callable[[], None], ...], seconds: float) -> list[float]:
    """Return the median time of each call, made in turns. Local."""
    taken: list[list[float]] = [[] for _ in calls]
    end_s = time.perf_counter() + seconds
    while len(taken[0]) < 5 or (time.perf_counter() < end_s and len(taken[0]) < _MOST_CALLS):
        for times, call in zip(taken, calls, strict=True):
            start_s = time.perf_counter()
            call()
            times.append(time.perf_counter() - start_s)
    return [float(np.median(times)) for times in taken]


def _gossip(comm: MPI.Intracomm, num_parameters: int, seconds: float, wait: Callable[[], None]) -> dict[str, float]:
    """Time whole gossip steps, and a message from its sending to its averaging. Collective over comm."""
    from galampi.gossip import Gossip, Mailboxes, PushSum, exponential
    from galampi.learning import lerp

    z = np.full(num_parameters, comm.rank, np.float32)
    with Mailboxes(comm, exponential(comm.size), z.size) as mailboxes:
        # As training has it.
        gossip = Gossip(mailboxes, PushSum(lerp=lerp))
        comm.Barrier()
        busy_s = 0.0
        end_s = time.perf_counter() + seconds
        all_have_enough = None
        # Ranks go on until all have enough: nobody could average what a rank that has stopped does not send.
        while all_have_enough is None or not all_have_enough.Test():
            before = gossip.sent.sum() + gossip.received.sum()
            start_s = time.perf_counter()
            gossip.step(z)
            if gossip.sent.sum() + gossip.received.sum() > before:
                busy_s += time.perf_counter() - start_s
            else:
                wait()
            has_both = gossip.sent.any() and gossip.received.any()
            if all_have_enough is None and has_both and time.perf_counter() > end_s:
                all_have_enough = comm.Ibarrier()
        num_steps = (gossip.sent.sum() + gossip.received.sum()) / 2
        gossip.drain(z)
    step_s = np.mean(comm.allgather(busy_s / num_steps))
    return {"step_s": float(step_s), "message_s": _message_s(comm, z, seconds, wait)}


def _message_s(comm: MPI.Intracomm, z: np.ndarray, seconds: float, wait: Callable[[], None]) -> float:
    """Return the time from the sending of a message to its arrival, of one that goes round. Collective over comm."""
    from galampi.gossip import Mailboxes, ring

    times_s: list[float] = []
    with Mailboxes(comm, ring(comm.size), z.size) as mailboxes:

        def send(weight: float) -> None:
            while mailboxes.push(0, z, weight, 0, 0.0) is None:
                wait()

        def receive() -> float:
            while not (waiting := mailboxes.poll()):
                wait()
            mailboxes.acknowledge(0)
            return waiting[0].weight

        comm.Barrier()
        end_s = time.perf_counter() + seconds
        goes_on = 1.0
        while goes_on:
            start_s = time.perf_counter()
            if comm.rank == 0:
                goes_on = float(len(times_s) < 5 or start_s < end_s)
                send(goes_on)
                receive()
                times_s.append((time.perf_counter() - start_s) / comm.size)
            else:
                goes_on = receive()
                send(goes_on)
    return float(np.median(times_s)) if times_s else float("nan")


if __name__ == "__main__":
    main()
