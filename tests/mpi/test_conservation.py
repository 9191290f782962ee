"""The invariants of gossip between real ranks.

Run on shared memory, and with --network on the path between nodes.
"""

import os
import time

import numpy as np
import pytest

pytestmark = pytest.mark.library("conservation")


@pytest.mark.mpi(ranks=[1, 2, 3, 5])
def test_weight_and_mass_are_conserved_and_ranks_agree(comm) -> None:
    exchange_and_check(comm, "full")


@pytest.mark.mpi(ranks=[2, 5])
@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_rounded_messages_conserve_weight_and_mass_and_ranks_agree(comm, form) -> None:
    exchange_and_check(comm, form)


def exchange_and_check(comm, form) -> None:
    """Exchange some thousand messages with steps and delays between, and check what is conserved."""
    from mpi4py import MPI

    from galampi.gossip import Gossip, Mailboxes, PushSum, exponential

    # As many as the machine sends in some seconds: on fewer cores than ranks a message may take a scheduler's turn.
    until_s, least, most = time.monotonic() + 2, 200, 100_000 // comm.size
    random = np.random.default_rng(comm.rank)
    z = random.normal(size=64).astype(np.float32)
    unit = np.spacing(comm.allreduce(np.abs(z).max(), op=MPI.MAX))
    mass_before = comm.allreduce(z.astype(np.float64))
    mailboxes = Mailboxes(comm, exponential(comm.size), z.size, form=form)
    gossip = Gossip(mailboxes, PushSum())
    injected = np.zeros(64)

    def step() -> None:
        skipped = gossip.skipped.sum()
        gossip.step(z)
        if gossip.skipped.sum() > skipped:
            os.sched_yield()

    def step_until(happens: MPI.Request) -> None:
        while not happens.Test():
            step()

    while comm.size > 1 and (sent := gossip.sent.sum()) < most and (sent < least or time.monotonic() < until_s):
        step()
        chance = random.random()
        if chance < 0.01:
            # What an optimizer step does: z moves, and the mass with it.
            change = random.normal(size=64).astype(np.float32) * np.float32(0.01)
            before = z.astype(np.float64)
            z += change
            injected += gossip.mixing.weight * (z.astype(np.float64) - before)
        if chance < 0.001:
            time.sleep(random.exponential(1e-3))
    # Once nobody's z moves by itself, some more messages make all agree.
    step_until(comm.Ibarrier())
    enough = gossip.received.sum() + 100
    while comm.size > 1 and gossip.received.sum() < enough:
        step()
    step_until(comm.Ibarrier())
    mailboxes.announce_stop()

    # Held and in flight: once all puts are through, what no rank holds waits in a mailbox.
    while not mailboxes.finish():
        os.sched_yield()
    comm.Barrier()
    waiting = sum(message.weight for message in mailboxes.poll().values())
    held_and_flying = comm.allreduce(gossip.mixing.weight + waiting)
    gossip.drain(z)
    mailboxes.free()

    assert held_and_flying == pytest.approx(comm.size, abs=1e-9)
    weights = comm.allgather(gossip.mixing.weight)
    assert sum(weights) == pytest.approx(comm.size, abs=1e-9)
    assert comm.allreduce(int(gossip.sent.sum())) == comm.allreduce(int(gossip.received.sum()))
    if comm.size > 1:
        assert gossip.sent.sum() >= least
    num_averaged = comm.allreduce(int(gossip.received.sum()))
    print(f"{num_averaged} messages")
    # An averaging rounds z to a unit in the last place or two, and so the mass; now up, now down.
    rounding = 4 * unit * np.sqrt(1 + num_averaged)
    mass = comm.allreduce(gossip.mixing.weight * z.astype(np.float64))
    expected = mass_before + comm.allreduce(injected)
    np.testing.assert_allclose(mass, expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(z, expected / comm.size, rtol=0, atol=16 * unit + rounding / comm.size)
    assert max(np.abs(z - other).max() for other in comm.allgather(z)) < 16 * unit


@pytest.mark.mpi(ranks=[2, 3, 4])
def test_no_message_is_torn(comm) -> None:
    """Every element of a payload carries its sender and number, so a mixture of two messages shows."""
    from galampi.gossip import Mailboxes, complete

    num_parameters, num_messages = 300_007, 150
    mailboxes = Mailboxes(comm, complete(comm.size), num_parameters)
    peers_in = mailboxes.topology.in_peers(comm.rank)
    edges = range(comm.size - 1)
    z = np.empty(num_parameters, dtype=np.float32)
    sent, received = np.zeros(len(edges), dtype=int), np.zeros(len(edges), dtype=int)
    while sent.min() < num_messages or received.min() < num_messages:
        for edge in edges:
            if sent[edge] < num_messages:
                number = int(sent[edge]) + 1
                z[:] = comm.rank * 1000 + number
                read = mailboxes.push(edge, z, weight=float(number), update=number, time_s=0.5 * number)
                sent[edge] += read is not None
                # The vector is the sender's again at once: what was sent must not change with it.
                z[:] = -1
        # A training rank leaves the network thread its turn while it computes.
        time.sleep(1e-4)
        for edge, message in mailboxes.poll().items():
            received[edge] += 1
            number = int(received[edge])
            assert message.update == number
            assert message.weight == number
            assert message.time_s == 0.5 * number
            assert (message.payload == peers_in[edge] * 1000 + number).all()
            mailboxes.acknowledge(edge)
    mailboxes.free()


@pytest.mark.mpi(ranks=[2])
@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_a_peer_reads_what_its_sender_says_that_it_reads(comm, form) -> None:
    from galampi.gossip import Mailboxes, ring

    random = np.random.default_rng(comm.rank)
    z = random.normal(size=300_007).astype(np.float32)
    mailboxes = Mailboxes(comm, ring(2), z.size, form=form)
    for number in range(20):
        while (said := mailboxes.push(0, z, 1.0, number, 0.0)) is None:
            time.sleep(1e-4)
        while not (waiting := mailboxes.poll()):
            time.sleep(1e-4)
        # Looked at twice, it is still what it was.
        assert mailboxes.poll()[0].update == number
        expected = comm.sendrecv(said.copy(), 1 - comm.rank, source=1 - comm.rank)
        np.testing.assert_array_equal(waiting[0].payload, expected)
        mailboxes.acknowledge(0)
        z += np.float32(1e-3) * random.normal(size=z.size).astype(np.float32)
    mailboxes.free()


@pytest.mark.mpi(ranks=[3])
def test_a_full_mailbox_is_left_alone(comm) -> None:
    from galampi.gossip import Mailboxes, ring

    mailboxes = Mailboxes(comm, ring(comm.size), 10)
    z = np.full(10, comm.rank, dtype=np.float32)
    assert mailboxes.push(0, z, 0.5, 1, 0.0) is z
    assert mailboxes.push(0, z + 100, 0.25, 2, 0.0) is None
    while not mailboxes.finish():
        pass
    comm.Barrier()
    (message,) = mailboxes.poll().values()
    assert (message.weight, message.update) == (0.5, 1)
    assert (message.payload == (comm.rank - 1) % 3).all()
    mailboxes.free()


@pytest.mark.mpi(ranks=[4])
def test_progress_spreads_and_never_falls(comm) -> None:
    from galampi.gossip import Gossip, Mailboxes, PushSum, ring

    mailboxes = Mailboxes(comm, ring(comm.size), 10)
    gossip = Gossip(mailboxes, PushSum())
    z = np.zeros(10, dtype=np.float32)
    seen = mailboxes.progress.copy()
    all_know = None
    # A rank that has heard of all goes on passing it on until the others have too.
    while all_know is None or not all_know.Test():
        mailboxes.progress[comm.rank] += 1
        gossip.step(z)
        time.sleep(1e-4)
        assert (mailboxes.progress >= seen).all()
        seen = mailboxes.progress.copy()
        if all_know is None and mailboxes.progress.all():
            all_know = comm.Ibarrier()
    assert mailboxes.progress.all()
    gossip.drain(z)
    mailboxes.free()


@pytest.mark.mpi(ranks=[3])
def test_a_stop_reaches_every_rank(comm) -> None:
    from galampi.gossip import Mailboxes, ring

    mailboxes = Mailboxes(comm, ring(comm.size), 1)
    assert not mailboxes.stop_announced
    comm.Barrier()
    if comm.rank == 1:
        mailboxes.announce_stop()
    while not mailboxes.stop_announced:
        mailboxes.poll()
    mailboxes.free()


@pytest.mark.mpi(ranks=[2])
def test_too_little_shared_memory_is_one_error_on_every_rank(comm, monkeypatch) -> None:
    from galampi.errors import UserError
    from galampi.gossip import Mailboxes, ring

    class Room:
        f_bavail, f_frsize = (1, 4096) if comm.rank == 1 else (1 << 40, 4096)

    monkeypatch.setattr(os, "statvfs", lambda path: Room)
    with pytest.raises(UserError, match=r"/dev/shm on .* has 0 MiB free; .* need \d+ MiB"):
        Mailboxes(comm, ring(comm.size), 1_000_000)
