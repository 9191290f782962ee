"""RMSprop in both forms: by hand, against torch, and against the formula of TensorFlow's kernel."""

import numpy as np
import pytest
import torch

from galampi.learning.optimizer import Adam, RMSprop

EPS = float(np.finfo(np.float32).eps)


def test_torch_form_by_hand():
    z = np.array([1.0, 1.0], np.float32)
    optimizer = RMSprop(z, np.array([4.0, -2.0], np.float32), "rmsprop", alpha=0.75, epsilon=0.5)
    # s = 0.25 * 16 = 4, root 2;  s = 0.25 * 4 = 1, root 1
    optimizer.step(learning_rate=0.5)
    np.testing.assert_allclose(optimizer.square_avg, [4, 1])
    np.testing.assert_allclose(z, [1 - 0.5 * 4 / 2.5, 1 + 0.5 * 2 / 1.5], rtol=0, atol=4 * EPS)


def test_tensorflow_form_by_hand():
    z = np.array([1.0, 1.0], np.float32)
    optimizer = RMSprop(z, np.array([np.sqrt(12), 0.0], np.float32), "rmsprop-tf", alpha=0.75, epsilon=0.25)
    # s = 0.75 * 1 + 0.25 * 12 = 3.75, + 0.25 = 4, root 2;  s = 0.75 * 1 + 0.25 * 0 = 0.75, + 0.25 = 1
    optimizer.step(learning_rate=0.5)
    np.testing.assert_allclose(optimizer.square_avg, [3.75, 0.75], rtol=4 * EPS)
    np.testing.assert_allclose(z, [1 - 0.5 * np.sqrt(12) / 2, 1.0], rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 0.99, 0.99999])
def test_torch_form_is_torch_rmsprop(alpha):
    rng = np.random.default_rng(0)
    # Of several chunks, the last of them short.
    num_parameters = (1 << 17) + 1003
    z = rng.normal(size=num_parameters).astype(np.float32)
    expected = torch.nn.Parameter(torch.from_numpy(z.astype(np.float64)))
    reference = torch.optim.RMSprop([expected], lr=0.01, alpha=alpha, eps=1e-5)
    tolerance = np.zeros(num_parameters)
    gradient = np.zeros(num_parameters, np.float32)
    optimizer = RMSprop(z, gradient, "rmsprop", alpha=alpha, epsilon=1e-5)
    for _ in range(20):
        gradient[:] = rng.normal(size=num_parameters) * 10.0 ** rng.uniform(-8, 2, num_parameters)
        expected.grad = torch.from_numpy(gradient.astype(np.float64))
        before = expected.detach().numpy().copy()
        reference.step()
        optimizer.step(learning_rate=0.01)
        # The reference is double. A float32 operation rounds by EPS / 2 at most: z by the subtraction, in units of the
        # larger z; the step itself, relative to its size, by four operations, by half of what its mean square is off
        # (three roundings a step, which add up over the twenty), and by three constants.
        after = expected.detach().numpy()
        tolerance += EPS * np.maximum(np.abs(before), np.abs(after)) + 20 * EPS * np.abs(after - before)
    assert (np.abs(z - after) <= tolerance).all()
    np.testing.assert_allclose(optimizer.square_avg, reference.state[expected]["square_avg"], rtol=35 * EPS)


def test_tensorflow_form_is_the_same_in_every_chunk():
    values = np.random.default_rng(0).normal(size=1003).astype(np.float32)
    z = np.tile(values, 200)
    optimizer = RMSprop(z, np.tile(values[::-1], 200), "rmsprop-tf", alpha=0.9, epsilon=1e-5)
    for _ in range(3):
        optimizer.step(learning_rate=0.01)
    # Chunks may differ by roundings, three of z and a few of every step.
    tolerance = 4 * np.spacing(np.abs(values).max())
    np.testing.assert_allclose(z.reshape(200, -1), np.tile(z[:1003], (200, 1)), rtol=0, atol=tolerance)
    assert not np.allclose(z[:1003], values)


@pytest.mark.parametrize("form", ["rmsprop", "rmsprop-tf"])
def test_the_gradient_is_scaled_before_it_is_used_and_stays_so(form):
    gradient = np.random.default_rng(0).normal(size=(1 << 17) + 1003).astype(np.float32)
    z, other = np.zeros((2, gradient.size), np.float32)
    halved = gradient / 2
    RMSprop(z, gradient, form, alpha=0.9, epsilon=1e-5).step(0.01, gradient_scale=0.5)
    RMSprop(other, halved, form, alpha=0.9, epsilon=1e-5).step(0.01)
    np.testing.assert_allclose(gradient, halved, rtol=1e-6)
    np.testing.assert_allclose(z, other, rtol=1e-6)


def test_a_learning_rate_may_change_between_steps():
    z = np.zeros(4, np.float32)
    optimizer = RMSprop(z, np.ones(4, np.float32), "rmsprop", alpha=0.5, epsilon=1e-5)
    optimizer.step(learning_rate=1.0)
    first = z.copy()
    optimizer.step(learning_rate=0.0)
    np.testing.assert_array_equal(z, first)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.0, 0.9), (0.5, 0.5)])
def test_adam_is_torchs(beta1, beta2):
    rng = np.random.default_rng(0)
    # Of several chunks, the last of them short.
    num_parameters = (1 << 17) + 1003
    z = rng.normal(size=num_parameters).astype(np.float32)
    expected = torch.nn.Parameter(torch.from_numpy(z.astype(np.float64)))
    reference = torch.optim.Adam([expected], lr=0.01, betas=(beta1, beta2), eps=1e-5)
    gradient = np.zeros(num_parameters, np.float32)
    optimizer = Adam(z, gradient, beta1, beta2, 1e-5)
    tolerance = np.zeros(num_parameters)
    for _ in range(20):
        gradient[:] = rng.normal(size=num_parameters) * 10.0 ** rng.uniform(-8, 2, num_parameters)
        expected.grad = torch.from_numpy(gradient.astype(np.float64))
        before = expected.detach().numpy().copy()
        reference.step()
        optimizer.step(learning_rate=0.01)
        # As of RMSprop; but the mean gradient has terms of both signs, and its roundings are relative to the greatest:
        # a step is at most what one gradient alone would make it.
        after = expected.detach().numpy()
        largest = 0.01 * (1 - beta1) / np.sqrt(1 - beta2) + np.abs(after - before)
        tolerance += EPS * np.maximum(np.abs(before), np.abs(after)) + 20 * EPS * largest
    assert (np.abs(z - after) <= tolerance).all()
    state = reference.state[expected]
    np.testing.assert_allclose(optimizer.square_avg, state["exp_avg_sq"], rtol=35 * EPS)
    assert optimizer.num_steps == 20


def test_adam_goes_on_from_its_state():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(4, 9)).astype(np.float32)
    (z, other), gradient = np.zeros((2, 9), np.float32), np.zeros(9, np.float32)
    saved, loaded = Adam(z, gradient, 0.9, 0.999, 1e-5), Adam(other, gradient, 0.9, 0.999, 1e-5)
    for k, each in enumerate(gradients):
        gradient[:] = each
        saved.step(0.01)
        if k == 1:
            loaded.load_state(saved.state())
            other[:] = z
        elif k > 1:
            loaded.step(0.01)
    np.testing.assert_array_equal(other, z)
