"""How far an ensemble of real ranks moves, over what their optimizer steps ask for."""

import time
import zlib

import numpy as np
import pytest
from limits import DEADLOCK_S

pytestmark = pytest.mark.library("effective step")

# So many that the first of them, from which a rank learns its mean weight, weigh little however busy the machine is.
NUM_UPDATES = 1200


@pytest.mark.mpi(ranks=3, timeout=DEADLOCK_S)
@pytest.mark.parametrize("all_peers", [False, True])
@pytest.mark.parametrize("slow_factor", [1, 3])
def test_push_sum_moves_by_the_learning_rate(comm, all_peers, slow_factor) -> None:
    move_and_check(comm, all_peers=all_peers, slow_factor=slow_factor)


@pytest.mark.mpi(ranks=[2, 5], timeout=DEADLOCK_S)
def test_push_sum_moves_by_the_learning_rate_whatever_the_number_of_ranks(comm) -> None:
    move_and_check(comm, all_peers=False, slow_factor=3)


def move_and_check(comm, *, all_peers, slow_factor) -> None:
    """Take steps of 1 on every rank, rank 0 more slowly, and check how far they moved the mean."""
    from galampi.gossip import Gossip, Mailboxes, PushSum, exponential

    z = np.zeros(8, dtype=np.float32)
    random = np.random.default_rng(comm.rank)
    num_steps = 0
    period_s = 2e-3 * (slow_factor if comm.rank == 0 else 1)
    with Mailboxes(comm, exponential(comm.size), z.size) as mailboxes:
        gossip = Gossip(mailboxes, PushSum(), all_peers=all_peers)
        comm.Barrier()
        while not mailboxes.stop_announced:
            time.sleep(period_s * random.uniform(0.5, 1.5))
            z += np.float32(gossip.before_step(z))
            gossip.after_step(z)
            num_steps += 1
            if num_steps == NUM_UPDATES:
                mailboxes.announce_stop()
        assert gossip.drain(z)
    moved = comm.allreduce(gossip.mixing.weight * float(z[0])) / comm.allreduce(num_steps)
    assert moved == pytest.approx(1, abs=0.02)
    assert gossip.mixing.moved == pytest.approx(float(z[0]), rel=1e-4)


@pytest.mark.mpi(ranks=[3], timeout=DEADLOCK_S)
def test_allreduce_keeps_ranks_equal_and_moves_by_the_learning_rate(comm) -> None:
    """Byte for byte, whatever part of the samples each rank has, and under a rate that falls with all ranks' steps."""
    from galampi.gossip import AllReduce, Gossip, Mailboxes, PushSum, edgeless

    allreduce = AllReduce(comm)
    z = np.linspace(-1, 1, 10_007, dtype=np.float32)
    random = np.random.default_rng(comm.rank)
    with Mailboxes(comm, edgeless(comm.size), z.size) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        progress = 0
        for _ in range(50):
            gradient = random.normal(size=z.size).astype(np.float32)
            num_samples = int(random.integers(0, 80))
            progress += num_samples
            allreduce.average(gradient, num_samples, progress, stop=False, checksum=zlib.crc32(z.data))
            rate = 1 - allreduce.progress.sum() / 10_000
            z -= np.float32(rate * gossip.before_step(z)) * gradient
            gossip.after_step(z)
        assert gossip.mixing.moved == 50
    assert len(set(comm.allgather(z.tobytes()))) == 1


@pytest.mark.mpi(ranks=[2], timeout=DEADLOCK_S)
def test_ranks_that_are_no_longer_equal_are_noticed(comm) -> None:
    from galampi.errors import BrokenRunError
    from galampi.gossip import AllReduce

    with pytest.raises(BrokenRunError, match="no longer have the same parameters"):
        AllReduce(comm).average(np.zeros(3, np.float32), 1, 1, stop=False, checksum=comm.rank)


@pytest.mark.mpi(ranks=[2], timeout=DEADLOCK_S)
def test_vectors_that_do_not_fit_are_refused_before_anything_is_sent(comm) -> None:
    from galampi.gossip import Gossip, Mailboxes, PushSum, ring

    frozen = np.zeros(6, np.float32)
    frozen.flags.writeable = False
    wrong = [
        (np.zeros(6), TypeError, "the vector is float64; these mailboxes hold float32"),
        (np.zeros(6, np.int64), TypeError, "the vector is int64"),
        ([0.0] * 6, TypeError, "the vector is list"),
        (np.zeros(5, np.float32), ValueError, r"shape is \(5,\); these mailboxes hold \(6,\)"),
        (np.zeros((2, 3), np.float32), ValueError, "shape"),
        (np.zeros(12, np.float32)[::2], ValueError, "contiguous and writeable"),
        (frozen, ValueError, "contiguous and writeable"),
    ]
    with Mailboxes(comm, ring(2), 6) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        for z, error, text in wrong:
            with pytest.raises(error, match=text):
                gossip.step(z)
        assert not gossip.sent.any()
    with pytest.raises(TypeError, match="float32 or float64"):
        Mailboxes(comm, ring(2), 6, dtype=np.int64)


@pytest.mark.mpi(ranks=[3], timeout=DEADLOCK_S)
def test_float64_is_averaged_as_precisely_as_it_is(comm) -> None:
    from galampi.gossip import Gossip, Mailboxes, PushSum, ring

    z = np.full(6, 1 + 1e-10 * comm.rank)
    with Mailboxes(comm, ring(3), 6, dtype=np.float64) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        for _ in range(300):
            gossip.step(z)
            time.sleep(1e-4)
        gossip.drain(z)
    np.testing.assert_allclose(comm.allreduce(gossip.mixing.weight * z) / 3, 1 + 1e-10, rtol=1e-14)


@pytest.mark.mpi(ranks=[2], timeout=DEADLOCK_S)
def test_nothing_is_sent_after_a_drain(comm) -> None:
    """Who has drained may have left: what is sent then nobody would read, and the sum of weights would be short."""
    from galampi.gossip import Gossip, Mailboxes, PushSum, ring

    z = np.full(6, comm.rank, np.float32)
    with Mailboxes(comm, ring(2), 6) as mailboxes:
        gossip = Gossip(mailboxes, PushSum())
        gossip.step(z)
        assert gossip.drain(z)
        with pytest.raises(RuntimeError, match="were drained; whoever goes on makes new ones"):
            gossip.step(z)
    assert sum(comm.allgather(gossip.mixing.weight)) == 2


@pytest.mark.mpi(ranks=[2], timeout=DEADLOCK_S)
def test_ranks_that_ask_for_other_mailboxes_are_refused_on_all(comm) -> None:
    from galampi.errors import UserError
    from galampi.gossip import Mailboxes, exponential, ring

    # Of 1000 and 1004 numbers the messages have the same size, rounded up to cache lines.
    with pytest.raises(UserError, match=r"num_parameters: 1004 on rank 1, and 1000 on rank 0; must be the same on all"):
        Mailboxes(comm, ring(2), 1000 + 4 * comm.rank)
    with pytest.raises(UserError, match="dtype: float64 on rank 1, and float32 on rank 0"):
        Mailboxes(comm, ring(2), 8, dtype=(np.float32, np.float64)[comm.rank])
    with pytest.raises(UserError, match="the topology is of 4 ranks, and there are 2"):
        Mailboxes(comm, exponential(4), 8)
