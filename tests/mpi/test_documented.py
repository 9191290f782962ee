"""The README's lines for averaging anything by gossip."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from limits import DEADLOCK_S

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.mpi(ranks=[3], timeout=DEADLOCK_S)
def test_the_readmes_lines_average_and_learn(comm) -> None:
    from galampi.gossip import Gossip, Mailboxes, PushSum, exponential

    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    (averages,) = [block for block in blocks if "gossip.drain(z)" in block]
    (learns,) = [block for block in blocks if "gossip.before_step(z)" in block]
    names: dict = {}
    exec(averages, names)
    # Of numbers 0, 1 and 2. How close each comes depends on how fast the ranks are; the weighted mean does not.
    assert names["z"] == pytest.approx(np.full(1000, 1.0), abs=0.6)
    assert sum(comm.allgather(names["gossip"].mixing.weight * float(names["z"][0]))) == pytest.approx(3, abs=1e-4)

    def gradient(z):
        time.sleep(0.002)  # Or a rank would have made all its updates before another has begun.
        return z - comm.rank

    z = np.full(4, 10.0 * comm.rank, np.float32)
    with Mailboxes(comm, exponential(comm.size), z.size) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        known = {"gossip": gossip, "z": z, "learning_rate": np.float32(0.05), "gradient": gradient}
        for _ in range(400):
            exec(learns, known)
        gossip.drain(known["z"])
    # Each rank alone would go to its own number; the last to end pulls the mean towards its own.
    weighted = comm.allreduce(gossip.mixing.weight * float(known["z"][0])) / 3
    assert weighted == pytest.approx(1, abs=0.5)
    assert min(comm.allgather(gossip.mixing.moved)) > 0
