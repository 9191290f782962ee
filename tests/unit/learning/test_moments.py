"""Normalisation: moments against those of all data, what a learner makes of them, and that nothing changes without."""

import gymnasium as gym
import numpy as np
import pytest

from galampi.environments import make_simulators
from galampi.errors import JobError, UserError
from galampi.job import load_job, parse_job
from galampi.learning import Learner, RolloutCollector
from galampi.learning.moments import CLIP, MOST_UPDATES, Moments, Normalization

NUM_RANKS, NUM_UPDATES, NUM_ROWS = 3, 40, 16


def moments_of(num_columns: int) -> tuple[Moments, np.ndarray]:
    part = np.zeros(3 * num_columns, np.float32)
    return Moments(num_columns, part, np.zeros_like(part)), part


def test_a_mean_over_ranks_is_that_of_their_pooled_data() -> None:
    """Columns far from 0, and ranks that see other data: a mean of variances would be off by half."""
    rng = np.random.default_rng(1)
    means = np.array([0.0, 1e5, -3.0]) + 2 * np.arange(NUM_RANKS)[:, None]
    ranks, parts = zip(*(moments_of(3) for _ in range(NUM_RANKS)), strict=True)
    rows = rng.normal(means[:, None, None], [1.0, 0.5, 0.01], (NUM_RANKS, NUM_UPDATES, NUM_ROWS, 3)).astype(np.float32)
    for moments, own in zip(ranks, rows, strict=True):
        # The offset is rank 0's.
        moments.center(rows[0, 0])
        for t, of_update in enumerate(own, start=1):
            moments.count(of_update[:5])
            moments.count(of_update[5:])
            moments.write_gradient()
            moments.step(1 / t)
    pooled, part = moments_of(3)
    part[:] = np.mean(parts, axis=0)
    pooled.refresh()
    everything = rows.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(pooled.mean, everything.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(pooled.std, everything.std(axis=0), rtol=1e-4)
    seen = pooled.normalized(everything.astype(np.float32))
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=1e-3)


def test_the_offset_keeps_small_variances_of_large_numbers() -> None:
    rows = np.random.default_rng(1).normal(1e5, 0.1, (1000, 1))
    with_offset, without = moments_of(1)[0], moments_of(1)[0]
    with_offset.center(rows[:10])
    for moments in (with_offset, without):
        moments.count(rows)
        moments.write_gradient()
        moments.step(1.0)
        moments.refresh()
    assert with_offset.std[0] == pytest.approx(rows.std(), rel=1e-3)
    assert abs(without.std[0] - rows.std()) > 0.05


def test_what_has_not_varied_is_left_as_it_is() -> None:
    moments, _ = moments_of(2)
    np.testing.assert_array_equal(moments.normalized(np.array([[3.0, -4.0]])), [[3.0, -4.0]])
    moments.center(np.array([[5.0, 5.0]]))
    for _ in range(2):
        moments.count(np.array([[5.0, 4.0], [5.0, 6.0]]))
        moments.write_gradient()
        moments.step(0.5)
        moments.refresh()
    np.testing.assert_allclose(
        moments.normalized(np.array([[5.0, 6.0], [6.0, 1e9]])), [[0, 1.15], [1, CLIP]], atol=0.01
    )


def test_shares_fall_to_a_floor() -> None:
    part = np.zeros(Normalization.size(np.array([True]), returns=False), np.float32)
    gradient = np.zeros_like(part)
    normalization = Normalization(np.array([True]), part, gradient, returns=False)
    assert not normalization.has_begun
    normalization.begin(np.zeros((1, 1)))
    gradient[2] = -1
    normalization.step(1.0)
    normalization.step(1.0)
    assert part[2] == 1.5
    part[0] = MOST_UPDATES
    normalization.step(1.0)
    assert (part[0], part[2]) == (MOST_UPDATES, pytest.approx(1.5 + 1 / MOST_UPDATES))


class Ramp(gym.Env):
    """Shows a large number that grows, and a bit; gives rewards of size 1000; ends after 20 steps."""

    observation_space = gym.spaces.Dict(
        number=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), bit=gym.spaces.MultiBinary(1)
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return self.seen(), {}

    def step(self, action):
        self.now += 1
        return self.seen(), 1000.0 * float(self.np_random.normal()), self.now == 20, False, {}

    def seen(self):
        return {"number": np.array([1e4 + self.now, self.np_random.normal()]), "bit": np.array([self.now % 2], np.int8)}


@pytest.fixture
def ramp():
    """Registers Ramp under the id Ramp-v0."""
    gym.register("Ramp-v0", entry_point=Ramp)
    yield "Ramp-v0"
    del gym.registry["Ramp-v0"]


def make_collector(environment_id, **settings) -> tuple[RolloutCollector, Learner]:
    given = {key.replace("__", "."): str(value) for key, value in settings.items()}
    job = parse_job("", "test", {"environment.id": environment_id, "environment.num_envs": "8", **given})
    simulators = make_simulators(job.environment, seed=5, num_threads=1, life_ends_return=False)
    spaces = simulators.single_observation_space, simulators.single_action_space
    learner = Learner(job, *spaces, total_simulators=8, seed=1, action_seed=1, device="cpu", precision="float32")
    return RolloutCollector(job, simulators, learner), learner


def updates(collector, learner, num_updates):
    """Return what the network has seen, and the rewards that were learnt from, of some updates."""
    seen, rewards = [], []
    for _ in range(num_updates):
        rollout, _ = collector.collect()
        seen.append(rollout.activations[0][:-1].numpy().copy())
        rewards.append(rollout.rewards.copy())
        learner.compute_gradient(rollout)
        learner.apply_gradient(1e-3)
        learner.refresh()
    return np.stack(seen), np.stack(rewards)


def test_a_learner_sees_numbers_of_variance_1(ramp) -> None:
    collector, learner = make_collector(
        ramp, learner__normalize_observations="true", learner__normalize_returns="true", learner__rollout_length=10
    )
    seen, rewards = updates(collector, learner, 100)
    numbers, bits = seen[..., :2], seen[..., 2]
    assert set(np.unique(bits)) == {0, 1}
    np.testing.assert_allclose(numbers[50:].mean(axis=(0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(numbers[50:].std(axis=(0, 1, 2)), 1, atol=0.05)
    # The running return of independent rewards varies more than they do, by 1 / (1 - gamma^2) in the long run.
    assert 0.2 < rewards[50:].std() < 0.6
    assert np.abs(rewards).max() <= CLIP


def test_the_running_return_is_that_of_vec_normalize(ramp) -> None:
    """R <- gamma R + r, 0 after an end, and rewards over its deviation over all rows before this rollout."""
    collector, learner = make_collector(ramp, learner__normalize_returns="true", learner__gamma=0.9)
    plain, _ = make_collector(ramp)
    running, moments = np.zeros(8), []
    for _ in range(30):
        scaled, raw = collector.collect()[0], plain.collect()[0]
        mean, square = np.mean(moments, axis=0) if moments else (0.0, 1.0)
        deviation = np.sqrt(square - mean**2)
        of_rollout = []
        np.testing.assert_allclose(scaled.rewards, np.clip(raw.rewards / deviation, -10, 10), rtol=1e-3, atol=1e-6)
        for rewards, ends, valid in zip(raw.rewards, raw.terminated | raw.truncated, raw.valid, strict=True):
            running = 0.9 * running + rewards
            of_rollout.append(running[valid])
            running = np.where(ends, 0, running)
        # All rollouts count alike, whatever the number of their valid rows.
        values = np.concatenate(of_rollout)
        moments.append((values.mean(), np.square(values).mean()))
        learner.normalization.write_gradient()
        learner.normalization.step(1.0)
        learner.refresh()


def test_the_vector_is_as_before_without(ramp) -> None:
    without, with_it = (make_collector(ramp, **each)[1] for each in ({}, {"learner__normalize_observations": "true"}))
    assert without.moments.size == 0
    np.testing.assert_array_equal(without.z, with_it.parameters)
    assert with_it.moments.size == 1 + 3 * 2
    # Two observations of 0 to 1, and one near 10,000.
    assert with_it.moments[1] == 1e4


def test_a_learner_goes_on_with_its_moments(ramp) -> None:
    settings = {"learner__normalize_observations": "true", "learner__normalize_returns": "true"}
    collector, learner = make_collector(ramp, **settings)
    updates(collector, learner, 20)
    other = make_collector(ramp, **settings)[1]
    other.load_state(learner.state())
    observations = collector._seen
    np.testing.assert_array_equal(
        other.normalization.normalized(observations), learner.normalization.normalized(observations)
    )
    assert other.normalization.has_begun


@pytest.mark.parametrize("environment_id", ["ALE/Pong-v5", "FrozenLake-v1"])
def test_observations_that_are_no_numbers_are_refused(environment_id) -> None:
    with pytest.raises(UserError, match=r"^learner.normalize_observations does nothing: observations of "):
        make_collector(environment_id, learner__normalize_observations="true")


def test_a_factor_that_is_divided_by_is_refused() -> None:
    with pytest.raises(
        JobError, match=r"^command line: learner\.reward_scale does nothing: learner\.normalize_returns is true"
    ):
        load_job(
            None,
            {"environment.id": "CartPole-v1", "learner.normalize_returns": "true", "learner.reward_scale": "0.1"},
        )
