"""The norm of a step, told without a copy of the parameters."""

import numpy as np
import pytest

from galampi.job.settings import Learner
from galampi.learning.optimizer import make_optimizer


@pytest.mark.parametrize("form", ["rmsprop", "rmsprop-tf", "adam"])
@pytest.mark.parametrize("num_parameters", [1, 70_000])
def test_norm_of_a_step_is_that_of_the_change(form, num_parameters):
    rng = np.random.default_rng(3)
    # Small, so that rounding of z does not cover the change.
    z, gradient = np.zeros((2, num_parameters), np.float32)
    optimizer = make_optimizer(Learner(optimizer=form, rmsprop_alpha=0.9), z, gradient)
    for _ in range(3):
        gradient[:] = rng.normal(size=num_parameters)
        before = z.copy()
        optimizer.step(0.01, gradient_scale=0.5)
        change = np.linalg.norm((z - before).astype(np.float64))
        assert optimizer.step_norm(0.01) == pytest.approx(change, rel=1e-4)
        # It changes nothing that the next step reads.
        after = z.copy()
        optimizer.step_norm(0.01)
        np.testing.assert_array_equal(z, after)
