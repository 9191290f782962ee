"""The contestants of the benchmarks, run for a moment: that they measure, not how much."""

import numpy as np
import pytest

from galampi.bench import contestants
from galampi.bench.timed_train import Disturbance, waiting_s


@pytest.mark.one_mpi
@pytest.mark.slow
def test_training_is_measured() -> None:
    stopped = Disturbance(stopped_rank=1, stop_after_s=0.1, stop_s=0.1)
    sample = contestants.training(2, 1.0, precision="float32", disturbance=stopped)
    assert sample["steps_per_s"] > 0
    phases_s = sample["phases_s"]
    assert min(phases_s["env_s"], phases_s["act_s"], phases_s["learn_s"], phases_s["gossip_s"]) > 0
    # What the phases leave out is less than they are; how little, depends on what else the machine does.
    assert abs(phases_s["rest_s"]) < 0.5 * sum(phases_s.values())
    assert sample["pss_bytes"] > 50 << 20
    assert sample["first_update_s"] > 0
    assert sample["effective_step"] == pytest.approx(1, abs=0.2)


@pytest.mark.one_mpi
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_simulators_take_a_lognormal_time_of_the_same_mean(sigma) -> None:
    disturbance, random = Disturbance(simulator_s=1e-3, simulator_sigma=sigma), np.random.default_rng(0)
    # One simulator a rank: nobody waits for the slowest of several.
    assert waiting_s(disturbance, (100_000, 1), random) == pytest.approx(100, rel=0.05)
    of_sixteen = waiting_s(disturbance, (5, 16), random)
    assert of_sixteen == pytest.approx(5e-3) if sigma == 0 else of_sixteen > 7e-3


@pytest.mark.one_mpi
@pytest.mark.slow
def test_the_slowed_rank_is_slow() -> None:
    slowed = Disturbance(slow_rank=1)
    together = contestants.training(2, 1.0, precision="float32", method="allreduce", disturbance=slowed)
    phases_s = together["phases_s"]
    # Rank 0 waits for rank 1, which sleeps: neither is counted as learning.
    assert phases_s["gossip_s"] + phases_s["rest_s"] > phases_s["learn_s"]


@pytest.mark.one_mpi
@pytest.mark.slow
def test_emulators_are_measured() -> None:
    assert contestants.emulators(0.5)["steps_per_s"] > 0


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.slow
def test_the_exchange_is_measured(network) -> None:
    small, large = contestants.exchange(2, [1024, 1 << 20], 0.1, network=network)
    assert (small["num_bytes"], large["num_bytes"]) == (1024, 1 << 20)
    for sample in (small, large):
        assert all(value > 0 for value in sample.values())
    assert large["copy_s"] > small["copy_s"]
