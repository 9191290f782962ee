"""Distributions of actions, masks, and what a simulator gets to see of an action."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.environments.actuation import Actuation
from galampi.errors import UserError
from galampi.learning.actions import DiscreteActions, MultiDiscreteActions, actions_of, masked


def test_several_numbers_have_the_density_and_entropy_of_their_product():
    """Over all 2 x 3 actions the probabilities sum to 1, and -sum p log p is the entropy."""
    actions = MultiDiscreteActions(gym.spaces.MultiDiscrete([2, 3]))
    outputs = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).expand(6, 5)
    every = torch.tensor(list(itertools.product(range(2), range(3))))
    log_prob, entropy = actions.log_prob_and_entropy(outputs, torch.empty(0), every)
    assert log_prob.exp().sum().item() == pytest.approx(1)
    assert entropy[0].item() == pytest.approx(-(log_prob.exp() * log_prob).sum().item())
    assert actions.mode(outputs)[0].tolist() == every[log_prob.argmax()].tolist()


def test_several_numbers_are_drawn_as_often_as_they_are_probable():
    actions = MultiDiscreteActions(gym.spaces.MultiDiscrete([2, 2]))
    outputs = torch.tensor([[math.log(0.2), math.log(0.8), math.log(0.7), math.log(0.3)]]).expand(20_000, 4)
    drawn = actions.sample(outputs, torch.empty(0), torch.Generator().manual_seed(0)).double().mean(0)
    # Three standard deviations of a mean of 20,000 bits: 3 sqrt(p (1 - p) / 20000).
    np.testing.assert_allclose(drawn, [0.8, 0.3], atol=0.01)


def test_bits_are_numbers_of_two():
    actions = actions_of(gym.spaces.MultiBinary((2, 3)))
    assert isinstance(actions, MultiDiscreteActions) and actions.sizes == [2] * 6


def test_what_a_mask_forbids_has_no_probability_and_no_gradient():
    actions = DiscreteActions(gym.spaces.Discrete(3))
    outputs = torch.tensor([[5.0, 1.0, 1.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    allowed = masked(outputs, mask)
    drawn = actions.sample(allowed[:1].expand(1000, 3), torch.empty(0), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2}
    log_prob, entropy = actions.log_prob_and_entropy(allowed, torch.empty(0), torch.tensor([1, 0]))
    assert log_prob.tolist() == pytest.approx([-math.log(2), -math.log(3)])
    assert entropy.tolist() == pytest.approx([math.log(2), math.log(3)])
    (log_prob.sum() + entropy.sum()).backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[0, 0] == 0 and not outputs.grad[1].any()


@pytest.mark.parametrize(
    ("low", "high"), [(-1, 1), (-100, 100), (0, 0.01), (-0.01, 0.01), (5, 6), (-3e38, 3e38), (-np.inf, np.inf)]
)
def test_bounds_lie_at_minus_1_and_1_for_a_policy(low, high):
    space = gym.spaces.Box(np.float32(low), np.float32(high), (2, 1))
    actuation = Actuation(space)
    assert actuation.shape == (2,)
    ends = actuation(np.float32([-1, 1])), actuation(np.float32([-7, 0]))
    for action in ends:
        assert action.shape == (2, 1) and action.dtype == np.float32 and space.contains(action)
    if abs(high) < 1e30:
        np.testing.assert_array_equal(ends[0].ravel(), [space.low[0, 0], space.high[0, 0]])
        np.testing.assert_allclose(ends[1].ravel(), np.float32([low, (low + high) / 2]), rtol=1e-6)
    else:
        np.testing.assert_array_equal(ends[1].ravel(), [-7, 0])


def test_numbers_out_of_sets_are_handed_on_as_the_simulator_counts_them():
    space = gym.spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]])
    action = Actuation(space)(np.array([1, 2, 3, 4]))
    np.testing.assert_array_equal(action, [[1, 3], [5, 7]])
    assert space.contains(action)
    bits = gym.spaces.MultiBinary((2, 2))
    assert bits.contains(Actuation(bits)(np.array([1, 0, 1, 1])))
    whole = gym.spaces.Box(0, 10, (2,), np.int64)
    np.testing.assert_array_equal(Actuation(whole)(np.float32([-1, 0.4])), [0, 7])


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (gym.spaces.Discrete(3, start=2), [1]),
        (gym.spaces.Discrete(3, start=2), [5]),
        (gym.spaces.Discrete(3), [0.0]),
        (gym.spaces.Discrete(3), [[0]]),
        (gym.spaces.MultiDiscrete([2, 3]), [[2, 0]]),
        (gym.spaces.MultiDiscrete([2, 3]), [[0, -1]]),
        (gym.spaces.MultiBinary(2), [[0, 2]]),
        (gym.spaces.Box(-1, 1, (2,)), [[0.0]]),
    ],
)
def test_what_is_no_action_is_refused(space, actions):
    with pytest.raises(ValueError, match="actions"):
        Actuation(space).check(np.array(actions))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_policy_is_told_in_a_line(value):
    with pytest.raises(UserError, match="an action of the policy is not finite: training has diverged"):
        Actuation(gym.spaces.Box(-1, 1, (2,))).check(np.array([[0.0, value]]))


def test_other_spaces_are_refused_in_one_line():
    for space in (gym.spaces.Dict(a=gym.spaces.Discrete(2)), gym.spaces.Text(4), gym.spaces.Box(0, 1, (0,))):
        for refuse in (Actuation, actions_of):
            with pytest.raises(UserError, match="the action space is a") as error:
                refuse(space)
            assert "\n" not in str(error.value)
