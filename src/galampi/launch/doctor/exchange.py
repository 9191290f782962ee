"""The exchange that the job will have: which of its messages leave their node, and whether all get through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from galampi.job import Job
from galampi.launch.doctor.finding import Finding, plural

if TYPE_CHECKING:
    from mpi4py import MPI

    from galampi.gossip import Topology

_NUM_MESSAGES = 1000
_SHARE_WORTH_A_WORD = 0.05
_SILENCE_S = 20.0
_SLEEP_S = 0.5
_NUM_PARAMETERS = 1000


def check_messages(job: Job, comm: MPI.Intracomm) -> Finding:
    """Let every rank send a thousand small messages, while one sleeps at first. Collective over comm.

    What MPI holds up for good cannot be taken back: after a failure it can only be aborted.
    """
    from mpi4py import MPI

    from galampi import gossip

    topology = gossip.topology_of(job.gossip.method, job.gossip.topology, comm.size)
    if not topology.hops:
        return Finding("messages", "ok", "none" if comm.size == 1 else f"none: gossip.method is {job.gossip.method!r}")
    nodes = comm.allgather(MPI.Get_processor_name())
    share, in_blocks = share_leaving(topology, nodes), share_leaving(topology, sorted(nodes, key=nodes.index))
    silent = comm.allgather(_send_and_receive(topology, comm))
    figures = {"share_leaving_node": share, "share_in_blocks": in_blocks}
    if edges := [f"rank {peer} to {rank}" for rank, peers in enumerate(silent) for peer in peers]:
        text = f"no message in {_SILENCE_S:.0f} s from {', '.join(edges[:5])}" + (" and more" if len(edges) > 5 else "")
        advice = "set OMPI_MCA_osc=^ucx, " if "Open MPI" in MPI.Get_library_version() else ""
        advice += "choose the network by UCX_NET_DEVICES, UCX_TLS or FI_PROVIDER, or use another MPI library"
        return Finding("messages", "failed", text, advice, figures)
    text = f"{plural(_NUM_MESSAGES, 'message')} a rank got through, to a rank that slept too; "
    text += f"{share:.0%} of the job's leave their node"
    if share > in_blocks + _SHARE_WORTH_A_WORD:
        advice = f"{in_blocks:.0%} would, were ranks placed in blocks: srun --distribution=block, mpirun --map-by core"
        return Finding("messages", "warning", text, advice, figures)
    return Finding("messages", "ok", text, figures=figures)


def share_leaving(topology: Topology, nodes: Sequence[str]) -> float:
    """Return the share of the messages that go to another node; over time every edge carries as many. Local."""
    leaving = [nodes[rank] != nodes[peer] for rank in range(len(nodes)) for peer in topology.out_peers(rank)]
    return sum(leaving) / len(leaving)


def _send_and_receive(topology: Topology, comm: MPI.Intracomm) -> list[int]:
    """Send and receive messages; return the in-peers that can send no more, if nothing has moved for too long."""
    from galampi import gossip

    z = np.zeros(_NUM_PARAMETERS, np.float32)
    mailboxes = gossip.Mailboxes(comm, topology, z.size)
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
