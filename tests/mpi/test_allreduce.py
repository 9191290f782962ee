import numpy as np
import pytest


@pytest.mark.mpi(ranks=[1, 2, 3])
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


@pytest.mark.mpi(ranks=[1])
def test_who_waits_says_how_long_it_takes_itself(comm, monkeypatch) -> None:
    """The first update counts, and a single stall does not."""
    from types import SimpleNamespace

    from galampi.gossip import allreduce
    from galampi.gossip.allreduce import AllReduce

    now_s = [0.0]
    monkeypatch.setattr(allreduce, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    class Slow:
        """An answer that comes when it was asked for once."""

        def __init__(self, request) -> None:
            self.request, self.asked = request, False

        def Test(self) -> bool:  # noqa: N802
            if not self.asked:
                self.asked = True
                return False
            return bool(self.request.Test())

    slow = SimpleNamespace(
        size=1,
        rank=0,
        Iallgather=lambda *buffers: Slow(comm.Iallgather(*buffers)),
        Iallreduce=lambda *buffers: Slow(comm.Iallreduce(*buffers)),
    )
    own_s = []
    averaging = AllReduce(slow, lambda waited_s, own: own_s.append(own) or False)
    for took_s in (200, 200, 9000, 200):
        now_s[0] += took_s
        averaging.average(np.zeros(2, np.float32), num_samples=1, progress=1, stop=False)
    # It is asked twice in each.
    assert own_s == [200] * 8


@pytest.mark.mpi(ranks=[2, 3])
def test_algorithm_1_between_ranks(comm) -> None:
    """On the ring every rank averages itself with its predecessor: (z_r + z_(r-1)) / 2."""
    from galampi.gossip import Mailboxes, UniformAverage, ring

    z = np.full(5, comm.rank, dtype=np.float32)
    mailboxes = Mailboxes(comm, ring(comm.size), z.size)
    assert mailboxes.push(0, z, weight=0.0, update=1, time_s=0.0) is z
    while not (waiting := mailboxes.poll()):
        pass
    assert UniformAverage().receive(z, waiting, round_edges=[0]) == [0]
    np.testing.assert_array_equal(z, (comm.rank + (comm.rank - 1) % comm.size) / 2)
    mailboxes.free()


def rollout(learner, observations, **rows):
    """Build the rollout that a learner's network makes of a batch."""
    from galampi.learning import Rollout

    activations = learner.policy.trunk.new_activations(*observations.shape[:2])
    for row, observation in zip(activations[0], observations, strict=True):
        learner.policy.trunk.encode(observation, row)
    values = [learner.policy.forward([layer[t] for layer in activations])[1] for t in range(len(observations))]
    return Rollout(activations, values=np.stack(values), parameters_version=learner.policy.parameters.version, **rows)


@pytest.mark.slow(ranks=[1, 3])
@pytest.mark.mpi(ranks=[1, 2, 3])
def test_n_ranks_are_one_learner_with_the_n_fold_batch(comm) -> None:
    """Five updates by allreduce, with unequal numbers of valid rows, against one learner that sees all rows."""
    import gymnasium as gym
    import torch

    from galampi.gossip import AllReduce
    from galampi.job import Job
    from galampi.learning import Learner

    torch.set_num_threads(1)
    num_steps, num_envs, num_actions = 5, 4, 3
    learners = [
        Learner(
            Job(),
            gym.spaces.Box(-np.inf, np.inf, (6,), np.float32),
            gym.spaces.Discrete(num_actions),
            total_simulators=num_envs * comm.size,
            seed=1,
            action_seed=comm.rank,
            device="cpu",
            precision="float32",
        )
        for _ in range(2)
    ]
    shared, whole = learners
    allreduce = AllReduce(comm)
    random = np.random.default_rng(1)
    tolerance = 0.0

    for _ in range(5):
        shape = (num_steps, num_envs * comm.size)
        batch = {
            "observations": random.normal(size=(num_steps + 1, shape[1], 6)).astype(np.float32),
            "actions": random.integers(0, num_actions, shape),
            "rewards": random.normal(size=shape).astype(np.float32),
            "terminated": random.random(shape) < 0.1,
            "truncated": np.zeros(shape, bool),
            "valid": random.random(shape) < 0.8,
        }
        part = slice(comm.rank * num_envs, (comm.rank + 1) * num_envs)
        own = rollout(shared, **{name: values[:, part] for name, values in batch.items()})
        shared.compute_gradient(own)
        allreduce.average(shared.gradient, own.num_valid, progress=0, stop=False)
        whole.compute_gradient(rollout(whole, **batch))
        # Sums in another order: each is off by units in the last place of its terms, not of itself.
        apart = np.abs(shared.gradient - whole.gradient).max()
        assert apart < 2e-5 * np.abs(whole.gradient).max()
        # A step divides by the root of its mean square, which is as small as epsilon where the gradient vanishes.
        tolerance += 1e-3 * apart / Job().learner.rmsprop_epsilon
        for learner in learners:
            learner.apply_gradient(1e-3)
            learner.refresh()
    print(f"{np.abs(shared.z - whole.z).max()} of {tolerance} apart")
    np.testing.assert_allclose(shared.z, whole.z, rtol=1e-6, atol=tolerance)


@pytest.mark.mpi(ranks=[1])
def test_a_rank_that_was_stopped_itself_has_not_waited(comm, monkeypatch) -> None:
    """As a job that lay still over night: what others took meanwhile it does not know."""
    from types import SimpleNamespace

    from galampi.errors import LostRankError
    from galampi.gossip import allreduce
    from galampi.gossip.allreduce import AllReduce

    looks_s = [0.0]
    monkeypatch.setattr(allreduce, "time", SimpleNamespace(monotonic=lambda: looks_s[-1]))

    def answer_after(*moments_s):
        def begin(*buffers):
            request, coming = comm.Iallgather(*buffers), [*moments_s]

            def test() -> bool:
                if coming:
                    looks_s.append(looks_s[-1] + coming.pop(0))
                    return False
                return bool(request.Test())

            return SimpleNamespace(Test=test)

        return begin

    def average(*moments_s) -> None:
        slow = SimpleNamespace(size=1, rank=0, Iallgather=answer_after(*moments_s), Iallreduce=comm.Iallreduce)
        gives_up = AllReduce(slow, lambda waited_s, own_s: waited_s > 60)
        gives_up.average(np.zeros(2, np.float32), num_samples=1, progress=1, stop=False)

    average(1.0, 30_000.0, 1.0)
    with pytest.raises(LostRankError, match="a rank has not answered for 61 s"):
        average(*[1.0] * 70)
