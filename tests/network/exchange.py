"""Program: ranks that gossip between updates which take their time, and what is found when they end.

Started as `mpirun -n N python exchange.py SETTINGS`, SETTINGS being JSON: `form`, `update_s` of an update, `after`, a
file, and `least`: all go on until each has averaged so many messages from another host after the file was there. Rank 0
prints a line when they begin, and one of JSON when they end.
"""

import json
import os
import sys
import time

import numpy as np
from mpi4py import MPI

from galampi.gossip import Gossip, Mailboxes, PushSum, exponential

_NUM_PARAMETERS = 100_003


def main() -> None:
    settings = json.loads(sys.argv[1])
    comm = MPI.COMM_WORLD
    # Virtual nodes of a Slurm have one name.
    here = set(comm.Split_type(MPI.COMM_TYPE_SHARED).allgather(comm.rank))
    random = np.random.default_rng(comm.rank)
    z = random.normal(size=_NUM_PARAMETERS).astype(np.float32)
    unit = float(np.spacing(comm.allreduce(np.abs(z).max(), op=MPI.MAX)))
    mass = comm.allreduce(z.astype(np.float64))
    mailboxes = Mailboxes(comm, exponential(comm.size), z.size, form=settings["form"])
    gossip = Gossip(mailboxes, PushSum())
    from_elsewhere = [edge for edge, peer in enumerate(mailboxes.topology.in_peers(comm.rank)) if peer not in here]
    injected = np.zeros(z.size)
    steps_s, num_after, all_have_enough = [], 0, None
    comm.Barrier()
    if comm.rank == 0:
        print("begun", flush=True)
    while all_have_enough is None or not all_have_enough.Test():
        time.sleep(random.uniform(0.5, 1.5) * settings["update_s"])
        counts = os.path.exists(settings["after"])
        before_s, before = time.monotonic(), gossip.received[from_elsewhere].sum()
        gossip.before_step(z)
        if random.random() < 0.05:
            old = z.astype(np.float64)
            z += np.float32(0.01) * random.normal(size=z.size).astype(np.float32)
            injected += gossip.mixing.weight * (z.astype(np.float64) - old)
        gossip.after_step(z)
        steps_s.append(time.monotonic() - before_s)
        num_after += counts * int(gossip.received[from_elsewhere].sum() - before)
        if all_have_enough is None and num_after >= settings["least"]:
            all_have_enough = comm.Ibarrier()
    gossip.drain(z)
    mailboxes.free()
    expected = mass + comm.allreduce(injected)
    found = comm.allreduce(gossip.mixing.weight * z.astype(np.float64))
    num_averaged = comm.allreduce(int(gossip.received.sum()))
    told = {
        "num_averaged": num_averaged,
        "weight": comm.allreduce(gossip.mixing.weight),
        # In units in the last place of the greatest number, over what the roundings of so many averagings come to.
        "mass_error": float(np.abs(found - expected).max()) / unit / np.sqrt(1 + num_averaged),
        "longest_step_s": comm.allreduce(max(steps_s), op=MPI.MAX),
        "median_step_s": comm.allreduce(float(np.median(steps_s)), op=MPI.MAX),
        "num_steps": comm.allgather(len(steps_s)),
    }
    if comm.rank == 0:
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
