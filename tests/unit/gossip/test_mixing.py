from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from galampi.gossip import Gossip, Message, PushSum, Topology, UniformAverage, exponential, ring
from galampi.gossip.mixing import lerp

NO_PROGRESS = np.zeros(1, dtype=np.int64)


def message(payload: list[float], weight: float = 0.0) -> Message:
    return Message(np.array(payload, dtype=np.float32), weight, update=1, time_s=0.0, progress=NO_PROGRESS)


class MemoryMailboxes:
    """The mailboxes of all ranks of one process: what the window is, without MPI."""

    def __init__(self, topology: Topology) -> None:
        self.slots: list[dict[int, Message]] = [{} for _ in range(topology.num_ranks)]
        self.ends = [MemoryEnd(self, topology, rank) for rank in range(topology.num_ranks)]


class MemoryEnd:
    def __init__(self, mailboxes: MemoryMailboxes, topology: Topology, rank: int) -> None:
        self.topology = topology
        self.rank = rank
        self.progress = np.zeros(topology.num_ranks, dtype=np.int64)
        self._slots = mailboxes.slots

    def require(self, z) -> None:
        pass

    def push(self, edge, z, weight, update, time_s, moved):
        slots = self._slots[self.topology.out_peers(self.rank)[edge]]
        if edge in slots:
            return None
        slots[edge] = Message(z.copy(), weight, update, time_s, self.progress, moved)
        return z

    def poll(self):
        return dict(self._slots[self.rank])

    def acknowledge(self, edge) -> None:
        del self._slots[self.rank][edge]

    def finish(self) -> bool:
        return True


def test_lerp_by_hand() -> None:
    z = np.array([0, 10, -4], dtype=np.float32)
    lerp(z, np.array([4, 10, 0], dtype=np.float32), 0.25)
    np.testing.assert_array_equal(z, [1, 10, -3])


def test_lerp_of_a_vector_longer_than_its_chunks() -> None:
    z = np.arange(200_003, dtype=np.float32)
    lerp(z, np.zeros_like(z), 0.5)
    np.testing.assert_array_equal(z, np.arange(200_003) / 2)


def test_push_sum_by_hand() -> None:
    # w = 1 holds z = (1, 3); a share of 1/2 of z' = (4, 0) arrives: (1 * z + 1/2 * z') / (3/2) = (2, 2).
    mixing, z = PushSum(), np.array([1, 3], dtype=np.float32)
    used = mixing.receive(z, {2: message([4, 0], 0.5)}, ())
    assert used == [2]
    assert mixing.weight == 1.5
    np.testing.assert_allclose(z, [2, 2])


def test_push_sum_gives_half_to_one_peer_and_a_fair_part_to_several() -> None:
    mixing = PushSum(weight_floor=0.0)
    assert mixing.share(1) == 0.5
    assert mixing.share(3) == 0.25


def test_push_sum_keeps_its_floor() -> None:
    mixing = PushSum(weight_floor=1 / 16)
    mixing.weight = 1 / 8
    assert mixing.share(1) == 1 / 16
    z = np.ones(1, np.float32)
    mixing.give(1 / 16, z, z)
    assert mixing.share(1) is None


def test_push_sum_keeps_what_a_rounded_message_leaves_out() -> None:
    # w = 1 holds z = (1, 3) and gives 1/4 of it, of which the peer reads (2, 3): 3/4 of z and 1/4 of that are (1, 3).
    mixing, z = PushSum(), np.array([1, 3], dtype=np.float32)
    mixing.give(0.25, z, np.array([2, 3], dtype=np.float32))
    assert mixing.weight == 0.75
    np.testing.assert_allclose(z, [(1 - 0.25 * 2) / 0.75, 3], rtol=1e-6)


def test_algorithm_1_by_hand() -> None:
    mixing, z = UniformAverage(), np.array([3, 0], dtype=np.float32)
    used = mixing.receive(z, {0: message([0, 3]), 1: message([3, 3])}, (0, 1))
    assert used == [0, 1]
    np.testing.assert_allclose(z, [2, 2])


def test_algorithm_1_waits_for_every_in_peer() -> None:
    mixing, z = UniformAverage(), np.array([3, 0], dtype=np.float32)
    assert mixing.receive(z, {0: message([0, 3])}, (0, 1)) == []
    np.testing.assert_array_equal(z, [3, 0])
    assert mixing.receive(z, {}, ()) == []


@settings(deadline=None, max_examples=50)
@given(
    num_ranks=st.integers(1, 9),
    all_peers=st.booleans(),
    order=st.lists(st.integers(0, 8), min_size=1, max_size=400),
    start=hnp.arrays(np.float32, (9, 3), elements=st.floats(-100, 100, width=32)),
)
def test_mass_is_conserved_whatever_the_order_of_steps(num_ranks, all_peers, order, start) -> None:
    mailboxes = MemoryMailboxes(exponential(num_ranks))
    z = start[:num_ranks].copy()
    ranks = [Gossip(end, PushSum(), all_peers=all_peers) for end in mailboxes.ends]
    for chosen in order:
        ranks[chosen % num_ranks].step(z[chosen % num_ranks])
    held = sum(rank.mixing.weight for rank in ranks)
    flying = [m for slots in mailboxes.slots for m in slots.values()]
    assert held + sum(m.weight for m in flying) == pytest.approx(num_ranks, abs=1e-12)
    mass = sum(rank.mixing.weight * z[i].astype(np.float64) for i, rank in enumerate(ranks))
    mass += sum((m.weight * m.payload.astype(np.float64) for m in flying), np.zeros(3))
    # An averaging rounds z by two units in the last place, of at most the greatest; up to four messages a step.
    num_averaged = sum(rank.received.sum() for rank in ranks)
    rounding = 2 * num_ranks * (1 + num_averaged) * float(np.spacing(np.abs(start).max()))
    np.testing.assert_allclose(mass, start[:num_ranks].sum(axis=0, dtype=np.float64), rtol=0, atol=rounding)


def test_drain_takes_in_all_weight() -> None:
    mailboxes = MemoryMailboxes(exponential(4))
    z = np.arange(4, dtype=np.float32).reshape(4, 1)
    ranks = [Gossip(end, PushSum()) for end in mailboxes.ends]
    for i, rank in enumerate(ranks):
        rank.step(z[i])
    for i, rank in enumerate(ranks):
        rank.drain(z[i])
    assert sum(rank.mixing.weight for rank in ranks) == 4
    assert not any(mailboxes.slots)


def test_a_skipped_push_advances_the_rotation() -> None:
    mailboxes = MemoryMailboxes(exponential(4))
    z = np.zeros(1, dtype=np.float32)
    rank = Gossip(mailboxes.ends[0], PushSum(weight_floor=0.0))
    for _ in range(4):
        rank.step(z)
    np.testing.assert_array_equal(rank.sent, [1, 1])
    np.testing.assert_array_equal(rank.skipped, [1, 1])


def test_message_age_is_the_mean_over_the_messages_averaged() -> None:
    mailboxes = MemoryMailboxes(exponential(4))
    z = np.zeros(1, dtype=np.float32)
    for sender, sent_s in ((3, 1.0), (2, 2.0)):
        rank = Gossip(mailboxes.ends[sender], PushSum(), all_peers=True)
        rank.step(z, time_s=sent_s)
    receiver = Gossip(mailboxes.ends[0], PushSum())
    assert receiver.step(z, time_s=5.0) == pytest.approx(3.5)
    assert np.isnan(receiver.step(z, time_s=6.0))


@pytest.mark.parametrize("slowdown", [1, 10, 100])
def test_weights_stay_in_bounds_when_one_rank_is_slow(slowdown: int) -> None:
    """Event simulation: 8 ranks on the exponential graph, one of them slower."""
    mailboxes = MemoryMailboxes(exponential(8))
    z = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    ranks = [Gossip(end, PushSum()) for end in mailboxes.ends]
    period = [slowdown, *[1] * 7]
    weights = deque(maxlen=2000)
    jitter = np.random.default_rng(2)
    due = jitter.random(8)
    for _ in range(8000):
        i = int(due.argmin())
        due[i] += period[i] * jitter.uniform(0.8, 1.2)
        ranks[i].step(z[i])
        weights.append([rank.mixing.weight for rank in ranks])
    low, high = np.min(weights, axis=0), np.max(weights, axis=0)
    assert low.min() >= 1 / 16
    # A rank that soaked up the weight of the others would come near 8.
    assert high.max() < 3
    assert np.abs(z - z.mean(axis=0)).max() < 1e-3


def test_one_rank_alone_does_nothing() -> None:
    z = np.ones(3, dtype=np.float32)
    rank = Gossip(MemoryMailboxes(ring(1)).ends[0], PushSum())
    rank.step(z)
    rank.drain(z)
    assert rank.mixing.weight == 1
    np.testing.assert_array_equal(z, 1)
