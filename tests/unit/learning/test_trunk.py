"""Any module as a trunk: the same numbers as the written backward pass, and what a user may get wrong."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.environments.spaces import Encoding
from galampi.errors import UserError
from galampi.job import Network
from galampi.learning.architectures import has_large_convolutions
from galampi.learning.plain import PlainNetwork
from galampi.learning.policy import Policy
from galampi.learning.trunk import ModuleTrunk, WrittenTrunk, make_trunk

PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)
TWO_ACTIONS = gym.spaces.Discrete(2)
SMALL = gym.spaces.Box(0, 1, (10, 10, 6), np.bool_)
JOINED = gym.spaces.Dict(
    {
        "camera": gym.spaces.Box(0, 255, (40, 44, 3), np.uint8),
        "map": gym.spaces.Box(0.0, 1.0, (12, 12), np.float32),
        "arm": gym.spaces.Dict({"joints": gym.spaces.Box(-2, 2, (5,), np.float32)}),
        "gear": gym.spaces.Discrete(4),
    }
)


def make_policy(space, precision=torch.float32, seed=1, **network):
    return Policy(
        Network(**network), Encoding(space), TWO_ACTIONS, seed=seed, device=torch.device("cpu"), precision=precision
    )


def loss_of(outputs, values, free):
    rows = torch.arange(1.0, len(values) + 1)
    return (rows * outputs.square().sum(-1)).sum() + (rows * (values - 1).square()).sum()


def pass_through(policy, observations):
    activations = policy.trunk.new_activations(len(observations))
    policy.trunk.encode(observations, activations[0])
    outputs, values = policy.forward(activations)
    policy.backward(activations, loss_of)
    return outputs, values, policy.parameters.gradient.copy()


def in_torchs_layouts(policy, vector):
    """Return a vector of a policy's parameters as torch's modules would have it."""
    policy.parameters.z[:] = vector
    return np.concatenate([p.detach().numpy().ravel() for p in PlainNetwork(policy).parameters()])


def observations_of(space, num):
    space.seed(0)
    encoding = Encoding(space)
    return np.concatenate([encoding(space.sample())[None].reshape(1, *encoding.shape) for _ in range(num)])


def test_a_constant_that_does_not_move_with_its_module_is_told_in_one_line():
    encoding = Encoding(gym.spaces.Box(-1, 1, (4,), np.float32))
    network = Network(kind="nets:Forgets")
    make_trunk(network, encoding, seed=0, device=torch.device("cpu"), precision=torch.float32)
    line = (
        r"the network raises RuntimeError: .* in bfloat16 on cpu; a constant of its own, if it has one, must be moved"
    )
    with pytest.raises(UserError, match=line) as error:
        make_trunk(network, encoding, seed=0, device=torch.device("cpu"), precision=torch.bfloat16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_nature_network_as_a_plain_module_has_the_written_gradient(precision, tolerance):
    observations = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8)
    written = make_policy(PIXELS, precision)
    plain = make_policy(PIXELS, precision, kind="nets:nature")
    assert isinstance(written.trunk, WrittenTrunk) and isinstance(plain.trunk, ModuleTrunk)
    plain.parameters.z[:] = in_torchs_layouts(written, written.parameters.z.copy())
    plain.parameters.refresh()
    outputs, values, gradient = pass_through(written, observations)
    others = pass_through(plain, observations)
    for found, expected in zip(others[:2], (outputs, values), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    gradient = in_torchs_layouts(written, gradient)
    # Of bfloat16's 8 bits: either is 3 % at most off the float32 gradient, in the first layer.
    start = 0
    for block in plain.parameters.blocks():
        part = slice(start, start := start + block.numel())
        assert np.linalg.norm(others[2][part] - gradient[part]) <= tolerance * np.linalg.norm(gradient[part])


def test_a_users_module_is_given_lists_of_its_own():
    kwargs = {"widths": (6, 5), "more": {"widths": (4,)}}
    policy = make_policy(VECTOR, kind="nets:Stacked", kwargs=kwargs)
    assert [layer.out_features for layer in policy.trunk.module] == [6, 5, 4]
    assert kwargs == {"widths": (6, 5), "more": {"widths": (4,)}}


def test_a_users_module_is_trained_on_the_flat_vector():
    policy = make_policy(VECTOR, kind="nets:Trunk", kwargs={"width": 7})
    reference = make_policy(VECTOR, kind="nets:Trunk", kwargs={"width": 7})
    observations = observations_of(VECTOR, 5)
    outputs, values, gradient = pass_through(policy, observations)

    module = reference.trunk.module
    head = [block.requires_grad_() for block in reference.parameters.blocks()[-5:]]
    features = module(torch.from_numpy(observations))
    expected = features @ head[0].T + head[1], (features @ head[2].T + head[3]).squeeze(-1)
    torch.testing.assert_close(outputs, expected[0].detach())
    torch.testing.assert_close(values, expected[1].detach())
    loss_of(*expected, head[4]).backward()
    tensors = [*module.parameters(), *head[:4]]
    wanted = [torch.zeros_like(p) if p.grad is None else p.grad for p in tensors]
    assert [name for name, p in module.named_parameters() if p.grad is None] == [
        "unused",
        "frozen.weight",
        "frozen.bias",
    ]
    torch.testing.assert_close(torch.from_numpy(gradient), torch.cat([p.flatten() for p in wanted]))
    # What ranks average and optimizers change is what the module computes with.
    policy.parameters.z -= 1e-3 * gradient
    policy.parameters.refresh()
    own = torch.cat([p.detach().flatten() for p in policy.trunk.module.parameters()])
    np.testing.assert_array_equal(own, policy.parameters.z[: own.numel()])
    after = pass_through(policy, observations)
    assert loss_of(*after[:2], None) < loss_of(outputs, values, None)


def test_sparse_gradients_are_those_that_are_not():
    observations = observations_of(VECTOR, 5)
    sparse, dense = (
        pass_through(make_policy(VECTOR, kind="nets:Embeds", kwargs={"sparse": sparse}), observations)[2]
        for sparse in (True, False)
    )
    assert np.any(dense[:8])
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)


def test_a_module_begins_alike_for_a_seed_and_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    first = make_policy(VECTOR, kind="nets:Trunk").parameters.z
    drawn = torch.rand(1)
    torch.manual_seed(6)
    np.testing.assert_array_equal(make_policy(VECTOR, kind="nets:Trunk").parameters.z, first)
    assert not np.array_equal(make_policy(VECTOR, seed=2, kind="nets:Trunk").parameters.z, first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Trunk", r"module 'nowhere' cannot be imported"),
        ("nets:Absent", r"'nets' has no such class or function"),
        ("nets:Raises", r"building it raises ValueError: no width"),
        ("nets:text", r"makes a str; must make a torch\.nn\.Module"),
        ("nets:Counts", r"buffer 'norm\.num_batches_tracked' would be neither averaged nor saved"),
        ("nets:Double", r"parameter 'weight' is of torch\.float64"),
        ("nets:Sparse", r"constant 'graph' is of layout torch\.sparse_coo; must be a dense tensor"),
        ("nets:Images", r"for observations \[2, 3\] raises RuntimeError"),
        (
            "nets:Detached",
            r"returns features that have no gradient, as after detach\(\), so that its parameters",
        ),
        (
            "nets:Centred",
            r"features of an observation are others when it is shown alone; what learns must be what acted",
        ),
        ("nets:Social", r"for one observation alone raises ValueError: Expected more than 1 value"),
        ("nets:Drops", r"other features when it is shown the same observations again; what learns must be what acted"),
        ("nets:Ages", r"other features when it is shown the same observations again"),
        ("nets:Overwrites", r"features whose gradient raises RuntimeError: one of the variables needed"),
        ("nets:Unflat", r"for observations \[2, 3\] returns \[1, 2, 3\]; must be \[2, width\]"),
    ],
)
def test_what_is_no_trunk_is_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        make_policy(VECTOR, kind=name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        SMALL,
        gym.spaces.Box(0.0, 1.0, (3, 7, 9), np.float32),
        gym.spaces.Box(0.0, 1.0, (44, 40, 3), np.float32),
        PIXELS,
    ],
)
def test_small_images_have_a_network_of_their_own(space):
    policy = make_policy(space)
    channels, height, width = Encoding(space).shape
    is_small = min(height, width) < 36
    expected = 16 * 9 * channels + 16 + 16 * (height - 2) * (width - 2) * 128 + 128 + 3 * 129
    assert (policy.parameters.z.size == expected) == is_small
    assert has_large_convolutions(Network(), Encoding(space)) != is_small
    observations = observations_of(space, 4)
    outputs, values, _ = pass_through(policy, observations)
    plain = PlainNetwork(policy)
    wanted = plain(torch.from_numpy(observations).float() * policy.trunk.input_scale)
    torch.testing.assert_close(outputs, wanted[0].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, wanted[1].detach().squeeze(-1), rtol=1e-4, atol=1e-5)


def test_parts_are_seen_by_networks_of_their_own_and_joined():
    policy = make_policy(JOINED, hidden_sizes=(5,))
    observations = observations_of(JOINED, 4)
    values = pass_through(policy, observations)[1]
    assert policy.trunk.num_features == 512 + 128 + 5
    for part in Encoding(JOINED).parts:
        changed = observations.copy()
        changed[:, part.columns] += 0.5
        assert not torch.equal(pass_through(policy, changed)[1], values), part
    assert not has_large_convolutions(Network(), Encoding(JOINED))
    assert isinstance(make_policy(JOINED, kind="mlp").trunk, WrittenTrunk)
    with pytest.raises(UserError, match="images of 12 x 12 are too small"):
        make_policy(JOINED, kind="cnn")


def test_constants_of_a_users_module_go_on_as_they_were_drawn():
    """Whatever draws them: another module has others, until it is given those of the first."""
    np.random.seed(1)
    first, other = (make_policy(VECTOR, kind="nets:Drawn") for _ in range(2))
    observations = observations_of(VECTOR, 5)
    seen = [pass_through(policy, observations)[0] for policy in (first, other)]
    assert not torch.equal(*seen)
    assert not np.array_equal(first.trunk.constants, other.trunk.constants)
    other.trunk.load_constants(first.trunk.constants)
    np.testing.assert_array_equal(first.trunk.constants, other.trunk.constants)
    assert torch.equal(pass_through(other, observations)[0], seen[0])
    # They are kept as they were made, whatever it computes in, and what is complex stays so.
    half = make_policy(VECTOR, torch.bfloat16, kind="nets:Drawn")
    half.trunk.load_constants(first.trunk.constants)
    np.testing.assert_array_equal(half.trunk.constants, first.trunk.constants)
    assert half.trunk.module.turns.is_complex() and half.trunk.module.waves.dtype == torch.bfloat16
    assert half.trunk.module.even.tolist() == [True, False]
    assert torch.allclose(half.trunk.module.turns, first.trunk.module.turns)
    with pytest.raises(UserError, match=r"constants \(buffers\) take 114 bytes; those that it is to go on with took 3"):
        other.trunk.load_constants(np.zeros(3, np.uint8))
    # Also where torch shows one piece of memory several times, or several modules have one constant.
    for precision in (torch.float32, torch.bfloat16):
        shared = make_policy(VECTOR, precision, kind="nets:Shares").trunk
        kept = shared.constants
        shared.load_constants(kept + 0)
        np.testing.assert_array_equal(shared.constants, kept)
    # Of the networks that come along there are none.
    assert not len(make_policy(VECTOR).trunk.constants)


@pytest.mark.parametrize("shape", [(4, 7, 7, 3), (7, 7, 3), (3, 7, 7), (2, 3, 7, 7)])
def test_a_flat_network_of_torchs_own_takes_images_as_the_space_has_them(shape):
    """So that who plays without this package gives it what the environment shows."""
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    policy = make_policy(space, kind="mlp")
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    outputs = pass_through(policy, np.stack([Encoding(space)(image) for image in images]))[0]
    plain = PlainNetwork(policy)
    expected = plain(torch.from_numpy(images.reshape(2, -1)).float() * policy.trunk.input_scale)[0]
    torch.testing.assert_close(outputs, expected.detach(), rtol=1e-4, atol=1e-5)


def test_hidden_sizes_of_an_mlp_that_is_none_are_refused() -> None:
    both = gym.spaces.Dict({name: gym.spaces.Box(0, 255, (4, 84, 84), np.uint8) for name in "ab"})
    with pytest.raises(UserError, match=r"^network\.hidden_sizes does nothing: observations are images"):
        make_policy(both, kind="cnn", hidden_sizes=(32,))
    with_row = gym.spaces.Dict({**both.spaces, "row": VECTOR})
    assert make_policy(with_row, kind="cnn", hidden_sizes=(32,)).trunk.num_features == 2 * 512 + 32
    images = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    with pytest.raises(UserError, match=r"^network\.hidden_sizes does nothing: observations are images"):
        make_policy(images, hidden_sizes=(32,))
    make_policy(images, kind="mlp", hidden_sizes=(32,))
