"""The network: its written-out backward pass against autograd, and the two kinds of action."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn import functional

from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Network
from galampi.learning.actions import DiscreteActions, GaussianActions
from galampi.learning.architectures import has_large_convolutions
from galampi.learning.layers import squares
from galampi.learning.plain import PlainNetwork
from galampi.learning.policy import Policy

PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
UNEVEN = gym.spaces.Box(0, 255, (3, 61, 50), np.uint8)
VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)
TWO_ACTIONS = gym.spaces.Discrete(2)
CONTINUOUS = gym.spaces.Box(-2, 2, (2,), np.float32)


def make_policy(observation_space, action_space=TWO_ACTIONS, precision=torch.float32, **network):
    return Policy(
        Network(**network),
        Encoding(observation_space),
        action_space,
        seed=1,
        device=torch.device("cpu"),
        precision=precision,
    )


def blocks_of_z(policy):
    """The vector's blocks as leaves of autograd, each in the shape it has in the vector."""
    blocks = policy.parameters.blocks()
    for k, layer in enumerate(policy.trunk.layers):
        blocks[2 * k] = blocks[2 * k].view(layer.weight_shape)
    return [block.requires_grad_() for block in blocks]


def reference_outputs(policy, kind, observations, blocks):
    """The network as torch's own layers would be, channels first."""
    x = torch.from_numpy(observations)
    if kind == "cnn":
        x = x.float() / 255
        for weight, bias, stride in zip(blocks[0:6:2], blocks[1:6:2], (4, 2, 1), strict=True):
            x = functional.relu(functional.conv2d(x, weight.permute(0, 3, 1, 2), bias, stride))
        x = functional.relu(functional.linear(x.permute(0, 2, 3, 1).flatten(1), blocks[6], blocks[7]))
        head = blocks[8:]
    else:
        for weight, bias in zip(blocks[0:4:2], blocks[1:4:2], strict=True):
            x = torch.tanh(functional.linear(x, weight, bias))
        head = blocks[4:]
    return functional.linear(x, head[0], head[1]), functional.linear(x, head[2], head[3]).squeeze(-1), head[4]


def loss_of(outputs, values, free):
    rows = torch.arange(1.0, len(values) + 1)
    return (rows * outputs.square().sum(-1)).sum() + (rows * (values - 1).square()).sum() + free.sum()


def close(found, expected, tolerance=1e-4):
    """Compare sums of many terms of both signs, in units of the greatest: roundings are relative to the terms."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(("kind", "space"), [("cnn", PIXELS), ("cnn", UNEVEN), ("mlp", VECTOR)])
@pytest.mark.parametrize("action_space", [TWO_ACTIONS, CONTINUOUS])
def test_forward_and_backward_equal_autograd(kind, space, action_space):
    policy = make_policy(space, action_space)
    rng = np.random.default_rng(0)
    observations = (
        rng.integers(0, 256, (6, *space.shape), np.uint8)
        if kind == "cnn"
        else rng.normal(size=(6, 3)).astype(np.float32)
    )
    activations = policy.trunk.new_activations(6)
    policy.trunk.encode(observations, activations[0])
    outputs, values = policy.forward(activations)

    blocks = blocks_of_z(policy)
    expected_outputs, expected_values, free = reference_outputs(policy, kind, observations, blocks)
    close(outputs, expected_outputs.detach())
    close(values, expected_values.detach())

    policy.backward(activations, loss_of)
    expected = torch.autograd.grad(loss_of(expected_outputs, expected_values, free), blocks)
    close(torch.from_numpy(policy.parameters.gradient), torch.cat([block.flatten() for block in expected]))


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 84, 84), (16, 60, 60)])
def test_bfloat16_equals_float32_to_rounding(shape):
    rng = np.random.default_rng(0)
    observations = rng.integers(0, 256, (80, *shape), np.uint8)
    results = []
    for precision in (torch.float32, torch.bfloat16):
        policy = make_policy(gym.spaces.Box(0, 255, shape, np.uint8), precision=precision)
        activations = policy.trunk.new_activations(80)
        policy.trunk.encode(observations, activations[0])
        outputs, values = policy.forward(activations)
        policy.backward(activations, loss_of)
        results.append((outputs, values, torch.from_numpy(policy.parameters.gradient.copy())))
    (outputs, values, gradient), (low_outputs, low_values, low_gradient) = results
    close(low_outputs, outputs, 0.02)
    close(low_values, values, 0.02)
    # bfloat16 keeps 8 bits: a sum of many rounded terms is right to a few per cent of the whole vector.
    assert (low_gradient - gradient).norm() < 0.05 * gradient.norm()


def test_orthogonal_initial_values():
    policy = make_policy(PIXELS)
    *trunk, policy_weight, policy_bias, value_weight, value_bias, _ = blocks_of_z(policy)
    for weight, gain in [*((w, 2.0) for w in trunk[::2]), (policy_weight, 1e-4), (value_weight, 1.0)]:
        matrix = weight.flatten(1)
        rows, columns = matrix.shape
        product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        torch.testing.assert_close(product, gain * torch.eye(min(rows, columns)), rtol=0, atol=2e-5 * gain)
    assert all((bias == 0).all() for bias in [*trunk[1::2], policy_bias, value_bias])


def test_working_copy_follows_z_only_on_refresh():
    policy = make_policy(VECTOR)
    parameters = policy.parameters
    parameters.z += 1
    before = [block.clone() for block in parameters.working]
    parameters.refresh()
    after = torch.cat([block.flatten() for block in parameters.working])
    np.testing.assert_array_equal(after.numpy(), parameters.z)
    assert not torch.equal(before[0], parameters.working[0])


def test_parameter_counts():
    assert make_policy(PIXELS, gym.spaces.Discrete(4)).parameters.z.size == 1_686_693
    small = make_policy(PIXELS, gym.spaces.Discrete(4), kind="cnn-small")
    assert small.parameters.z.size == 1_686_693 - 32 * 9 * 64 - 32 - 7 * 7 * 32 * 512


def test_channels_last_images_are_read_as_such():
    space = gym.spaces.Box(0, 255, (96, 80, 3), np.uint8)
    policy = make_policy(space)
    first = make_policy(gym.spaces.Box(0, 255, (3, 96, 80), np.uint8))
    observations = np.random.default_rng(0).integers(0, 256, (2, 96, 80, 3), np.uint8)
    activations, others = policy.trunk.new_activations(2), first.trunk.new_activations(2)
    policy.trunk.encode(Encoding(space).batch(observations), activations[0])
    first.trunk.encode(np.ascontiguousarray(observations.transpose(0, 3, 1, 2)), others[0])
    assert torch.equal(activations[0], others[0])
    assert activations[0].shape == (2, 24, 20, 48)
    assert policy.trunk.input_shape == (3, 96, 80)


def test_images_are_seen_by_convolutions_unless_told_otherwise():
    assert has_large_convolutions(Network(), Encoding(PIXELS))
    assert not has_large_convolutions(Network(kind="mlp"), Encoding(PIXELS))
    assert not has_large_convolutions(Network(), Encoding(VECTOR))


def test_squares_become_channels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 10, 13), np.uint8)
    cut = squares(images, 4, (2, 3))
    assert cut.shape == (2, 2, 3, 48)
    # The square in row 1, column 2: its pixels of one channel follow each other, row by row.
    np.testing.assert_array_equal(cut[1, 1, 2, 16:32], images[1, 1, 4:8, 8:12].flatten())
    np.testing.assert_array_equal(squares(images, 1, (10, 13)), images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("network", [{"hidden_sizes": (5,)}, {"hidden_sizes": ()}])
def test_bytes_count_as_fractions_in_a_network_without_convolutions(network):
    space = gym.spaces.Box(0, 255, (7,), np.uint8)
    policy = make_policy(space, kind="mlp", **network)
    observations = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
    activations = policy.trunk.new_activations(6)
    policy.trunk.encode(observations, activations[0])
    outputs, values = policy.forward(activations)
    plain = PlainNetwork(policy)
    expected_outputs, expected_values = plain(torch.from_numpy(observations) / 255)
    close(outputs, expected_outputs.detach())
    close(values, expected_values.detach().squeeze(-1))

    policy.backward(activations, loss_of)
    gradients = torch.autograd.grad(
        loss_of(expected_outputs, expected_values.squeeze(-1), torch.zeros(0)), [*plain.parameters()]
    )
    close(torch.from_numpy(policy.parameters.gradient), torch.cat([gradient.flatten() for gradient in gradients]))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "network", "message"),
    [
        (gym.spaces.Text(16), TWO_ACTIONS, {}, "the observation space is a Text; must be Box"),
        (VECTOR, gym.spaces.Text(5), {}, "the action space is a Text; must be Discrete, MultiDiscrete"),
        (VECTOR, TWO_ACTIONS, {"kind": "cnn"}, "network.kind is 'cnn'"),
        (gym.spaces.Box(0, 255, (20, 20, 3), np.uint8), TWO_ACTIONS, {"kind": "cnn"}, "20 x 20 are too small"),
        (gym.spaces.Box(0, 255, (20, 2, 3), np.uint8), TWO_ACTIONS, {}, "20 x 2 are too small; must be 3 x 3 at least"),
    ],
)
def test_unsupported_spaces_are_one_line_errors(observation_space, action_space, network, message):
    with pytest.raises(UserError, match=message) as error:
        make_policy(observation_space, action_space, **network)
    assert "\n" not in str(error.value)


def test_discrete_log_prob_entropy_against_torch():
    outputs, actions = torch.randn(7, 5), torch.tensor([3, 4, 5, 6, 7, 3, 3])
    log_prob, entropy = DiscreteActions(gym.spaces.Discrete(5, start=3)).log_prob_and_entropy(
        outputs, torch.empty(0), actions
    )
    expected = torch.distributions.Categorical(logits=outputs)
    torch.testing.assert_close(log_prob, expected.log_prob(actions - 3))
    torch.testing.assert_close(entropy, expected.entropy())


def test_gaussian_log_prob_entropy_against_torch():
    means, free, actions = torch.randn(7, 2), torch.tensor([-0.5, 0.7]), torch.randn(7, 2)
    log_prob, entropy = GaussianActions(CONTINUOUS).log_prob_and_entropy(means, free, actions)
    expected = torch.distributions.Independent(torch.distributions.Normal(means, free.exp()), 1)
    torch.testing.assert_close(log_prob, expected.log_prob(actions))
    torch.testing.assert_close(entropy, expected.entropy())


def test_actions_are_drawn_from_the_policy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5])
    actions = DiscreteActions(gym.spaces.Discrete(4)).sample(logits.expand(40_000, 4), torch.empty(0), generator)
    frequencies = torch.bincount(actions, minlength=4) / len(actions)
    torch.testing.assert_close(frequencies, logits.softmax(0), rtol=0, atol=0.01)

    free = torch.tensor([-1.0, 0.5])
    drawn = GaussianActions(CONTINUOUS).sample(torch.tensor([3.0, -1.0]).expand(40_000, 2), free, generator)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([3.0, -1.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), free.exp(), rtol=0.02, atol=0)
