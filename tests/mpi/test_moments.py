"""Moments that ride in the vector: ranks that see other data agree on those of all data."""

import time

import numpy as np
import pytest
from limits import DEADLOCK_S

NUM_UPDATES = 1000


@pytest.mark.mpi(ranks=3, timeout=DEADLOCK_S)
@pytest.mark.parametrize("method", ["push-sum", pytest.param("gala", marks=pytest.mark.slow), "allreduce"])
def test_ranks_agree_on_the_moments_of_all_data(comm, method) -> None:
    """Rank r sees numbers around 1000 + 4 r, of deviation 1; those of all ranks deviate by more."""
    import gymnasium as gym

    from galampi.gossip import AllReduce, Gossip, Mailboxes, PushSum, UniformAverage, topology_of
    from galampi.job import load_job
    from galampi.learning import Learner

    num_rows = 32
    job = load_job(None, {"environment.id": "CartPole-v1", "learner.normalize_observations": "true"})
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    learner = Learner(
        job, space, gym.spaces.Discrete(2), total_simulators=8, seed=1, action_seed=1, device="cpu", precision="float32"
    )
    rng = np.random.default_rng(comm.rank)

    def rows() -> np.ndarray:
        return rng.normal(1000 + 4 * comm.rank, 1, (num_rows, 2)).astype(np.float32)

    normalization = learner.normalization
    normalization.begin(rows())
    comm.Bcast(learner.moments, root=0)
    allreduce = AllReduce(comm)
    mailboxes = Mailboxes(comm, topology_of(method, "exponential", comm.size), learner.z.size)
    gossip = Gossip(mailboxes, UniformAverage() if method == "gala" else PushSum())
    comm.Barrier()
    num_updates = 0
    while not (mailboxes.stop_announced or (method == "allreduce" and num_updates == NUM_UPDATES)):
        # As of a rollout: without it the first rank would be done before the last begins.
        time.sleep(1e-3)
        normalization.count(rows())
        learner.gradient[:] = 0
        normalization.write_gradient()
        if method == "allreduce":
            allreduce.average(learner.gradient, num_rows, 0, stop=False)
        scale = gossip.before_step(learner.z)
        normalization.step(scale)
        gossip.after_step(learner.z)
        num_updates += 1
        if method != "allreduce" and num_updates == NUM_UPDATES:
            mailboxes.announce_stop()
    gossip.drain(learner.z)
    mailboxes.free()
    learner.refresh()
    deviation = normalization.observations.std[0]
    weights = np.array(comm.allgather(gossip.mixing.weight))
    learner.moments[:] = weights @ np.stack(comm.allgather(learner.moments)) / comm.size
    learner.refresh()

    # Of ranks of different speeds each counts as often as it has made updates.
    counts = np.array(comm.allgather(num_updates))
    expected = np.average(4 * np.arange(comm.size), weights=counts)
    expected_deviation = np.sqrt(1 + np.average((4 * np.arange(comm.size) - expected) ** 2, weights=counts))
    found, found_deviation = normalization.observations.mean[0] - 1000, normalization.observations.std[0]
    print(f"{counts} updates: mean {found}, expected {expected}; {found_deviation}, expected {expected_deviation}")
    if method == "allreduce":
        assert len(set(comm.allgather(deviation))) == 1
    tolerance = 0.01 if method == "allreduce" else 0.1
    assert abs(found - expected) < tolerance * expected_deviation
    assert abs(found_deviation - expected_deviation) < tolerance * expected_deviation
    # Their own differ from it by their last steps and messages; alone a rank would be at 1.
    assert abs(deviation - expected_deviation) < 0.5 * (expected_deviation - 1)
