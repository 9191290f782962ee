"""Environments of others: each is trained for some thousand steps; a test without its package is skipped."""

import numpy as np
import pytest

from galampi.environments import make_simulators
from galampi.errors import UserError
from galampi.job import find_job, load_job, parse_job
from galampi.learning import Learner, RolloutCollector

NORMALIZED = {"learner.normalize_observations": "true", "learner.normalize_returns": "true"}
# The mission is text, and always the same in these.
SEEN = '{ wrapper = "gymnasium.wrappers:FilterObservation", kwargs = { filter_keys = ["image", "direction"] } }'
CASES = {
    "minatar": ("minatar", {"environment.id": "minatar:MinAtar/Breakout-v1"}),
    "minigrid": (
        "minigrid",
        {"environment.id": "minigrid:MiniGrid-Empty-5x5-v0", "environment.wrappers": f"[{SEEN}]"},
    ),
    "half-cheetah": ("mujoco", {"environment.id": "HalfCheetah-v5", **NORMALIZED}),
    "hopper": ("mujoco", {"environment.id": "Hopper-v5", **NORMALIZED}),
    "lunar-lander": ("Box2D", {"environment.id": "LunarLander-v3", **NORMALIZED}),
    "lunar-lander-continuous": (
        "Box2D",
        {"environment.id": "LunarLander-v3", "environment.kwargs": "{ continuous = true }"},
    ),
    "taxi": ("gymnasium", {"environment.id": "Taxi-v4"}),
    "frozen-lake": ("gymnasium", {"environment.id": "FrozenLake-v1"}),
    "popgym": ("popgym", {"environment.id": "popgym:popgym-RepeatPreviousEasy-v0", "network.recurrent": "gru"}),
    "highway": (
        "highway_env",
        {
            "environment.id": "highway_env:parking-v0",
            "environment.kwargs": "{ config = { simulation_frequency = 5, duration = 20 } }",
        },
    ),
    "vizdoom": (
        "vizdoom",
        {"environment.id": "vizdoom.gymnasium_wrapper:VizdoomBasic-v1", "environment.kwargs": "{ frame_skip = 8 }"},
    ),
}

SLOW = {"highway", "vizdoom", "hopper", "half-cheetah", "minigrid", "lunar-lander", "frozen-lake"}
# Fewer simulators and steps where they are slow.
NUM_ENVS = dict.fromkeys(CASES, 8) | {"highway": 4, "vizdoom": 1}
NUM_STEPS = dict.fromkeys(CASES, 9000) | {"highway": 600, "vizdoom": 80}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES]
)
def test_it_trains(case, tmp_path, monkeypatch) -> None:
    # Some leave files where they run.
    monkeypatch.chdir(tmp_path)
    package, settings = CASES[case]
    pytest.importorskip(package, exc_type=ImportError)
    job = parse_job("", "test", {"environment.num_envs": str(NUM_ENVS[case]), **settings})
    simulators = make_simulators(job.environment, seed=1, num_threads=1, life_ends_return=False)
    spaces = simulators.single_observation_space, simulators.single_action_space
    learner = Learner(
        job, *spaces, total_simulators=NUM_ENVS[case], seed=1, action_seed=1, device="cpu", precision="float32"
    )
    collector = RolloutCollector(job, simulators, learner)
    before, num_steps, num_episodes = learner.parameters.copy(), 0, 0
    while num_steps < NUM_STEPS[case]:
        rollout, ended = collector.collect()
        if simulators.masks is not None:
            assert (np.take_along_axis(rollout.masks, rollout.actions[..., None], -1)).all()
        learner.compute_gradient(rollout)
        learner.apply_gradient(7e-4)
        learner.refresh()
        num_steps += rollout.num_valid
        num_episodes += len(ended)
    simulators.close()
    assert not collector.failures
    assert num_episodes > 0
    assert np.isfinite(learner.z).all()
    assert np.abs(learner.parameters - before).max() > 1e-3
    assert (simulators.masks is not None) == (case == "taxi")


def test_a_mission_of_text_is_refused_with_the_remedy() -> None:
    pytest.importorskip("minigrid")
    job = parse_job("", "test", {"environment.id": "minigrid:MiniGrid-Empty-5x5-v0"})
    told = r"observation 'mission' is a MissionSpace; must be .* \(environment\.wrappers may leave it out"
    with pytest.raises(UserError, match=told):
        make_simulators(job.environment, seed=1, num_threads=1, life_ends_return=False)


@pytest.mark.parametrize(
    "name", ["half-cheetah", "hopper", "lunar-lander", "minatar-breakout", "minigrid-door-key", "popgym-positions"]
)
def test_its_job_says_what_to_install(name) -> None:
    assert "(pip install " in find_job(name).read_text().splitlines()[0]
    assert load_job(name).name == name
