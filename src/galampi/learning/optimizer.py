"""RMSprop over one flat vector, in its two common forms."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from galampi.learning import kernels

# 256 KiB of float32: stays within a core's second-level cache.
_CHUNK = 1 << 16


class RMSprop:
    """RMSprop without momentum (Tieleman & Hinton 2012, lecture 6.5).

        s <- alpha s + (1 - alpha) g^2
        rmsprop:     z <- z - learning_rate g / (sqrt(s) + epsilon)     s starts at 0, as torch.optim.RMSprop
        rmsprop-tf:  z <- z - learning_rate g / sqrt(s + epsilon)       s starts at 1, as
        tf.train.RMSPropOptimizer

    Attributes:
        square_avg: [P] float32, the mean square s.
    """

    def __init__(
        self,
        z: np.ndarray,
        gradient: np.ndarray,
        form: Literal["rmsprop", "rmsprop-tf"],
        alpha: float,
        epsilon: float,
    ) -> None:
        """Keep hold of the parameters and of their gradient, both [P] float32, as torch's optimizers do."""
        self._epsilon_inside_root = form == "rmsprop-tf"
        self._alpha, self._epsilon = alpha, epsilon
        self.square_avg = np.full(z.size, 1.0 if self._epsilon_inside_root else 0.0, np.float32)
        self._parameters, self._gradients, self._square_avgs = (
            torch.split(torch.from_numpy(vector), _CHUNK) for vector in (z, gradient, self.square_avg)
        )
        scratch = torch.zeros(min(z.size, _CHUNK))
        self._scratches = [scratch[: len(part)] for part in self._parameters]

    def step_norm(self, learning_rate: float) -> float:
        """Return the Euclidean norm of the change that `step`, called last with this rate, made to the parameters."""
        total = 0.0
        for g, square_avg, quotient in zip(self._gradients, self._square_avgs, self._scratches, strict=True):
            torch.div(g, self._root(square_avg, quotient), out=quotient)
            total += float(quotient @ quotient)
        return learning_rate * math.sqrt(total)

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Scale the gradient, in place, and change the parameters by one step against it."""
        if not self._epsilon_inside_root and kernels.rmsprop_in_one_pass(
            self._parameters,
            self._gradients,
            self._square_avgs,
            self._scratches,
            learning_rate=learning_rate,
            alpha=self._alpha,
            epsilon=self._epsilon,
            gradient_scale=gradient_scale,
        ):
            return
        chunks = zip(self._parameters, self._gradients, self._square_avgs, self._scratches, strict=True)
        for z, g, square_avg, scratch in chunks:
            g.mul_(gradient_scale)
            square_avg.mul_(self._alpha).addcmul_(g, g, value=1 - self._alpha)
            z.addcdiv_(g, self._root(square_avg, scratch), value=-learning_rate)

    def _root(self, square_avg: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write what the gradient is divided by."""
        if self._epsilon_inside_root:
            return torch.add(square_avg, self._epsilon, out=out).sqrt_()
        return torch.sqrt(square_avg, out=out).add_(self._epsilon)
