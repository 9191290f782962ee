"""The exchange that the job will have: which of its messages leave their node, and whether all get through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from galampi.errors import UserError
from galampi.job import Job
from galampi.launch.doctor.finding import Finding, plural
from galampi.launch.doctor.windows import carrier_of, what_makes_windows, what_to_set

if TYPE_CHECKING:
    from mpi4py import MPI

    from galampi.gossip import Topology

_NUM_MESSAGES = 1000
_SHARE_WORTH_A_WORD = 0.05
_SILENCE_S = 20.0
_HANG_S = 120.0
_SLEEP_S = 0.5
_NUM_PARAMETERS = 1000


def check_messages(job: Job, comm: MPI.Intracomm, give_up: Callable[[Finding], None] | None = None) -> Finding:
    """Let every rank send a thousand small messages, while one sleeps at first. Collective over comm.

    What MPI holds up for good cannot be taken back: after a failure it can only be aborted.

    Args:
        job: What is to run.
        comm: All ranks.
        give_up: On rank 0: called from another thread if a call of MPI does not come back.
    """
    from mpi4py import MPI

    from galampi import gossip

    topology = gossip.topology_of(job.gossip.method, job.gossip.topology, comm.size)
    if not topology.hops:
        return Finding("messages", "ok", "none" if comm.size == 1 else f"none: gossip.method is {job.gossip.method!r}")
    nodes = comm.allgather(MPI.Get_processor_name())
    share, in_blocks = share_leaving(topology, nodes), share_leaving(topology, sorted(nodes, key=nodes.index))
    carriers: list[str] = []
    watch = threading.Timer(_HANG_S, _give_up, (carriers, give_up))
    if give_up is not None:
        watch.start()
    try:
        silent = comm.allgather(_send_and_receive(topology, comm, carriers))
    except UserError as error:
        return Finding("messages", "failed", str(error).partition(";")[0], what_makes_windows())
    finally:
        watch.cancel()
    carrier = "".join(carriers)
    figures = {"share_leaving_node": share, "share_in_blocks": in_blocks, "carrier": carrier}
    if edges := [f"rank {peer} to {rank}" for rank, peers in enumerate(silent) for peer in peers]:
        text = f"no message in {_SILENCE_S:.0f} s from {', '.join(edges[:5])}" + (" and more" if len(edges) > 5 else "")
        return Finding("messages", "failed", text + _by(carrier), what_to_set(carrier), figures)
    text = f"{plural(_NUM_MESSAGES, 'message')} a rank got through{_by(carrier)}, to a rank that slept too; "
    text += f"{share:.0%} of the job's leave their node"
    if share > in_blocks + _SHARE_WORTH_A_WORD:
        advice = f"{in_blocks:.0%} would, were ranks placed in blocks: srun --distribution=block, mpirun --map-by core"
        return Finding("messages", "warning", text, advice, figures)
    return Finding("messages", "ok", text, figures=figures)


def _give_up(carriers: Sequence[str], give_up: Callable[[Finding], None]) -> None:
    carrier = "".join(carriers)
    text = f"a call of MPI has not come back for {_HANG_S:.0f} s{_by(carrier)}"
    give_up(Finding("messages", "failed", text, what_to_set(carrier)))


def _by(carrier: str) -> str:
    return f" by {carrier}" if carrier else ""


def share_leaving(topology: Topology, nodes: Sequence[str]) -> float:
    """Return the share of the messages that go to another node; over time every edge carries as many. Local."""
    leaving = [nodes[rank] != nodes[peer] for rank in range(len(nodes)) for peer in topology.out_peers(rank)]
    return sum(leaving) / len(leaving)


def _send_and_receive(topology: Topology, comm: MPI.Intracomm, carriers: list[str]) -> list[int]:
    """Send and receive messages; return the in-peers that can send no more, if nothing has moved for too long.

    Args:
        topology: Who sends to whom.
        comm: All ranks.
        carriers: Gets the name of what carries the messages, before the first of them.
    """
    from galampi import gossip

    z = np.zeros(_NUM_PARAMETERS, np.float32)
    mailboxes = gossip.Mailboxes(comm, topology, z.size)
    carriers.append(carrier_of(mailboxes.windows))
    num_edges = len(topology.hops)
    left, moved_s = [_NUM_MESSAGES // num_edges] * num_edges, time.monotonic()
    if comm.rank == comm.size - 1:
        time.sleep(_SLEEP_S)
    while any(left) or not mailboxes.finish():
        before = sum(left)
        for edge in range(num_edges):
            if left[edge] and mailboxes.push(edge, z, 0.0, 0, 0.0) is not None:
                left[edge] -= 1
        waiting = mailboxes.poll()
        for edge in waiting:
            mailboxes.acknowledge(edge)
        if waiting or sum(left) < before:
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > _SILENCE_S:
            return [peer for peer in topology.in_peers(comm.rank) if mailboxes.stages[peer] < gossip.Stage.SENT_ALL]
        time.sleep(0)
    mailboxes.free()
    return []
