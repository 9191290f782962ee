"""Returns and advantages against arrays worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from galampi.learning.returns import gae, n_step_returns


def column(*numbers, dtype=np.float32):
    return np.array(numbers, dtype)[:, None]


NEVER = column(False, False, False, dtype=bool)
REWARDS = column(1, 2, 4)
VALUES = column(10, 20, 40, 80)


def at(step):
    ends = NEVER.copy()
    ends[step] = True
    return ends


def test_returns_bootstrap_at_the_rollouts_end():
    # 4 + 80/2 = 44;  2 + 44/2 = 24;  1 + 24/2 = 13
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, NEVER, NEVER, 0.5), column(13, 24, 44))


def test_termination_ends_the_return():
    # 2 + 0 = 2;  1 + 2/2 = 2
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, at(1), NEVER, 0.5), column(2, 2, 44))


def test_truncation_continues_with_the_value_where_it_was_cut():
    # 2 + 40/2 = 22, not 2 + 44/2;  1 + 22/2 = 12
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, NEVER, at(1), 0.5), column(12, 22, 44))


def test_termination_outranks_truncation():
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, at(1), at(1), 0.5), column(2, 2, 44))


def test_ends_in_the_last_row():
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, at(2), NEVER, 0.5)[-1], [4])
    np.testing.assert_array_equal(n_step_returns(REWARDS, VALUES, NEVER, at(2), 0.5)[-1], [44])


def test_gae_by_hand():
    # deltas: 1 + 10 - 10 = 1;  2 + 20 - 20 = 2;  4 + 40 - 40 = 4;  decay 1/4
    np.testing.assert_array_equal(gae(REWARDS, VALUES, NEVER, NEVER, 0.5, 0.5), column(1.75, 3, 4))


def test_gae_with_termination_and_truncation():
    # terminated: delta_1 = 2 - 20 = -18;  1 - 18/4 = -3.5
    np.testing.assert_array_equal(gae(REWARDS, VALUES, at(1), NEVER, 0.5, 0.5), column(-3.5, -18, 4))
    # truncated: delta_1 = 2 as without the cut, but nothing of delta_2
    np.testing.assert_array_equal(gae(REWARDS, VALUES, NEVER, at(1), 0.5, 0.5), column(1.5, 2, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@given(ends=hnp.arrays(np.int8, (6, 3), elements=st.integers(0, 3)), seed=st.integers(0, 99))
def test_gae_with_lambda_1_is_the_n_step_advantage(gamma, ends, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    terminated, truncated = (ends & 1).astype(bool), (ends & 2).astype(bool)
    advantages = gae(rewards, values, terminated, truncated, gamma, 1.0)
    returns = n_step_returns(rewards, values, terminated, truncated, gamma)
    # Sums of up to seven terms, each rounded a few times to units of the greatest they may reach.
    most = np.abs(rewards).sum(axis=0).max() + 2 * np.abs(values).max()
    np.testing.assert_allclose(advantages + values[:-1], returns, rtol=0, atol=20 * np.spacing(most))


def test_simulators_do_not_mix():
    both = [np.concatenate(pair, axis=1) for pair in ((REWARDS, -REWARDS), (VALUES, VALUES), (at(1), NEVER))]
    returns = n_step_returns(both[0], both[1], both[2], np.zeros_like(both[2]), 0.5)
    np.testing.assert_array_equal(returns[:, :1], n_step_returns(REWARDS, VALUES, at(1), NEVER, 0.5))
    np.testing.assert_array_equal(returns[:, 1:], n_step_returns(-REWARDS, VALUES, NEVER, NEVER, 0.5))
