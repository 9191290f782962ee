"""The actor-critic network: a trunk, a head for the policy and one for the value.

Owns the heads, and how trunk and heads lie in one flat vector. Knows nothing of rollouts, nor of what the trunk is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional

from galampi.job import Network
from galampi.learning.actions import actions_of
from galampi.learning.parameters import Block, FlatParameters
from galampi.learning.spaces import Encoding
from galampi.learning.trunk import make_trunk

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


class Policy:
    """Policy and value of one network over a flat parameter vector.

    Attributes:
        parameters: The vector.
        actions: How outputs of the policy head become actions.
        trunk: What comes before the heads.
    """

    def __init__(
        self,
        network: Network,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        seed: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.actions = actions_of(action_space)
        self.device = device
        self.trunk = make_trunk(network, Encoding(observation_space), seed=seed, device=device, precision=precision)
        blocks = list(self.trunk.blocks)
        # The heads stay float32: they are small, and rounding log probabilities to 8 bits would blur every
        # gradient.
        width, scale = self.trunk.num_features, self.trunk.features_scale
        num_outputs = self.actions.num_outputs
        blocks += [Block((num_outputs, width), 0.01, False, scale=scale), Block((num_outputs,), 0, False)]
        blocks += [Block((1, width), 1.0, False, scale=scale), Block((1,), 0, False)]
        blocks += [Block((self.actions.num_free_parameters,), 0, False)]
        self.parameters = FlatParameters(blocks, precision, device, seed)
        num_trunk = len(self.trunk.blocks)
        self.trunk.bind(self.parameters.working[:num_trunk])
        self._head = self.parameters.working[num_trunk:]

    @torch.no_grad()
    def forward(self, activations: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fill the trunk's activations [N, ...] after the first, the input.

        Returns:
            Outputs of the policy head [N, outputs] and values [N], both float32 on the host.
        """
        self.trunk.forward(activations)
        outputs, values = _outputs(activations[-1].float(), self._head)
        return outputs.cpu(), values.cpu()

    def backward(self, activations: Sequence[Tensor], loss: LossFunction) -> None:
        """Write the gradient of a loss of the heads' outputs into the parameters' gradient.

        Args:
            activations: [N, ...] as `forward` filled them.
            loss: Takes outputs [N, outputs], values [N] and the actions' free parameters; returns a scalar.
        """
        features = activations[-1].float().requires_grad_()
        head = [weight.detach().requires_grad_() for weight in self._head]
        gradient, *head_gradients = torch.autograd.grad(
            loss(*_outputs(features, head), head[-1]), [features, *head], materialize_grads=True
        )
        self.parameters.set_gradient([*self.trunk.backward(activations, gradient), *head_gradients])

    def sample(self, outputs: Tensor, generator: torch.Generator) -> np.ndarray:
        """Draw actions, [N] or [N, k] int64, or [N, k] float32, for outputs [N, outputs] on the host."""
        return self.actions.sample(outputs, self._head[-1].cpu(), generator).numpy()


def _outputs(features: Tensor, head: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    policy_weight, policy_bias, value_weight, value_bias, _ = head
    features = features.flatten(1)
    outputs = functional.linear(features, policy_weight, policy_bias)
    return outputs, functional.linear(features, value_weight, value_bias).squeeze(-1)
