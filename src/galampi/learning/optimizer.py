"""Optimizers over one flat vector: RMSprop in its two common forms, and Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from galampi.job.settings import Learner
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

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of what goes on from step to step."""
        return {"square_avg": self.square_avg.copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.square_avg[:] = state["square_avg"]

    def step_norm(self, learning_rate: float) -> float:
        """Return the Euclidean norm of the change that `step`, called last with this rate, made to the parameters."""
        total = 0.0
        for g, square_avg, quotient in zip(self._gradients, self._square_avgs, self._scratches, strict=True):
            torch.div(g, self._root(square_avg, quotient), out=quotient)
            total += float(quotient @ quotient)
        return learning_rate * math.sqrt(total)

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Scale the gradient, in place, and change the parameters by one step against it."""
        if not self._epsilon_inside_root and kernels.adam_in_one_pass(
            self._parameters,
            self._gradients,
            self._scratches,
            self._square_avgs,
            learning_rate=learning_rate,
            beta1=0.0,
            beta2=self._alpha,
            epsilon=self._epsilon,
            num_steps=math.inf,
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


class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1), as torch.optim.Adam.

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2,    both from 0; t counts the steps from 1
        z <- z - learning_rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Attributes:
        average: [P] float32, the mean gradient m.
        square_avg: [P] float32, the mean square v.
        num_steps: [1] float32, the count t; an array, and not whole, where ranks' states are averaged.
    """

    def __init__(self, z: np.ndarray, gradient: np.ndarray, beta1: float, beta2: float, epsilon: float) -> None:
        """Keep hold of the parameters and of their gradient, both [P] float32, as torch's optimizers do."""
        self._beta1, self._beta2, self._epsilon = beta1, beta2, epsilon
        self.average, self.square_avg = np.zeros((2, z.size), np.float32)
        self.num_steps = np.zeros(1, np.float32)
        self._parameters, self._gradients, self._averages, self._square_avgs = (
            torch.split(torch.from_numpy(vector), _CHUNK) for vector in (z, gradient, self.average, self.square_avg)
        )
        scratch = torch.zeros(min(z.size, _CHUNK))
        self._scratches = [scratch[: len(part)] for part in self._parameters]

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of what goes on from step to step."""
        vectors = {"average": self.average, "square_avg": self.square_avg, "num_steps": self.num_steps}
        return {name: vector.copy() for name, vector in vectors.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.average[:] = state["average"]
        self.square_avg[:] = state["square_avg"]
        self.num_steps[:] = state["num_steps"]

    def step_norm(self, learning_rate: float) -> float:
        """Return the Euclidean norm of the change that `step`, called last with this rate, made to the parameters."""
        total = 0.0
        for average, square_avg, quotient in zip(self._averages, self._square_avgs, self._scratches, strict=True):
            torch.div(average, self._root(square_avg, quotient), out=quotient)
            total += float(quotient @ quotient)
        return learning_rate * math.sqrt(total) / self._lacking(self._beta1)

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Scale the gradient, in place, and change the parameters by one step against their mean gradient."""
        self.num_steps += 1
        if kernels.adam_in_one_pass(
            self._parameters,
            self._gradients,
            self._averages,
            self._square_avgs,
            learning_rate=learning_rate,
            beta1=self._beta1,
            beta2=self._beta2,
            epsilon=self._epsilon,
            num_steps=float(self.num_steps[0]),
            gradient_scale=gradient_scale,
        ):
            return
        parts = zip(self._parameters, self._gradients, self._averages, self._square_avgs, self._scratches, strict=True)
        for z, g, average, square_avg, scratch in parts:
            g.mul_(gradient_scale)
            average.lerp_(g, 1 - self._beta1)
            square_avg.mul_(self._beta2).addcmul_(g, g, value=1 - self._beta2)
            rate = learning_rate / self._lacking(self._beta1)
            z.addcdiv_(average, self._root(square_avg, scratch), value=-rate)

    def _lacking(self, beta: float) -> float:
        """Return 1 - beta^t, by which a mean that began at 0 is too small."""
        return float(1 - beta ** float(self.num_steps[0]))

    def _root(self, square_avg: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write what the mean gradient is divided by."""
        torch.sqrt(square_avg, out=out)
        return out.div_(math.sqrt(self._lacking(self._beta2))).add_(self._epsilon)


Optimizer = RMSprop | Adam


def make_optimizer(settings: Learner, z: np.ndarray, gradient: np.ndarray) -> Optimizer:
    """Make the optimizer that a job asks for, of parameters and their gradient, both [P] float32."""
    if settings.optimizer == "adam":
        return Adam(z, gradient, settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon)
    return RMSprop(z, gradient, settings.optimizer, settings.rmsprop_alpha, settings.rmsprop_epsilon)
