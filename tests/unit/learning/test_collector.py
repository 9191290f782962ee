"""The collector: masks, ends and episodes, against environments whose every step is known."""

import gymnasium as gym
import numpy as np
import pytest

from galampi import memory
from galampi.environments import make_simulators
from galampi.errors import UserError
from galampi.job import parse_job
from galampi.learning import Learner, RolloutCollector


class Clock(gym.Env):
    """Shows [episode, step]; gives reward `10 * episode + step`; ends or is cut after `length` steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length=3, cut=False):
        self.length, self.cut, self.episode = length, cut, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.now = self.episode + 1, 0
        return np.array([self.episode, self.now], np.float64), {}

    def step(self, action):
        self.now += 1
        end = self.now == self.length
        observation = np.array([self.episode, self.now], np.float64)
        return observation, float(10 * self.episode + self.now), end and not self.cut, end and self.cut, {}


@pytest.fixture
def clock():
    """Registers Clock under the ids Clock-v0 (ends) and CutClock-v0 (is cut)."""
    gym.register("Clock-v0", entry_point=Clock)
    gym.register("CutClock-v0", entry_point=Clock, kwargs={"cut": True})
    yield
    del gym.registry["Clock-v0"], gym.registry["CutClock-v0"]


def make_collector(environment_id, num_envs=1, rollout_length=3, **settings):
    job = parse_job(
        "",
        "test",
        {
            "environment.id": environment_id,
            "environment.num_envs": str(num_envs),
            "learner.rollout_length": str(rollout_length),
            # What is tested here does not depend on the network: a small one is fast.
            "network.kind": "mlp",
            "network.hidden_sizes": "[8]",
            **{key.replace("__", "."): str(value) for key, value in settings.items()},
        },
    )
    simulators = make_simulators(
        job.environment, seed=5, num_threads=1, life_ends_return=job.learner.end_return_on_life_loss
    )
    learner = Learner(
        job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=num_envs,
        seed=1,
        action_seed=(1, 0),
        device="cpu",
        precision="float32",
    )
    return RolloutCollector(job, simulators, learner), learner


def collect_all(collector, num_rollouts):
    """The first simulator's rollouts laid end to end: inputs, rewards, terminated, truncated, valid; and episodes."""
    parts, episodes = [], []
    for _ in range(num_rollouts):
        rollout, ended = collector.collect()
        columns = [rollout.rewards, rollout.terminated, rollout.truncated, rollout.valid]
        parts.append([rollout.activations[0][:-1, 0].numpy().copy(), *(c[:, 0].copy() for c in columns)])
        episodes += ended
    return [np.concatenate(part) for part in zip(*parts, strict=True)], episodes


@pytest.mark.parametrize("cut", [False, True])
def test_rows_ends_and_resets_over_several_rollouts(clock, cut):
    collector, _ = make_collector("CutClock-v0" if cut else "Clock-v0")
    (inputs, rewards, terminated, truncated, valid), episodes = collect_all(collector, 4)
    # Episodes of 3 steps and a row that resets: a period of 4 against rollouts of 3.
    np.testing.assert_array_equal(inputs[:8], [[1, 0], [1, 1], [1, 2], [1, 3], [2, 0], [2, 1], [2, 2], [2, 3]])
    np.testing.assert_array_equal(rewards[:8], [11, 12, 13, 0, 21, 22, 23, 0])
    np.testing.assert_array_equal(valid, [True, True, True, False] * 3)
    ends, never = np.array([False, False, True, False] * 3), np.zeros(12, bool)
    np.testing.assert_array_equal(terminated, never if cut else ends)
    np.testing.assert_array_equal(truncated, ends if cut else never)
    assert [(e.episodic_return, e.length, e.simulator) for e in episodes] == [(36, 3, 0), (66, 3, 0), (96, 3, 0)]


def test_num_valid_counts_env_steps(clock):
    collector, _ = make_collector("Clock-v0", num_envs=2, rollout_length=4)
    assert [collector.collect()[0].num_valid for _ in range(3)] == [6, 6, 6]


def test_the_bootstrap_of_a_cut_episode_is_the_value_where_it_was_cut(clock):
    collector, learner = make_collector("CutClock-v0", rollout_length=5)
    rollout, _ = collector.collect()
    # Row 2 is cut; row 3, which resets, shows what the episode was cut at.
    np.testing.assert_array_equal(rollout.activations[0][3, 0], [1, 3])
    activations = learner.policy.trunk.new_activations(1)
    activations[0][:] = rollout.activations[0][3]
    # A batch of one is summed in another order; the terms are at most 1.
    assert rollout.values[3, 0] == pytest.approx(learner.policy.forward(activations)[1].item(), abs=1e-5)


def test_rewards_are_scaled_then_clipped_for_the_learner_only(clock):
    collector, _ = make_collector("Clock-v0", learner__clip_rewards="true", learner__reward_scale=0.05)
    (_, rewards, *_), episodes = collect_all(collector, 2)
    np.testing.assert_allclose(rewards, np.minimum([0.55, 0.6, 0.65, 0, 1.05, 1.1], 1), rtol=1e-6)
    assert [e.episodic_return for e in episodes] == [36]


def test_a_lost_life_ends_the_return_and_nothing_else(monkeypatch):
    collector, _ = make_collector("ALE/Breakout-v5", num_envs=2, rollout_length=5)
    seen = []
    step = collector._simulators.step

    def noting(actions):
        result = step(actions)
        seen.append(result)
        return result

    monkeypatch.setattr(collector._simulators, "step", noting)
    episodes, rows, lost = [], [], np.zeros(2, int)
    while len(episodes) < 2:
        rollout, ended = collector.collect()
        episodes += ended
        for t, result in enumerate(seen[-5:]):
            np.testing.assert_array_equal(rollout.terminated[t], result.terminated | result.life_lost)
            rows.append(rollout.valid[t].copy())
            lost += result.life_lost
            # The game goes on after a lost life: the next row counts.
            if len(rows) > 1:
                np.testing.assert_array_equal(~rows[-1], seen[-6 + t].terminated | seen[-6 + t].truncated)
    assert lost.min() >= 4
    # Five lives are one episode: its score and length are those of the whole game.
    for simulator in {episode.simulator for episode in episodes}:
        ends = np.flatnonzero([result.terminated[simulator] for result in seen])
        first = next(e for e in episodes if e.simulator == simulator)
        assert first.length == ends[0] + 1
        assert first.episodic_return == sum(result.rewards[simulator] for result in seen[: ends[0] + 1])


def test_episodic_return_is_the_unclipped_score():
    collector, _ = make_collector("ALE/SpaceInvaders-v5", 2, 20, environment__max_episode_frames=800)
    episodes, rewards = [], []
    while not episodes:
        rollout, ended = collector.collect()
        episodes += ended
        rewards.append(rollout.rewards.copy())
    # Aliens are worth 5 to 30 each; the learner sees 1.
    assert episodes[0].episodic_return >= 20 and episodes[0].episodic_return % 5 == 0
    assert set(np.unique(np.concatenate(rewards))) == {0, 1}


def test_seconds_are_told_apart(clock):
    collector, _ = make_collector("Clock-v0")
    collector.collect()
    assert collector.env_s > 0 and collector.act_s > 0


def test_a_rollout_longer_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("", (), {"available": 50 << 20}))
    with pytest.raises(UserError, match=r"learner\.rollout_length is 10000 and environment\.num_envs is 64"):
        make_collector("CartPole-v1", num_envs=64, rollout_length=10000)
