"""What a job came to, from all its ranks."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.mark.slow(ranks=[1])
@pytest.mark.mpi(ranks=[1, 3])
def test_what_a_job_came_to_is_gathered_once(comm) -> None:
    from galampi.training.ending import sum_up

    class Counted:
        """A communicator that tells how often objects of every rank went to every rank."""

        def __init__(self) -> None:
            self.num_to_all = 0

        def __getattr__(self, name):
            self.num_to_all += name in ("allgather", "alltoall")
            return getattr(comm, name)

    random = np.random.default_rng(4)
    # More episodes than count, on ranks of very unequal numbers of them.
    episodes = [list(zip(np.sort(random.random(n)), random.normal(size=n), strict=True)) for n in (100, 70, 0)]
    weights, env_steps, moved = [0.5, 1.0, 1.5], [100, 250, 300], [8.0, 9.0, 10.0]
    size, number, counted = comm.size, comm.rank, Counted()
    z = np.array([3.0 * number, 1.0], np.float32)
    rank = SimpleNamespace(
        comm=counted,
        start=SimpleNamespace(
            counters={"update": 5},
            time_s=0.0,
            progress=np.full(size, 10),
            total_env_steps=lambda steps: steps.sum() + 7,
        ),
        gossip=SimpleNamespace(mixing=SimpleNamespace(weight=weights[number], moved=moved[number])),
        job=SimpleNamespace(max_time_s=0.0, total_env_steps=10_000),
        env_steps=env_steps[number],
        update=5 + 10 * (number + 1),
        counts={"sent": 11 * (number + 1)},
        returns=episodes[number],
        fails_too_often=False,
    )
    # Of ranks that exchange nothing one may have been at its end when it was resumed.
    outcome = sum_up(rank, z, elapsed_s=2.0 if number == size - 1 else 1e-3)

    newest = sorted(pair for each in episodes[:size] for pair in each)[-100:]
    assert outcome.mean_return == pytest.approx(np.mean([value for _, value in newest]))
    assert outcome.env_steps == sum(env_steps[:size]) + 7
    assert outcome.steps_per_s == (sum(env_steps[:size]) - 10 * size) / 2
    assert outcome.messages == 11 * sum(range(1, size + 1))
    assert outcome.weights == (0.5, weights[size - 1], sum(weights[:size]))
    assert outcome.effective_step == pytest.approx(
        np.dot(weights[:size], moved[:size]) / (10 * sum(range(1, size + 1)))
    )
    assert outcome.distance == pytest.approx(3 * (size - 1) / 2)
    assert outcome.status == "stopped"
    assert {*comm.allgather(outcome)} == {outcome}
    assert counted.num_to_all == 0
