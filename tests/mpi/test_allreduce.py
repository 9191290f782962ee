import numpy as np
import pytest


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60)
def test_gradients_by_hand(comm) -> None:
    """Rank r has r + 1 samples whose mean gradient is (r, 1)."""
    from galampi.gossip import AllReduce

    allreduce = AllReduce(comm)
    gradient = np.array([comm.rank, 1], dtype=np.float32)
    allreduce.average(gradient, num_samples=comm.rank + 1, progress=10 * comm.rank, stop=comm.rank == 2)
    # 1 rank: 0; 2 ranks: (0 + 2 * 1) / 3; 3 ranks: (0 + 2 * 1 + 3 * 2) / 6.
    expected = {1: 0, 2: 2 / 3, 3: 8 / 6}[comm.size]
    np.testing.assert_allclose(gradient, [expected, 1], rtol=1e-6)
    np.testing.assert_array_equal(allreduce.progress, 10 * np.arange(comm.size))
    assert allreduce.stop == (comm.size == 3)


@pytest.mark.mpi(ranks=[2, 3], timeout=60)
def test_algorithm_1_between_ranks(comm) -> None:
    """On the ring every rank averages itself with its predecessor: (z_r + z_(r-1)) / 2."""
    from galampi.gossip import Mailboxes, UniformAverage, ring

    z = np.full(5, comm.rank, dtype=np.float32)
    mailboxes = Mailboxes(comm, ring(comm.size), z.size)
    assert mailboxes.push(0, z, weight=0.0, update=1, time_s=0.0)
    while not (waiting := mailboxes.poll()):
        pass
    assert UniformAverage().receive(z, waiting, num_in_peers=1) == [0]
    np.testing.assert_array_equal(z, (comm.rank + (comm.rank - 1) % comm.size) / 2)
    mailboxes.free()
