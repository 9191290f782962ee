"""The order of an update, and how far the ensemble moves by it."""

import numpy as np
import pytest
from test_mixing import MemoryMailboxes

from galampi.errors import UserError
from galampi.gossip import Gossip, PushSum, UniformAverage, complete, exponential, refuse_silence, ring
from galampi.gossip.mixing import StepScale


def ensemble(topology, mixing, *, all_peers=False):
    """Return the ranks, and their parameters: two numbers each, of which optimizer steps move the first."""
    ranks = [Gossip(end, mixing(), all_peers=all_peers) for end in MemoryMailboxes(topology).ends]
    return ranks, np.zeros((topology.num_ranks, 2), np.float32)


def update(rank, z, step=1.0) -> None:
    scale = rank.before_step(z)
    z[0] += step * scale
    rank.after_step(z)


def test_push_sum_averages_steps_and_sends() -> None:
    ranks, z = ensemble(ring(2), PushSum)
    z[:, 1] = 8, 0
    # Rank 0: nothing has come; a step of 1 at weight 1; half of it goes, with the parameters after the step.
    update(ranks[0], z[0])
    np.testing.assert_array_equal(z[0], [1, 8])
    # Rank 1 averages that (a third of what it then holds), steps at weight 3/2, which is the mean of its weights.
    update(ranks[1], z[1])
    np.testing.assert_allclose(z[1], [1 / 3 + 1 / 1.5, 8 / 3], rtol=1e-6)
    assert ranks[1].mixing.step_weight == 1.5
    assert ranks[1].mixing.weight == 0.75
    # Rank 0 holds 1/2 and gets 3/4.
    update(ranks[0], z[0], step=0)
    np.testing.assert_allclose(z[0], [1, (0.5 * 8 + 0.75 * 8 / 3) / 1.25], rtol=1e-6)


@pytest.mark.parametrize("all_peers", [False, True])
def test_algorithm_1_of_two_ranks_steps_sends_and_averages(all_peers) -> None:
    ranks, z = ensemble(exponential(2), UniformAverage, all_peers=all_peers)
    z[:, 1] = 0, 4
    update(ranks[0], z[0])
    np.testing.assert_array_equal(z[0], [1, 0])
    # Rank 1 steps to (1, 4), sends that, and averages it with the (1, 0) of rank 0.
    update(ranks[1], z[1])
    np.testing.assert_array_equal(z[1], [1, 2])
    # Rank 0 steps to (2, 0), sends it, and averages it with what rank 1 sent before it averaged.
    update(ranks[0], z[0])
    np.testing.assert_array_equal(z[0], [1.5, 2])


@pytest.mark.parametrize("mixing", [PushSum, UniformAverage])
def test_a_delayed_message_is_averaged_so_many_updates_later(mixing) -> None:
    mailboxes = MemoryMailboxes(ring(2)).ends
    ranks = [Gossip(end, mixing(), delay_updates=2) for end in mailboxes]
    z = np.array([[8, 0], [0, 0]], np.float32)
    update(ranks[0], z[0], step=0)
    for num_received in (0, 0, 1):
        update(ranks[1], z[1], step=0)
        assert ranks[1].received[0] == num_received
        assert (z[1, 0] > 0) == (num_received == 1)
    # What lies there at the end is taken in at once.
    update(ranks[0], z[0], step=0)
    assert mailboxes[1].poll()
    ranks[1].take_in(z[1])
    assert ranks[1].received[0] == 2


def test_algorithm_1_on_the_ring_of_three() -> None:
    ranks, z = ensemble(ring(3), UniformAverage)
    z[:, 1] = 0, 6, 12
    for rank, each in zip(ranks, z, strict=True):
        update(rank, each)
    # Rank 0 had no message yet; 1 averaged 0's step, and 2 what rank 1 had sent before its averaging.
    np.testing.assert_array_equal(z, [[1, 0], [1, 3], [1, 9]])
    update(ranks[0], z[0])
    np.testing.assert_array_equal(z[0], [1.5, 6])


def test_algorithm_1_with_all_peers_of_three() -> None:
    ranks, z = ensemble(exponential(3), UniformAverage, all_peers=True)
    z[:, 1] = 0, 3, 9
    for rank, each in zip(ranks, z, strict=True):
        update(rank, each)
    # Only rank 2 had a message of both its in-peers.
    np.testing.assert_array_equal(z, [[1, 0], [1, 3], [1, 4]])
    update(ranks[0], z[0])
    np.testing.assert_allclose(z[0], [4 / 3, 4], rtol=1e-6)


def test_algorithm_1_in_rotation_averages_the_in_peer_of_the_round() -> None:
    ranks, z = ensemble(exponential(4), UniformAverage)
    z[:, 1] = 0, 4, 8, 12
    for rank, each in zip(ranks, z, strict=True):
        update(rank, each, step=0)
    # The first round is of hop 1: each averages the rank before it, if that has sent already.
    np.testing.assert_array_equal(z[:, 1], [0, 2, 6, 10])
    # The second is of hop 2: what rank 3 sent along hop 1 waits for the next round of that hop.
    update(ranks[2], z[2], step=0)
    np.testing.assert_array_equal(z[2, 1], 6)
    update(ranks[0], z[0], step=0)
    np.testing.assert_array_equal(z[0, 1], 3)
    update(ranks[0], z[0], step=0)
    np.testing.assert_array_equal(z[0, 1], (3 + 12) / 2)


CASES = [
    *((exponential(num_ranks), [1.0] * num_ranks, False) for num_ranks in (1, 2, 3, 5, 16)),
    (exponential(8), [3.0, *[1.0] * 7], False),
    (exponential(8), [10.0, *[1.0] * 7], False),
    (exponential(16), [1.0] * 16, True),
    (complete(5), [1.0] * 5, True),
]


def simulate(topology, periods, mixing, *, all_peers, num_updates=600):
    """Let ranks of unequal speed take steps of 1, and return how far their mean moved over what they asked for."""
    ranks, z = ensemble(topology, mixing, all_peers=all_peers)
    random = np.random.default_rng(3)
    due, num_steps = random.random(len(ranks)), np.zeros(len(ranks))
    while num_steps.max() < num_updates:
        i = int(due.argmin())
        due[i] += periods[i] * random.uniform(0.7, 1.3)
        num_steps[i] += 1
        update(ranks[i], z[i])
    for rank, each in zip(ranks, z, strict=True):
        rank.drain(each)
    weights = np.array([rank.mixing.weight for rank in ranks])
    moved = np.array([rank.mixing.moved for rank in ranks])
    np.testing.assert_allclose(moved, z[:, 0], rtol=1e-4)
    return weights @ z[:, 0].astype(np.float64) / num_steps.sum()


@pytest.mark.parametrize(("topology", "periods", "all_peers"), CASES)
def test_the_ensemble_moves_by_the_learning_rate(topology, periods, all_peers) -> None:
    assert simulate(topology, periods, PushSum, all_peers=all_peers) == pytest.approx(1, abs=0.01)


def test_algorithm_1_moves_by_a_part_of_the_learning_rate() -> None:
    assert 0.7 < simulate(exponential(2), [1.0, 1.0], UniformAverage, all_peers=False) < 0.95


def test_no_step_is_multiplied_by_much_however_small_the_weight() -> None:
    scale = StepScale()
    for _ in range(200):
        scale.next(1.0)
    assert scale.next(1 / 8) < 1.02


def test_a_scale_goes_on_from_its_state() -> None:
    scale = StepScale()
    for weight in (1.0, 0.5, 1.5):
        scale.next(weight)
    assert StepScale(**scale.state()).next(0.75) == scale.next(0.75)


@pytest.mark.parametrize(
    ("topology", "weight_floor", "all_peers", "refused"),
    [
        (exponential(2), 0.51, False, True),
        (exponential(2), 0.5, False, False),
        (ring(2), 0.6, True, True),
        (complete(16), 1 / 16, True, False),
        (complete(17), 1 / 16, True, True),
        (complete(17), 1 / 16, False, False),
        (exponential(1), 0.9, False, False),
    ],
)
def test_an_exchange_without_messages_is_refused(topology, weight_floor, all_peers, refused) -> None:
    gossip = Gossip(MemoryMailboxes(topology).ends[0], UniformAverage(), all_peers=all_peers)
    mixing = PushSum(weight_floor)
    sends = mixing.share(len(gossip._round_edges())) is not None or not topology.hops
    assert sends != refused
    if refused:
        with pytest.raises(UserError, match=r"weight_floor is .*; must be at most 1/\d+"):
            refuse_silence(topology, weight_floor, all_peers=all_peers)
    else:
        refuse_silence(topology, weight_floor, all_peers=all_peers)
