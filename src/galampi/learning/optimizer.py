"""RMSprop over one flat vector, in its two common forms."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

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
        self, num_parameters: int, form: Literal["rmsprop", "rmsprop-tf"], alpha: float, epsilon: float
    ) -> None:
        self._epsilon_inside_root = form == "rmsprop-tf"
        self._alpha, self._epsilon = alpha, epsilon
        self.square_avg = np.full(num_parameters, 1.0 if self._epsilon_inside_root else 0.0, np.float32)
        self._scratch = torch.zeros(min(num_parameters, _CHUNK))

    def step_norm(self, gradient: np.ndarray, learning_rate: float) -> float:
        """Return the Euclidean norm of the change that `step`, called last with the same arguments, made to z."""
        total = 0.0
        scratch = self._scratch.numpy()
        for start in range(0, gradient.size, _CHUNK):
            part = slice(start, min(start + _CHUNK, gradient.size))
            quotient = scratch[: part.stop - start]
            if self._epsilon_inside_root:
                np.sqrt(self.square_avg[part] + np.float32(self._epsilon), out=quotient)
            else:
                np.sqrt(self.square_avg[part], out=quotient)
                quotient += np.float32(self._epsilon)
            np.divide(gradient[part], quotient, out=quotient)
            total += float(quotient @ quotient)
        return learning_rate * math.sqrt(total)

    def step(self, z: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Change z by one step against the gradient; both are [P] float32."""
        vectors = (torch.split(torch.from_numpy(vector), _CHUNK) for vector in (z, gradient, self.square_avg))
        parameters, gradients, square_avgs = vectors
        scratches = [self._scratch[: len(part)] for part in parameters]
        if self._epsilon_inside_root:
            for part, g, square_avg, scratch in zip(parameters, gradients, square_avgs, scratches, strict=True):
                square_avg.mul_(self._alpha).addcmul_(g, g, value=1 - self._alpha)
                torch.add(square_avg, self._epsilon, out=scratch).sqrt_()
                part.addcdiv_(g, scratch, value=-learning_rate)
            return
        # Adam without momentum, at a step count that leaves no bias to correct, is RMSprop; and torch has
        # Adam, alone among its optimizers of this kind, as one pass over memory: 0.9 ms where the five passes
        # of the formula take 4. What it would keep as momentum goes to the scratch, chunk after chunk.
        torch._fused_adam_(
            parameters,
            gradients,
            scratches,
            square_avgs,
            [],
            [torch.tensor(math.inf)] * len(parameters),
            lr=learning_rate,
            beta1=0.0,
            beta2=self._alpha,
            weight_decay=0.0,
            eps=self._epsilon,
            amsgrad=False,
            maximize=False,
        )
