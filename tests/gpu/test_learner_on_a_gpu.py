"""The learner on a GPU beside the same learner on the processor; `make gpu-check` runs these."""

from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.job import parse_job
from galampi.learning import Learner, Rollout
from galampi.learning.recurrence import Memory

PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)
FOUR_ACTIONS = gym.spaces.Discrete(4)
TWO_NUMBERS = gym.spaces.Box(-2, 2, (2,), np.float32)
NETWORKS = [{"network.kind": "nets:nature"}, {"network.recurrent": "gru"}, {"network.recurrent": "lstm"}]
SPACES = [(PIXELS, FOUR_ACTIONS), (VECTOR, FOUR_ACTIONS), (VECTOR, TWO_NUMBERS)]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def make_learner(spaces, device, precision="float32", network=MappingProxyType({})):
    job = parse_job("", "test", network)
    return Learner(job, *spaces, total_simulators=16, seed=1, action_seed=7, device=device, precision=precision)


def make_rollout(learner, spaces, num_steps=5, num_envs=8):
    """Random content with both ends; the learner computes activations and values itself."""
    observation_space, action_space = spaces
    rng = np.random.default_rng(3)
    activations = learner.policy.trunk.new_activations(num_steps + 1, num_envs)
    for row in activations[0]:
        shape = (num_envs, *observation_space.shape)
        pixels = observation_space.dtype == np.uint8
        learner.policy.trunk.encode(rng.integers(0, 256, shape, np.uint8) if pixels else rng.normal(size=shape), row)
    shape = (num_steps, num_envs)
    terminated, truncated, valid = np.zeros(shape, bool), np.zeros(shape, bool), np.ones(shape, bool)
    terminated[1, 0] = truncated[2, 1] = True
    valid[2, 0] = valid[3, 1] = False
    discrete = isinstance(action_space, gym.spaces.Discrete)
    recurrence = learner.policy.recurrence
    keeps = torch.from_numpy(rng.random((num_steps + 1, num_envs)) > 0.2)
    return Rollout(
        activations,
        rng.integers(0, 4, shape) if discrete else rng.normal(size=(*shape, 2)).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
        np.zeros((num_steps + 1, num_envs), np.float32),
        terminated,
        truncated,
        valid,
        parameters_version=-1,
        memory=Memory(recurrence.new_memory(num_envs).state + 0.5, keeps) if recurrence is not None else None,
    )


def gradient_on(device, spaces, precision="float32", network=MappingProxyType({})):
    learner = make_learner(spaces, device, precision, network)
    losses = learner.compute_gradient(make_rollout(learner, spaces))
    return learner.gradient.copy(), losses


@pytest.mark.parametrize("spaces", SPACES)
def test_the_gradient_is_that_of_the_processor(spaces) -> None:
    (on_gpu, losses), (expected, losses_there) = gradient_on("cuda:0", spaces), gradient_on("cpu", spaces)
    # Sums of up to 40,000 products in another order.
    assert np.linalg.norm(on_gpu - expected) < 1e-4 * np.linalg.norm(expected)
    assert losses.value_loss == pytest.approx(losses_there.value_loss, rel=1e-4)
    assert losses.entropy == pytest.approx(losses_there.entropy, rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_other_networks_have_the_gradient_of_the_processor(network) -> None:
    on_gpu, expected = (gradient_on(device, SPACES[0], network=network)[0] for device in ("cuda:0", "cpu"))
    assert np.linalg.norm(on_gpu - expected) < 1e-4 * np.linalg.norm(expected)


def test_bfloat16_is_as_near_as_on_the_processor() -> None:
    expected, _ = gradient_on("cpu", SPACES[0])
    errors = {
        device: np.linalg.norm(gradient_on(device, SPACES[0], "bfloat16")[0] - expected) / np.linalg.norm(expected)
        for device in ("cuda:0", "cpu")
    }
    print(errors)
    assert errors["cuda:0"] < 2 * errors["cpu"]


@pytest.mark.parametrize("spaces", SPACES)
def test_updates_and_saved_state_follow_the_processors(spaces) -> None:
    learners = [make_learner(spaces, device) for device in ("cuda:0", "cpu")]
    for learner in learners:
        for _ in range(5):
            learner.compute_gradient(make_rollout(learner, spaces))
            learner.apply_gradient(1e-3)
            learner.refresh()
    on_gpu, expected = (learner.z for learner in learners)
    moved = np.linalg.norm(expected - make_learner(spaces, "cpu").z)
    # RMSprop's first steps are almost signs, and rounding turns those of gradients near 0: 4.7 % was seen.
    assert np.linalg.norm(on_gpu - expected) < 0.1 * moved
    fresh = make_learner(spaces, "cuda:0")
    fresh.load_state(learners[0].state())
    for learner in (learners[0], fresh):
        learner.compute_gradient(make_rollout(learner, spaces))
    np.testing.assert_allclose(fresh.gradient, learners[0].gradient, rtol=1e-4, atol=1e-7)
