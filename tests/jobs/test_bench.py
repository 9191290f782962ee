"""The contestants of the benchmarks, run for a moment: that they measure, not how much."""

import pytest

from galampi.bench import contestants


def test_training_is_measured() -> None:
    sample = contestants.training(2, 1.0, precision="float32")
    assert sample["steps_per_s"] > 0
    assert all(value >= 0 for value in sample["phases_s"].values())
    # Phases and the rest make up the update: 16 simulators of 5 steps on each rank.
    assert 2 * 80 / sum(sample["phases_s"].values()) == pytest.approx(sample["steps_per_s"], rel=0.1)
    assert sample["pss_bytes"] > 50 << 20
    assert sample["first_update_s"] > 0.5


def test_the_slowed_rank_is_slow() -> None:
    together = contestants.training(2, 1.0, precision="float32", method="allreduce", slow_rank=1)
    phases_s = together["phases_s"]
    # Rank 0 waits for rank 1, which sleeps: neither is counted as learning.
    assert phases_s["gossip_s"] + phases_s["rest_s"] > phases_s["learn_s"]


@pytest.mark.one_mpi
def test_emulators_are_measured() -> None:
    assert contestants.emulators(0.5)["steps_per_s"] > 0


@pytest.mark.parametrize("network", [False, True])
def test_the_exchange_is_measured(network) -> None:
    small, large = contestants.exchange(2, [1024, 1 << 20], 0.1, network=network)
    assert (small["num_bytes"], large["num_bytes"]) == (1024, 1 << 20)
    for sample in (small, large):
        assert all(value > 0 for value in sample.values())
    assert large["copy_s"] > small["copy_s"]
