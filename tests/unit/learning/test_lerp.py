"""The averaging that training uses is that of the gossip wing."""

import numpy as np
import pytest

from galampi.gossip import mixing
from galampi.learning import lerp


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_it_equals_the_gossip_wings_to_rounding(share) -> None:
    rng = np.random.default_rng(3)
    other = rng.normal(size=200_003).astype(np.float32)
    z = rng.normal(size=other.size).astype(np.float32)
    plain = z.copy()
    mixing.lerp(plain, other, share)
    lerp(z, other, share)
    np.testing.assert_allclose(z, plain, rtol=0, atol=4 * np.spacing(np.abs(other).max()))


def test_a_convex_combination_of_equals_is_exact() -> None:
    z = np.random.default_rng(4).normal(size=1000).astype(np.float32)
    before = z.copy()
    for share in (0.3, 0.7):
        lerp(z, before, share)
    np.testing.assert_array_equal(z, before)
