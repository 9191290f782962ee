"""RMSprop over one flat vector, in its two common forms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

CHUNK = 1 << 15
"""Elements worked on at a time: the four float32 arrays of a chunk stay in the processor's second-level cache."""


class RMSprop:
    """RMSprop without momentum (Tieleman & Hinton 2012, lecture 6.5).

        s <- alpha s + (1 - alpha) g^2
        rmsprop:     z <- z - learning_rate g / (sqrt(s) + epsilon)     s starts at 0, as torch.optim.RMSprop
        rmsprop-tf:  z <- z - learning_rate g / sqrt(s + epsilon)       s starts at 1, as tf.train.RMSPropOptimizer

    Attributes:
        square_avg: [P] float32, the mean square s.
    """

    def __init__(
        self, num_parameters: int, form: Literal["rmsprop", "rmsprop-tf"], alpha: float, epsilon: float
    ) -> None:
        self._inside_root = form == "rmsprop-tf"
        self._alpha, self._epsilon = alpha, epsilon
        initial = 1.0 if self._inside_root else 0.0
        self.square_avg = np.full(num_parameters, initial, np.float32)
        self._scratch = torch.empty(min(CHUNK, num_parameters))

    def step(self, z: np.ndarray, gradient: np.ndarray, learning_rate: float, scale: float) -> None:
        """Change z by one step along `scale * gradient`; all vectors are [P] float32."""
        chunks = (torch.from_numpy(vector).split(CHUNK) for vector in (z, gradient, self.square_avg))
        for part, g, square_avg in zip(*chunks, strict=True):
            square_avg.mul_(self._alpha).addcmul_(g, g, value=(1 - self._alpha) * scale**2)
            root = self._scratch[: len(part)]
            if self._inside_root:
                torch.add(square_avg, self._epsilon, out=root).sqrt_()
            else:
                torch.sqrt(square_avg, out=root).add_(self._epsilon)
            part.addcdiv_(g, root, value=-learning_rate * scale)
