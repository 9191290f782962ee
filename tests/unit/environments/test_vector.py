"""Simulators: seeds, lives, resets, what they refuse, and Atari against the bare emulator."""

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from limits import DEADLOCK_S

from galampi import memory
from galampi.environments import make_simulators
from galampi.errors import UserError
from galampi.job import Environment


def make(environment_id, num_envs=2, seed=3, life_ends_return=True, **settings):
    return make_simulators(
        Environment(id=environment_id, num_envs=num_envs, **settings),
        seed=seed,
        num_threads=1,
        life_ends_return=life_ends_return,
    )


class BareGame:
    """One game in the emulator itself, played by the rules this package states for Atari."""

    def __init__(self, game):
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(roms.get_rom_path(game))
        self.actions = self._ale.getMinimalActionSet()

    def start(self, num_frames):
        """A new game: FIRE where the game has it, then no-ops until so many frames have passed."""
        self._ale.reset_game()
        if ale_py.Action.FIRE in self.actions:
            self._ale.act(ale_py.Action.FIRE)
        while self._ale.getEpisodeFrameNumber() < num_frames:
            self._ale.act(ale_py.Action.NOOP)

    def step(self, action):
        reward = 0
        for _ in range(4):
            reward += self._ale.act(self.actions[action])
            if self._ale.game_over():
                break
        return reward, self._ale.game_over(), self._ale.lives()


class Frames:
    """Notes how many frames of the game have passed after each reset, which is where no-ops show."""

    def __init__(self, simulators, monkeypatch):
        self.now = None
        for name in ("reset", "step"):
            games = simulators._vector.games
            monkeypatch.setattr(games, name, self._noting(getattr(games, name)))

    def _noting(self, method):
        def call(*args, **kwargs):
            result = method(*args, **kwargs)
            self.now = result[-1]["episode_frame_number"]
            return result

        return call


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_rewards_ends_and_lives_are_those_of_the_bare_emulator(game, monkeypatch):
    name = "".join(word.capitalize() for word in game.split("_"))
    simulators = make(f"ALE/{name}-v5")
    frames = Frames(simulators, monkeypatch)
    simulators.reset()
    games = [BareGame(game) for _ in range(2)]
    for i, bare in enumerate(games):
        bare.start(frames.now[i])
    lives = [bare._ale.lives() for bare in games]
    ended, num_ended, num_lives_lost, score = [False, False], 0, 0, 0
    rng = np.random.default_rng(0)
    for _ in range(1000):
        actions = rng.integers(0, len(games[0].actions), 2)
        step = simulators.step(actions)
        for i, bare in enumerate(games):
            if ended[i]:
                bare.start(frames.now[i])
                assert (step.rewards[i], step.terminated[i], step.life_lost[i]) == (0, False, False)
                ended[i], lives[i] = False, bare._ale.lives()
                continue
            reward, ended[i], now = bare.step(actions[i])
            assert (step.rewards[i], step.terminated[i], step.truncated[i]) == (reward, ended[i], False)
            assert step.life_lost[i] == (now < lives[i] and not ended[i])
            lives[i] = now
            num_ended += ended[i]
            num_lives_lost += step.life_lost[i]
            score += reward
    assert num_ended >= 2 and num_lives_lost >= 4 and score > 0


def test_a_lost_life_is_reported_only_when_asked_for():
    for life_ends_return, expected in ((False, False), ("auto", True), (True, True)):
        simulators = make("ALE/Breakout-v5", life_ends_return=life_ends_return)
        simulators.reset()
        lost = [simulators.step(np.zeros(2, np.int64)).life_lost.any() for _ in range(60)]
        assert any(lost) == expected
        assert simulators.description["life_loss_ends_return"] == int(expected)


def test_an_episode_is_truncated_after_the_frames_asked_for():
    simulators = make("ALE/Pong-v5", max_episode_frames=40)
    simulators.reset()
    truncated = [simulators.step(np.zeros(2, np.int64)).truncated.tolist() for _ in range(22)]
    # 10 steps of 4 frames, then one that resets.
    assert [t for t, ends in enumerate(truncated) if any(ends)] == [9, 20]


def histories(simulators, num_steps=60):
    """Everything each simulator shows under the same actions."""
    observations = [simulators.reset()]
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        action = rng.integers(0, simulators.single_action_space.n)
        observations.append(simulators.step(np.full(simulators.num_envs, action)).observations)
    return [np.stack(history).tobytes() for history in zip(*observations, strict=True)]


@pytest.mark.parametrize("environment_id", ["ALE/SpaceInvaders-v5", "CartPole-v1"])
def test_no_two_simulators_of_neighbouring_ranks_share_a_stream(environment_id):
    """With sticky actions the emulator's random numbers show in the game."""
    sticky = {"repeat_action_probability": 0.25}
    first = histories(make(environment_id, num_envs=6, seed=100, **sticky))
    second = histories(make(environment_id, num_envs=6, seed=106, **sticky))
    assert len({*first, *second}) == 12
    # Simulator i has seed + i, whatever the vector it sits in.
    overlapping = histories(make(environment_id, num_envs=6, seed=103, **sticky))
    assert overlapping == [*first[3:], *second[:3]]


def test_observations_stay_as_they_were_when_the_simulators_go_on():
    for environment_id in ("ALE/Breakout-v5", "CartPole-v1"):
        simulators = make(environment_id)
        observations = [simulators.reset()]
        copies = [observations[0].copy()]
        for _ in range(5):
            observations.append(simulators.step(np.zeros(2, np.int64)).observations)
            copies.append(observations[-1].copy())
        for observation, copy in zip(observations, copies, strict=True):
            np.testing.assert_array_equal(observation, copy)


@pytest.mark.timeout(DEADLOCK_S)
@pytest.mark.parametrize(
    "actions", [np.array([0, 4]), np.array([-1, 0]), np.array([0.0, 1.0]), np.array([0]), np.array([[0, 1]])]
)
def test_an_impossible_action_is_refused(actions):
    simulators = make("ALE/Breakout-v5")
    simulators.reset()
    with pytest.raises(ValueError, match="actions"):
        simulators.step(actions)
    simulators.step(np.array([0, 3]))


class Echo(gym.Env):
    """Shows the action it was given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return action, 0.0, False, False, {}


def test_continuous_actions_are_clipped_but_must_be_finite():
    gym.register("Echo-v0", entry_point=Echo)
    try:
        simulators = make("Echo-v0")
    finally:
        del gym.registry["Echo-v0"]
    simulators.reset()
    step = simulators.step(np.array([[50, 50], [-50, -50]], np.float32))
    np.testing.assert_array_equal(step.observations, [[1, 50], [-1, 0]])
    with pytest.raises(UserError, match="an action of the policy is not finite: training has diverged"):
        simulators.step(np.array([[np.nan, 0], [0, 0]], np.float32))


@pytest.mark.parametrize(
    ("environment_id", "message"),
    [
        ("ALE/Breakot-v5", "nearest: ALE/Breakout-v5"),
        ("cartpole-v1", "nearest: CartPole-v1"),
        ("CartPole-v9", "nearest: CartPole-v1"),
        ("BreakoutNoFrameskip-v4", "must be 'ALE/Breakout-v5'"),
        ("SpaceInvaders-v4", "must be 'ALE/SpaceInvaders-v5'"),
        ("no_such_module:Thing-v0", "'no_such_module' cannot be imported"),
        ("%%", "no such environment"),
        ("", "no such environment"),
    ],
)
def test_an_unknown_id_is_a_one_line_error(environment_id, message):
    with pytest.raises(UserError, match=message) as error:
        make(environment_id)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"environment.id is {environment_id!r}; ")


def test_an_environment_whose_package_is_missing_is_a_one_line_error():
    gym.register("NeedsAPackage-v0", entry_point="no_such_package.envs:Thing")
    try:
        with pytest.raises(UserError, match="cannot be made: No module named 'no_such_package'") as error:
            make("NeedsAPackage-v0")
        assert "\n" not in str(error.value)
    finally:
        del gym.registry["NeedsAPackage-v0"]


def test_seeds_beyond_the_emulators_are_refused():
    with pytest.raises(UserError, match="seed"):
        make("ALE/Breakout-v5", seed=2**31 - 2)


def test_more_simulators_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("", (), {"available": 5 << 20}))
    make("ALE/Breakout-v5", num_envs=2)
    with pytest.raises(UserError, match=r"environment\.num_envs is 3: needs about 6 MiB of memory; 5 MiB are free"):
        make("ALE/Breakout-v5", num_envs=3)


def test_the_description_names_every_choice():
    description = make("ALE/Breakout-v5", repeat_action_probability=0.25).description
    assert description["repeat_action_probability"] == 0.25
    assert description["frameskip"] == 4
    assert description["autoreset_mode"] == "NextStep"
    assert (description["episodic_life"], description["reward_clipping"]) == (0, 0)
    assert all(type(value) in (str, int, float) for value in description.values())
