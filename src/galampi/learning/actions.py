"""How outputs of the policy head become actions: the distributions, their densities and entropies.

Knows no networks, and nothing of what a simulator makes of an action.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from galampi.environments.actuation import unsupported_actions

Tensor = torch.Tensor


def masked(outputs: Tensor, mask: Tensor) -> Tensor:
    """Return outputs [N, n] under which what a mask [N, n] bool forbids has no probability and no gradient.

    Where it forbids all, all are as probable.
    """
    # Not -inf, whose product with a probability of 0 is no number.
    return outputs.masked_fill(~mask, torch.finfo(outputs.dtype).min)


class DiscreteActions:
    """One of `n` actions, with probabilities softmax(outputs)."""

    def __init__(self, space: gym.spaces.Discrete) -> None:
        self.num_outputs = int(space.n)
        self.num_free_parameters = 0
        self._start = int(space.start)

    def sample(self, outputs: Tensor, free: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions [N] int64 for outputs [N, n] as argmax_a (outputs_a - log E_a), E_a ~ Exp(1)."""
        noise = torch.empty_like(outputs).exponential_(generator=generator).log_()
        return (outputs - noise).argmax(-1).add_(self._start)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable actions [N] int64."""
        return outputs.argmax(-1).add_(self._start)

    def log_prob_and_entropy(self, outputs: Tensor, free: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pi(a) [N] and -sum_a pi(a) log pi(a) [N] for outputs [N, n] and actions [N]."""
        log_probs = outputs.log_softmax(-1)
        log_prob = log_probs.gather(-1, (actions - self._start).unsqueeze(-1)).squeeze(-1)
        return log_prob, -(log_probs.exp() * log_probs).sum(-1)


class MultiDiscreteActions:
    """Several numbers, each one of its `n_i`, independent given the outputs: softmax of each one's part of them.

    Bits are numbers of two.
    """

    def __init__(self, space: gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) -> None:
        if isinstance(space, gym.spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec.ravel()]
        else:
            self.sizes = [2] * int(np.prod(space.shape))
        self.num_outputs = sum(self.sizes)
        self.num_free_parameters = 0

    def sample(self, outputs: Tensor, free: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions [N, k] int64, each from 0, for outputs [N, sum of n_i]."""
        noise = torch.empty_like(outputs).exponential_(generator=generator).log_()
        return self.mode(outputs - noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable actions [N, k] int64."""
        return torch.stack([part.argmax(-1) for part in torch.split(outputs, self.sizes, -1)], -1)

    def log_prob_and_entropy(self, outputs: Tensor, free: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the k numbers of log pi_i(a_i) and of the entropies, both [N]."""
        log_prob = entropy = torch.zeros((), device=outputs.device)
        for part, action in zip(torch.split(outputs, self.sizes, -1), actions.unbind(-1), strict=True):
            log_probs = part.log_softmax(-1)
            log_prob = log_prob + log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            entropy = entropy - (log_probs.exp() * log_probs).sum(-1)
        return log_prob, entropy


class GaussianActions:
    """Vectors of independent normal numbers: mean from the network, log standard deviation a free parameter.

    Neither clipped nor scaled here: between two bounds of the space lies [-1, 1], see `spaces.Actuation`.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        self.num_outputs = self.num_free_parameters = int(np.prod(space.shape))

    def sample(self, outputs: Tensor, free: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions [N, k] float32 for means [N, k] and log standard deviations [k]."""
        return outputs + free.exp() * torch.randn(outputs.shape, generator=generator)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable actions [N, k] float32."""
        return outputs

    def log_prob_and_entropy(self, outputs: Tensor, free: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density [N] and the differential entropy [N] for means [N, k] and actions [N, k]."""
        log_two_pi = math.log(2 * math.pi)
        standard = (actions - outputs) * (-free).exp()
        log_prob = (-0.5 * (standard.square() + log_two_pi) - free).sum(-1)
        return log_prob, (0.5 * (1 + log_two_pi) + free).sum().expand(len(outputs))


Actions = DiscreteActions | MultiDiscreteActions | GaussianActions


def actions_of(space: gym.Space[Any]) -> Actions:
    """Return the distribution of actions in a space.

    Raises:
        UserError: There is none.
    """
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteActions(space)
    if isinstance(space, (gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)):
        return MultiDiscreteActions(space)
    if isinstance(space, gym.spaces.Box) and space.low.size:
        return GaussianActions(space)
    raise unsupported_actions(space)
