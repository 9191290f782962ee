"""Parts of torch that it does not publish: that they are there, and that the plain ways give the same numbers."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from galampi.environments.spaces import Encoding
from galampi.job import Network
from galampi.job.settings import Learner
from galampi.learning import kernels
from galampi.learning.optimizer import make_optimizer
from galampi.learning.policy import Policy

SEEN_WITH = ("2.6", "2.13")
"""Versions of torch that these tests were run with."""

PARTS = ("_threshold_backward", "_tanh_backward", "_convolution_backward", "_fused_adam", "_is_avx512_bf16_supported")


@pytest.fixture
def plain(monkeypatch):
    """Return a function that takes torch's parts away."""

    def take_away():
        for name in PARTS:
            monkeypatch.setattr(kernels, name, None)

    return take_away


def test_the_torch_of_these_tests_has_every_part():
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in SEEN_WITH:
        pytest.skip(f"torch {version} has not been looked at; these have: {', '.join(SEEN_WITH)}")
    assert [name for name in PARTS if getattr(kernels, name) is None] == []


@pytest.mark.parametrize("backward", [kernels.relu_backward, kernels.tanh_backward])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(plain, backward, dtype):
    generator = torch.Generator().manual_seed(0)
    gradient, x = torch.randn(2, 64, 5, generator=generator).to(dtype)
    y = x.clamp_min(0) if backward is kernels.relu_backward else x.tanh()
    found = backward(gradient, y)
    plain()
    # Of bfloat16 a product is rounded once more.
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(backward(gradient, y), found, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("needs_input", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(plain, stride, needs_input):
    generator = torch.Generator().manual_seed(0)
    last = {"memory_format": torch.channels_last}
    x = torch.randn(3, 4, 9, 9, generator=generator).contiguous(**last)
    weight = torch.randn(6, 4, 3, 3, generator=generator).contiguous(**last)
    side = (9 - 3) // stride + 1
    gradient = torch.randn(3, 6, side, side, generator=generator).contiguous(**last)
    found = kernels.convolution_backward(gradient, x, weight, stride, needs_input=needs_input)
    plain()
    expected = kernels.convolution_backward(gradient, x, weight, stride, needs_input=needs_input)
    assert (expected[0] is None) == (found[0] is None) == (not needs_input)
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            # Sums of up to 150 terms of about 1.
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    # The gradient of a weight is laid into the flat vector as it lies in memory.
    assert expected[1].is_contiguous(**last)


@pytest.mark.parametrize("form", ["rmsprop", "adam"])
@pytest.mark.parametrize("gradient_scale", [1.0, 0.25])
def test_optimizer(plain, gradient_scale, form):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(3, (1 << 17) + 1003)).astype(np.float32)

    def trained():
        z, gradient = np.zeros_like(gradients[:2])
        optimizer = make_optimizer(Learner(optimizer=form, rmsprop_alpha=0.9), z, gradient)
        for each in gradients:
            gradient[:] = each
            optimizer.step(0.01, gradient_scale)
        return z, gradient, optimizer.square_avg

    found = trained()
    plain()
    for one, other in zip(found, trained(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_processor(plain):
    found = kernels.multiplies_bfloat16()
    plain()
    assert kernels.multiplies_bfloat16() == found
    assert isinstance(found, bool)


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_network(plain, kind):
    shape = (4, 84, 84) if kind == "cnn" else (3,)
    space = gym.spaces.Box(0, 255, shape, np.uint8) if kind == "cnn" else gym.spaces.Box(-1, 1, shape, np.float32)
    observations = np.random.default_rng(0).integers(0, 255, (5, *shape)).astype(space.dtype)

    def gradient():
        policy = Policy(
            Network(kind=kind),
            Encoding(space),
            gym.spaces.Discrete(2),
            seed=1,
            device=torch.device("cpu"),
            precision=torch.float32,
        )
        activations = policy.trunk.new_activations(5)
        policy.trunk.encode(observations, activations[0])
        policy.forward(activations)
        policy.backward(activations, lambda outputs, values, free: outputs.square().sum() + values.sum())
        return policy.parameters.gradient

    found = gradient()
    plain()
    np.testing.assert_allclose(gradient(), found, rtol=1e-3, atol=1e-4 * np.abs(found).max())
