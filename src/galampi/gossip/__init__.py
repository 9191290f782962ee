"""Gossip: ranks average a vector peer to peer, through one-sided MPI windows, and wait for nobody.

This wing knows numpy and MPI and nothing of what the vector means; it is of use alone:

    import numpy as np
    from mpi4py import MPI
    from galampi.gossip import Gossip, Mailboxes, PushSum, exponential

    comm = MPI.COMM_WORLD
    z = np.full(1000, comm.rank, dtype=np.float32)
    with Mailboxes(comm, exponential(comm.size), z.size) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        for _ in range(1000):
            gossip.step(z)
        gossip.drain(z)
    print(comm.rank, z[0])  # close to the mean of all ranks
"""

from galampi.gossip.allreduce import AllReduce
from galampi.gossip.asynchronous import Gossip, refuse_silence
from galampi.gossip.forms import Form
from galampi.gossip.mailbox import Mailboxes
from galampi.gossip.mixing import Message, PushSum, UniformAverage
from galampi.gossip.patience import SIGNALLED_PATIENCE_S, Patience, is_heard_of
from galampi.gossip.rules import MailboxRules, Stage
from galampi.gossip.topology import Topology, complete, edgeless, exponential, ring, topology_of

__all__ = [
    "SIGNALLED_PATIENCE_S",
    "AllReduce",
    "Form",
    "Gossip",
    "MailboxRules",
    "Mailboxes",
    "Message",
    "Patience",
    "PushSum",
    "Stage",
    "Topology",
    "UniformAverage",
    "complete",
    "edgeless",
    "exponential",
    "is_heard_of",
    "refuse_silence",
    "ring",
    "topology_of",
]
