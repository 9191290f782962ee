"""Running means and variances, of observations and of returns, as a part of the vector that ranks average.

Owns the equations, and how the moments lie in the vector. Knows neither simulators nor networks, nor what is averaged.
"""

from __future__ import annotations

import numpy as np

MOST_UPDATES = 10_000
"""Updates over which the moments run."""
CLIP = 10.0
"""Normalised numbers lie between plus and minus this, as in VecNormalize."""
_EPSILON = 1e-8
_GREATEST = 1e18
"""Beyond it a square is infinite in float32."""


class Moments:
    """Running mean and variance of some columns.

    As in VecNormalize of Stable-Baselines3 and of OpenAI's baselines, observations become

        x' = clip((x - mean) / sqrt(variance + 1e-8), -10, 10)

    and rewards r / sqrt(variance + 1e-8), clipped alike, with the variance of the running return R <- gamma R + r. The
    moments are kept so that they may be averaged between ranks: with b_1 and b_2, the means of x - c and (x - c)^2 over
    the rows of a rollout, and an offset c that is the same on all ranks,

        m_i <- m_i + (b_i - m_i) share,    mean = c + m_1,    variance = m_2 - m_1^2

    A first and a second moment are linear, unlike a variance: the average of two ranks' moments are the moments of both
    ranks' rows together. That is the shifted-data form of Chan, Golub & LeVeque (1983); c, about where the rows lie,
    keeps the difference from cancelling. m_i - b_i is the gradient of |m_i - b_i|^2 / 2, so it lies with the gradient
    that allreduce averages.

    Attributes:
        mean: [k] float32, as of the last `refresh`.
        std: [k] float32; 1 for columns that have not varied.
    """

    def __init__(self, num_columns: int, part: np.ndarray, gradient: np.ndarray) -> None:
        """Keep the moments in a part of the vector, and their gradient in that of the gradient, both [3 k] float32."""
        parts = part.reshape(3, num_columns)
        self._offset, self._moments = parts[0], parts[1:]
        self._gradient = gradient.reshape(3, num_columns)[1:]
        self._sums = np.zeros((2, num_columns))
        self._num_rows = 0
        self.refresh()

    def center(self, rows: np.ndarray) -> None:
        """Take the mean of some rows [N, k] as the offset; once, before any is counted."""
        self._offset[:] = np.clip(rows.mean(axis=0, dtype=np.float64), -_GREATEST, _GREATEST)
        self.refresh()

    def count(self, rows: np.ndarray) -> None:
        """Count rows [N, k]."""
        shifted = np.clip(rows.astype(np.float64) - self._offset, -_GREATEST, _GREATEST)
        self._sums += shifted.sum(axis=0), np.square(shifted).sum(axis=0)
        self._num_rows += len(rows)

    def write_gradient(self) -> None:
        """Write m_i - b_i over the rows counted since the last call."""
        if self._num_rows:
            self._gradient[:] = self._moments - self._sums / self._num_rows
        self._sums[:], self._num_rows = 0, 0

    def step(self, share: float) -> None:
        """Move the moments by a share of the gradient."""
        self._moments -= np.float32(share) * self._gradient

    def refresh(self) -> None:
        """Compute mean and standard deviation of what the vector holds."""
        first, second = self._moments.astype(np.float64)
        self.mean = (self._offset + first).astype(np.float32)
        variance = np.maximum(second - first**2, 0) + _EPSILON
        self.std = np.where(second > 0, np.sqrt(variance), 1).astype(np.float32)

    def normalized(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [N, k] as the network sees them, float32."""
        return _clipped((rows - self.mean) / self.std)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values [N] over the standard deviation of the one column; their sign stays."""
        return _clipped(values / self.std[0])


def _clipped(values: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(values, -CLIP, CLIP).astype(np.float32)
    return clipped


class Normalization:
    """What a learner normalises, as the last part of its vector: a count of updates, then the moments.

    The t-th update moves the moments by a share of 1 / t, so that they are the means of all rows so far, until t is
    `MOST_UPDATES` and stays so. t is averaged between ranks as all the rest.

    Attributes:
        observations: Moments of the numbers in an observation; None if they are left as they are.
        returns: Moments of the running return; None if rewards are left as they are.
        columns: [length] bool, which of an observation's numbers are normalised.
    """

    @staticmethod
    def size(columns: np.ndarray | None, *, returns: bool) -> int:
        """Return the length of this part of the vector; 0 if nothing is normalised."""
        num_columns = 0 if columns is None else int(columns.sum())
        num_moments = 3 * (num_columns + returns)
        return num_moments + (num_moments > 0)

    def __init__(self, columns: np.ndarray | None, part: np.ndarray, gradient: np.ndarray, *, returns: bool) -> None:
        """Lay the moments into a part of the vector, and their gradient into one of the gradient, [size] each."""
        self.columns = columns
        self._count, moments = part[:1], part[1:]
        self._gradient = gradient
        split = len(moments) - 3 * returns
        self.observations = self.returns = None
        if columns is not None:
            self.observations = Moments(split // 3, moments[:split], gradient[1:][:split])
        if returns:
            self.returns = Moments(1, moments[split:], gradient[1:][split:])
        self._all = [moments for moments in (self.observations, self.returns) if moments is not None]

    @property
    def has_begun(self) -> bool:
        """Whether it has begun, here or where the vector comes from."""
        return bool(self._count.any())

    def begin(self, observations: np.ndarray) -> None:
        """Choose the offsets by the first observations [N, length]."""
        self._count[:] = 1
        if self.observations is not None:
            self.observations.center(observations[:, self.columns])

    def count(self, observations: np.ndarray) -> None:
        """Count observations [N, length]."""
        if self.observations is not None:
            self.observations.count(observations[:, self.columns])

    def normalized(self, observations: np.ndarray) -> np.ndarray:
        """Return observations [N, length] as the network sees them, float32."""
        if self.observations is None:
            return observations
        seen = observations.astype(np.float32)
        seen[:, self.columns] = self.observations.normalized(observations[:, self.columns])
        return seen

    def write_gradient(self) -> None:
        """Write the gradient of what was counted since the last call."""
        for moments in self._all:
            moments.write_gradient()

    def step(self, scale: float) -> None:
        """Move the moments against their gradient, which allreduce may have averaged.

        Args:
            scale: Factor on the steps of this update; see `galampi.gossip.mixing.StepScale`.
        """
        # Without a row on any rank there is nothing to count.
        if self._all and self._gradient.any():
            for moments in self._all:
                moments.step(min(1.0, scale / float(self._count[0])))
            self._count[:] = np.minimum(self._count + 1, MOST_UPDATES)

    def refresh(self) -> None:
        """Normalise by what the vector holds now."""
        for moments in self._all:
            moments.refresh()
