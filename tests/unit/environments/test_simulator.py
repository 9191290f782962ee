"""Environments of others: how they are made, what is said when they fail, masks, and processes of their own."""

import sys
from types import SimpleNamespace

import guests
import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from limits import DEADLOCK_S

from galampi.environments import make_simulators
from galampi.environments.actuation import Actuation
from galampi.environments.making import make_environment
from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Environment, Wrapper, parse_job
from galampi.learning import Learner, RolloutCollector

pytestmark = pytest.mark.timeout(DEADLOCK_S)


def make(name="Guest", *, num_envs=2, num_threads=1, first_number=0, **settings):
    environment = Environment(id=f"guests:{name}", num_envs=num_envs, **settings)
    return make_simulators(
        environment, seed=3, num_threads=num_threads, life_ends_return="auto", first_number=first_number
    )


def steps(simulators, num_steps):
    """Take steps, whatever the action, and return them."""
    simulators.reset()
    example = simulators.actuation.example
    return [
        simulators.step(np.stack([example(None if simulators.masks is None else m) for m in masks]))
        for _ in range(num_steps)
        for masks in [simulators.masks if simulators.masks is not None else [None] * simulators.num_envs]
    ]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_every_simulator_is_told_its_number_over_all_ranks(vectorization):
    simulators = make(
        num_envs=3, first_number=6, kwargs={"number": "{simulator}"}, vectorization=vectorization, num_threads=2
    )
    np.testing.assert_array_equal(simulators.reset(), [[6, 0], [7, 0], [8, 0]])
    step = simulators.step(np.zeros(3, np.int64))
    np.testing.assert_array_equal(step.observations, [[6, 1], [7, 1], [8, 1]])
    assert simulators.description["num_processes"] == (2 if vectorization == "async" else 1)
    simulators.close()


def test_arguments_and_wrappers_are_as_the_job_file_has_them(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        guests.Guest, "__init__", lambda self, **kwargs: seen.update(kwargs) or setattr(self, "number", 1)
    )
    monkeypatch.setattr(guests.Guest, "episode", 0, raising=False)
    monkeypatch.setattr(guests.Guest, "habit", "", raising=False)
    kwargs = {"sizes": (1, (2, 3)), "file": "level-{simulator}.txt", "deep": {"port": "{simulator}"}, "text": "{x}"}
    kwargs |= {"grid": (("{simulator}", 1), [{"at": "{simulator}"}])}
    wrappers = ("guests:Scaled", Wrapper(wrapper="guests:Scaled", kwargs={"by": 5.0}), "guests:Negated")
    simulators = make(kwargs=kwargs, wrappers=wrappers, num_envs=1, first_number=4)
    assert seen == {
        "sizes": [1, [2, 3]],
        "file": "level-4.txt",
        "deep": {"port": 4},
        "text": "{x}",
        "grid": [[4, 1], [{"at": 4}]],
    }
    np.testing.assert_array_equal(simulators.reset(), [[-10, 0]])


def test_an_episode_is_truncated_after_the_steps_asked_for():
    taken = steps(make(max_episode_steps=2), 4)
    assert [step.truncated.tolist() for step in taken] == [[False] * 2, [True] * 2, [False] * 2, [False] * 2]


FOUR = "a tuple of 4; gymnasium wants (observation, reward, terminated, truncated, info)"


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    ("habit", "message"),
    [
        ("no constructor", "which cannot be made: RuntimeError: the license server is down"),
        ("reset raises", "guests:Guest, simulator 4: its reset raises RuntimeError: no ground"),
        ("reset without info", "simulator 4: reset returned array([0., 0.], dtype=float32); gymnasium wants (obs"),
        ("four values", f"guests:Guest, simulator 4, step 3 of episode 1: step returned {FOUR}"),
        ("wrong shape", "step 3 of episode 1: the observation is of shape (3,) and type float64; must be numbers of"),
        ("nan observation", "simulator 4, step 3 of episode 1: the observation holds nan; must be finite"),
        ("nan reward", "simulator 4, step 3 of episode 1: the reward is nan; must be finite"),
        ("no reward", "simulator 4, step 3 of episode 1: the reward is None; must be a number"),
        ("no info", "simulator 4, step 3 of episode 1: the info that step returned is None; must be a dict"),
        ("info for end", "simulator 4, step 3 of episode 1: terminated is {}; must be true or false"),
    ],
)
def test_what_gymnasium_does_not_allow_is_told_in_one_line(habit, message, num_processes):
    vectorization = "sync" if num_processes == 1 else "async"
    with pytest.raises(UserError) as error:
        steps(make(kwargs={"habit": habit}, first_number=4, num_threads=num_processes, vectorization=vectorization), 4)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kwargs": {"size": 3}}, "which cannot be made: TypeError: Guest.__init__() got an unexpected keyword"),
        ({"wrappers": ("guests:None_",)}, "environment.wrappers names 'guests:None_'; module 'guests' has no such"),
        ({"wrappers": ("guests:NoWrapper",)}, "'guests:NoWrapper', which cannot be put around guests:Guest: TypeErr"),
        ({"wrappers": ("no_such:W",)}, "environment.wrappers names 'no_such:W'; module 'no_such' cannot be imported"),
        ({"action_mask": "allowed"}, "environment.action_mask is 'allowed'; must be a key"),
        (
            {"name": "MaskedBox", "action_mask": "allowed"},
            "action_mask does nothing: the actions of guests:MaskedBox are",
        ),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(settings, message):
    with pytest.raises(UserError) as error:
        make(**settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_infos_may_hold_anything():
    assert len(steps(make(kwargs={"habit": "ragged info"}), 7)) == 7


def test_numbers_of_the_last_info_belong_to_the_episode():
    taken = steps(make(num_envs=1), 6)
    assert [step.numbers for step in taken] == [{}, {}, {}, {}, {0: {"level": 5, "won": 1}}, {}]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_simulator_that_raises_starts_anew_and_the_others_go_on(num_processes):
    simulators = make(
        num_envs=3,
        kwargs={"habit": "raises", "number": "{simulator}"},
        num_threads=num_processes,
        vectorization="sync" if num_processes == 1 else "async",
        wrappers=("guests:Fuse",),
    )
    taken = steps(simulators, 6)
    (failure,) = taken[2].failures
    assert (failure.simulator, failure.episode) == (1, 1)
    assert failure.error == "guests:Guest, simulator 1, step 3 of episode 1: ZeroDivisionError: the simulator broke"
    assert "in step" in failure.traceback and failure.traceback.startswith("Traceback")
    assert [step.truncated.tolist() for step in taken[:4]] == [
        [False] * 3,
        [False] * 3,
        [False, True, False],
        [False] * 3,
    ]
    # It starts anew while the others take their fourth and fifth step.
    np.testing.assert_array_equal(taken[3].observations, [[0, 4], [1, 0], [2, 4]])
    assert taken[4].terminated.tolist() == [True, False, True]
    np.testing.assert_array_equal(taken[5].observations, [[0, 0], [1, 2], [2, 0]])
    assert not any(step.failures for step in taken[:2] + taken[3:])
    simulators.close()


def make_collector(name, **settings):
    job = parse_job("", "test", {"environment.id": f"guests:{name}", "environment.num_envs": "1", **settings})
    simulators = make_simulators(job.environment, seed=5, num_threads=1, life_ends_return="auto")
    learner = Learner(
        job,
        simulators.single_observation_space,
        simulators.single_action_space,
        total_simulators=1,
        seed=1,
        action_seed=(1, 0),
        device="cpu",
        precision="float32",
    )
    return RolloutCollector(job, simulators, learner), learner


def test_an_episode_that_fails_is_cut_and_none():
    collector, _ = make_collector(
        "Guest", **{"environment.kwargs": '{habit = "raises"}', "learner.rollout_length": "8"}
    )
    rollout, episodes = collector.collect()
    # Every instance fails in its first episode: two steps, the third that fails, and a row that starts it anew.
    np.testing.assert_array_equal(rollout.truncated[:, 0], [0, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rollout.valid[:, 0], [1, 1, 1, 0, 1, 1, 1, 0])
    assert not rollout.terminated.any() and not episodes
    assert [failure.episode for failure in collector.failures] == [1, 2]


def test_code_that_leaves_the_program_is_a_failure_too():
    collector, _ = make_collector("Guest", **{"environment.kwargs": '{habit = "exits"}', "learner.rollout_length": "8"})
    collector.collect()
    assert [failure.error.rpartition(": ")[2] for failure in collector.failures] == ["SystemExit"] * 2


@pytest.mark.parametrize("where", ["info", "observation"])
def test_only_what_a_mask_allows_is_done_and_learnt_from(where):
    """The environment raises at any other action; at each moment it allows one, so the entropy is 0."""
    settings = {"environment.kwargs": f'{{where = "{where}"}}', "learner.rollout_length": "20"}
    if where == "observation":
        settings["environment.action_mask"] = "allowed"
    collector, learner = make_collector("Masked", **settings)
    rollout, episodes = collector.collect()
    assert not collector.failures and len(episodes) == 3
    assert rollout.masks.shape == (20, 1, 5)
    np.testing.assert_array_equal(rollout.masks[:3, 0], [[1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    losses = learner.compute_gradient(rollout)
    assert abs(losses.entropy) < 1e-6 and abs(losses.policy_loss) < 1e-6
    assert np.isfinite(learner.gradient).all()
    # The mask is nothing to learn from.
    assert collector._simulators.encoding.shape == (2,)


def test_processes_give_what_one_process_gives():
    histories = []
    for vectorization in ("sync", "async"):
        simulators = make_simulators(
            Environment(id="CartPole-v1", num_envs=5, vectorization=vectorization),
            seed=7,
            num_threads=2,
            life_ends_return="auto",
        )
        rng = np.random.default_rng(0)
        history = [simulators.reset()]
        for _ in range(60):
            step = simulators.step(rng.integers(0, 2, 5))
            history += [step.observations, step.rewards, step.terminated, step.truncated]
        histories.append([part.tobytes() for part in history])
        simulators.close()
    assert histories[0] == histories[1]


def test_slow_simulators_get_processes_and_fast_ones_none(monkeypatch):
    slow = make(kwargs={"step_s": 0.005}, num_envs=4, num_threads=2)
    assert slow.description["num_processes"] == 2
    slow.close()
    slow = make("Slow", num_envs=4, num_threads=2)
    assert slow.description["num_processes"] == 2
    slow.close()
    assert make(num_envs=4, num_threads=1, kwargs={"step_s": 0.005}).description["num_processes"] == 1
    # By a clock on which nothing takes any time, for this machine may have other work.
    monkeypatch.setattr("galampi.environments.vector.time", SimpleNamespace(perf_counter=lambda: 0.0))
    assert make(num_envs=4, num_threads=2).description["num_processes"] == 1


def test_measuring_a_simulator_leaves_global_generators_alone():
    import random

    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    expected = states()
    make("Gambler", num_threads=2)
    assert states() == expected


def test_a_simulator_may_have_processes_of_its_own_and_end_them_by_a_signal():
    simulators = make("Foreman", num_threads=2, vectorization="async")
    served = [psutil.Process(process.pid) for process in simulators._vector._processes]
    helpers = [child for process in served for child in process.children(recursive=True)]
    assert len(served) == 2 and len(helpers) == 4
    steps(simulators, 6)
    simulators.close()
    assert not psutil.wait_procs([*served, *helpers], timeout=DEADLOCK_S)[1]


def test_a_process_that_dies_is_told():
    simulators = make(kwargs={"habit": "dies"}, num_threads=2, vectorization="async")
    with pytest.raises(UserError, match=r"the process of simulators 0 to 0 of this rank has ended with code 9"):
        steps(simulators, 4)
    simulators.close()


def test_simulators_of_different_spaces_are_refused():
    with pytest.raises(UserError, match="action_space of simulator 1 is Discrete\\(3\\); must be that of the others"):
        make("Growing", kwargs={"size": "{simulator}"})


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_actions_are_of_the_type_of_their_space(dtype):
    space = gym.spaces.Discrete(3, dtype=dtype)
    action = Actuation(space)(np.int64(2))
    assert space.contains(action) and action == 2 and action.dtype == dtype
    switches = gym.spaces.Box(0, 1, (3,), np.bool_)
    assert Actuation(switches)(np.array([-0.9, -0.1, 0.1])).tolist() == [False, False, True]


def test_simulators_of_different_spaces_are_refused_between_processes():
    with pytest.raises(UserError, match="action_space of simulator 1 is Discrete\\(3\\); must be that of the others"):
        make("Growing", kwargs={"size": "{simulator}"}, num_threads=2, vectorization="async")


def test_closing_harms_nothing(caplog):
    simulators = make("Guest", num_envs=2, wrappers=("guests:Unclosable",))
    simulators.reset()
    simulators.close()
    assert caplog.text.count("closing a simulator of guests:Guest: AttributeError: no viewer") == 2


def test_lives_are_the_emulators_whatever_a_wrapper_tells():
    environment = Environment(id="ALE/Breakout-v5", num_envs=1, wrappers=("guests:Silent",))
    simulators = make_simulators(environment, seed=3, num_threads=1, life_ends_return=True)
    simulators.reset()
    simulators.step(np.ones(1, np.int64))
    assert sum(bool(simulators.step(np.full(1, 2)).life_lost[0]) for _ in range(300)) >= 1


def test_a_game_with_arguments_may_be_longer_than_the_emulator_has_it():
    made = make_environment(Environment(id="ALE/Breakout-v5", kwargs={"mode": 0}, max_episode_frames=300_000))
    assert made.unwrapped.ale.getInt("max_num_frames_per_episode") == 0


@pytest.mark.parametrize(("game", "frames"), [("breakout", {1, 2}), ("freeway", {0, 1, 2})])
def test_fire_counts_as_one_of_the_no_ops_that_a_game_begins_with(game, frames):
    """Breakout has the button, Freeway has not."""
    usual = AtariVectorEnv(game, num_envs=1, noop_max=3, use_fire_reset=True)
    seen = {int(usual.reset(seed=seed)[1]["episode_frame_number"][0]) for seed in range(10)}
    usual.close()
    other = make_environment(Environment(id=f"ALE/{game.capitalize()}-v5", max_noops=3, kwargs={"mode": 0}))
    assert {other.reset(seed=seed) and other.unwrapped.ale.getEpisodeFrameNumber() for seed in range(10)} == frames
    assert seen == frames


@pytest.mark.parametrize("grayscale", [True, False])
def test_a_game_with_arguments_is_played_by_the_rules_of_the_others(grayscale):
    """Under the same actions both show the same but for rounding, and give the same rewards and ends."""
    settings = {"id": "ALE/Breakout-v5", "num_envs": 1, "max_noops": 0, "grayscale": grayscale, "image_size": 60}
    settings |= {"frame_stack": 3, "max_episode_frames": 900}
    usual, other = (
        make_simulators(Environment(**settings, **more), seed=3, num_threads=1, life_ends_return=True)
        for more in ({}, {"kwargs": {"mode": 0, "difficulty": 0}})
    )
    assert other.description["vector"] == "galampi"
    observations = usual.reset(), other.reset()
    rng = np.random.default_rng(0)
    num_ends = num_lost = score = 0
    is_lost = False
    for _ in range(260):
        assert observations[0].shape == observations[1].shape == (1, 3 if grayscale else 9, 60, 60)
        # What a lost game shows last, which may lie in the middle of an action, is for nobody to see.
        assert is_lost or np.abs(observations[0].astype(int) - observations[1]).max() <= 1
        actions = rng.integers(0, 4, 1)
        first, second = usual.step(actions), other.step(actions)
        for name in ("rewards", "terminated", "truncated", "life_lost"):
            assert getattr(first, name) == getattr(second, name), name
        observations = first.observations, second.observations
        is_lost = bool(first.terminated[0])
        num_ends += is_lost or bool(first.truncated[0])
        num_lost += bool(first.life_lost[0])
        score += first.rewards[0]
    assert num_ends and num_lost >= 2 and score > 0


@pytest.mark.parametrize("kwargs", [{}, {"mode": 0}])
def test_a_game_is_cut_after_the_steps_asked_for(kwargs):
    simulators = make_simulators(
        Environment(id="ALE/Breakout-v5", num_envs=1, kwargs=kwargs, max_episode_steps=5, max_noops=0),
        seed=3,
        num_threads=1,
        life_ends_return="auto",
    )
    simulators.reset()
    assert [bool(simulators.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(8)] == [
        *[False] * 4,
        True,
        *[False] * 3,
    ]


def test_a_simulator_that_leaves_the_program_when_it_is_closed_starts_anew(monkeypatch):
    monkeypatch.setattr(guests.Guest, "close", lambda self: sys.exit())
    taken = steps(make(num_envs=2, kwargs={"habit": "raises", "number": "{simulator}"}, vectorization="sync"), 6)
    assert [len(step.failures) for step in taken[:4]] == [0, 0, 2, 0]


def test_arguments_that_gymnasium_or_a_game_cannot_take_are_told():
    told = r"^environment\.kwargs\.max_episode_steps is for environment\.max_episode_steps to say$"
    with pytest.raises(UserError, match=told):
        make_environment(Environment(id="CartPole-v1", kwargs={"max_episode_steps": 100}))
    with pytest.raises(UserError, match=r"^environment\.kwargs\.continuous is true; games of Atari have discrete"):
        make_environment(Environment(id="ALE/Pong-v5", kwargs={"continuous": True}))


def test_a_package_whose_environments_cannot_be_had_is_told_in_a_line(monkeypatch):
    def load():
        raise ModuleNotFoundError("No module named 'jax'")

    plugin = SimpleNamespace(module="guests", value="guests:register", load=load)
    monkeypatch.setattr("galampi.environments.making.entry_points", lambda group: [plugin])
    with pytest.raises(
        UserError, match=r"^environment\.id: module 'guests' offers .* raises ModuleNotFoundError: No mod"
    ):
        make_environment(Environment(id="guests:Absent-v0"))


@pytest.mark.parametrize(("key", "setting"), [("frameskip", "frame_skip"), ("full_action_space", "full_action_space")])
def test_arguments_of_a_game_that_are_settings_are_refused(key, setting):
    with pytest.raises(UserError, match=rf"^environment\.kwargs\.{key} is for environment\.{setting} to say$"):
        make_simulators(
            Environment(id="ALE/Breakout-v5", num_envs=1, kwargs={key: 1}),
            seed=3,
            num_threads=1,
            life_ends_return="auto",
        )


def test_settings_of_atari_reach_the_emulator():
    simulators = make_simulators(
        Environment(
            id="ALE/Pong-v5", num_envs=1, image_size=64, grayscale=False, frame_stack=2, full_action_space=True
        ),
        seed=3,
        num_threads=1,
        life_ends_return="auto",
    )
    assert simulators.reset().shape == (1, 6, 64, 64) == (1, *Encoding(simulators.single_observation_space).shape)
    assert simulators.single_action_space == gym.spaces.Discrete(18)


def test_machados_preset_has_no_signal_of_lives():
    environment = parse_job('[environment]\nid = "ALE/Breakout-v5"\npreset = "machado"', "test").environment
    description = make_simulators(environment, seed=3, num_threads=1, life_ends_return="auto").description
    assert description["life_loss_ends_return"] == 0
    assert (description["repeat_action_probability"], description["full_action_space"]) == (0.25, 1)


def test_other_modes_and_difficulties_change_the_game():
    shown = []
    for mode in (0, 12):
        environment = Environment(id="ALE/Breakout-v5", num_envs=1, kwargs={"mode": mode}, max_noops=0)
        simulators = make_simulators(environment, seed=3, num_threads=1, life_ends_return=True)
        simulators.reset()
        shown.append(np.stack([simulators.step(np.array([1])).observations for _ in range(40)]))
    assert (shown[0] != shown[1]).any()
    with pytest.raises(UserError, match="cannot be made"):
        make_simulators(
            Environment(id="ALE/Breakout-v5", kwargs={"mode": 999}), seed=3, num_threads=1, life_ends_return=True
        )


class Odd(gym.Env):
    """Answers each step as it is told to."""

    observation_space = gym.spaces.Box(0, 255, (12, 12, 3), np.uint8)
    action_space = gym.spaces.MultiDiscrete([2, 3])

    def __init__(self, observation=0, reward=0.0, info=None, terminated=False, first_info=None):
        self.answer = (np.zeros((12, 12, 3), np.uint8) + observation, reward, terminated, False, info or {})
        self.first_info = first_info or {}
        for given in (self.answer[4], self.first_info):
            if given.get("action_mask") == [[1, 0], [1, 1, 1]]:
                given["action_mask"] = list(map(np.array, given["action_mask"]))

    def reset(self, *, seed=None, options=None):
        return self.answer[0], self.first_info

    def step(self, action):
        return self.answer


ALLOWED = ((1, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("habits", "told"),
    [
        ({"observation": np.float32(0.9)}, r"the observation holds 0\.89\d*; its space is of bytes"),
        ({"observation": np.int64(-1)}, "the observation holds -1; its space is of bytes"),
        ({"observation": np.int64(256)}, "the observation holds 256; its space is of bytes"),
        ({"reward": 1e39}, r"the reward is 1e\+39; must be finite, in 32 bits too"),
        ({"reward": 10**400}, "the reward is inf; must be finite"),
        ({"info": {"action_mask": ALLOWED}}, "step 1 of episode 1: an action mask comes, and none came with the first"),
        (
            {"first_info": {"action_mask": [[1, 0], [1, [1, 1]]]}},
            "the action mask is .*; must say of 5 choices which are allowed",
        ),
    ],
)
def test_what_would_be_taken_for_something_else_is_told(monkeypatch, habits, told):
    monkeypatch.setattr(guests, "Odd", Odd, raising=False)
    with pytest.raises(UserError, match=told):
        steps(make("Odd", num_envs=1, kwargs=habits, vectorization="sync"), 1)


def test_what_is_meant_well_is_taken(monkeypatch):
    monkeypatch.setattr(guests, "Odd", Odd, raising=False)
    habits = {
        "observation": np.float32(7),
        "terminated": np.array(True),
        "info": {"action_mask": ALLOWED, "huge": 10**400},
        "first_info": {"action_mask": ALLOWED},
    }
    simulators = make("Odd", num_envs=1, kwargs=habits, vectorization="sync")
    (step,) = steps(simulators, 1)
    assert step.terminated.all()
    assert (step.observations == 7).all()
    assert simulators.masks.tolist() == [[True, False, True, True, True]]


def test_an_end_at_the_greatest_number_is_none():
    """As gymnasium writes an infinite bound of whole numbers."""
    space = gym.spaces.Box(0, np.inf, (1,), np.int64)
    actuation = Actuation(space)
    assert actuation(np.array([3.2], np.float32)).tolist() == [3]
    assert actuation(np.array([-1.0], np.float32)).tolist() == [0]


def test_a_class_that_is_not_there_is_told_with_the_nearest():
    told = "module 'guests' has no class 'Gest' and registers no such environment; did you mean 'Guest'"
    with pytest.raises(UserError, match=told):
        make("Gest")
