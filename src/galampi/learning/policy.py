"""The actor-critic network: a trunk, a memory where it has one, a head for the policy and one for the value.

Owns the heads, and how all of it lies in one flat vector. Knows nothing of rollouts, nor of what the trunk is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional

from galampi.environments.spaces import Encoding
from galampi.job import Network
from galampi.learning.actions import actions_of
from galampi.learning.parameters import Block, FlatParameters
from galampi.learning.recurrence import Memory, Recurrence
from galampi.learning.trunk import make_trunk

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


_NUM_HEAD = 5
"""Blocks after those of trunk and memory."""


class Policy:
    """Policy and value of one network over a flat parameter vector.

    Attributes:
        parameters: The vector.
        actions: How outputs of the policy head become actions.
        trunk: What sees the observations.
        recurrence: What remembers its features, between trunk and heads; None for a policy without a memory.
    """

    def __init__(
        self,
        network: Network,
        encoding: Encoding,
        action_space: gym.Space[Any],
        *,
        seed: int,
        device: torch.device,
        precision: torch.dtype,
        num_more: int = 0,
    ) -> None:
        """Make the network, and a vector with as many numbers more as are asked for; see `FlatParameters`.

        Raises:
            UserError: It does not fit the observations or the actions.
        """
        self.actions = actions_of(action_space)
        self.device = device
        self.trunk = make_trunk(network, encoding, seed=seed, device=device, precision=precision)
        blocks = list(self.trunk.blocks)
        width, scale = self.trunk.num_features, self.trunk.features_scale
        self.recurrence: Recurrence | None = None
        if network.recurrent != "none":
            self.recurrence = Recurrence(network.recurrent, width, network.recurrent_size, device, scale=scale)
            blocks += self.recurrence.blocks
            width, scale = self.recurrence.size, 1.0
        # The heads stay float32: they are small, and rounding log probabilities to 8 bits would blur every
        # gradient.
        num_outputs = self.actions.num_outputs
        blocks += [Block((num_outputs, width), 0.01, False, scale=scale), Block((num_outputs,), 0, False)]
        blocks += [Block((1, width), 1.0, False, scale=scale), Block((1,), 0, False)]
        blocks += [Block((self.actions.num_free_parameters,), 0, False)]
        self.parameters = FlatParameters(blocks, precision, device, seed, num_more)
        working = self.parameters.working
        num_trunk = len(self.trunk.blocks)
        self.trunk.bind(working[:num_trunk])
        if self.recurrence is not None:
            self.recurrence.bind(working[num_trunk:-_NUM_HEAD])
        self._head = working[-_NUM_HEAD:]

    @torch.no_grad()
    def forward(self, activations: Sequence[Tensor], memory: Memory | None = None) -> tuple[Tensor, Tensor]:
        """Fill the trunk's activations [N, ...] after the first, the input.

        Args:
            activations: Of N observations; with a memory of T steps of B simulators, one step after the other.
            memory: Of a policy that has one; its state is left as it is after the last step.

        Returns:
            Outputs of the policy head [N, outputs] and values [N], both float32 on the host.
        """
        self.trunk.forward(activations)
        features, state = self._remember(activations[-1].float(), memory)
        if memory is not None and state is not None:
            memory.state = state
        outputs, values = _outputs(features, self._head)
        return outputs.cpu(), values.cpu()

    def backward(self, activations: Sequence[Tensor], loss: LossFunction, memory: Memory | None = None) -> None:
        """Write the gradient of a loss of the heads' outputs into the parameters' gradient.

        Args:
            activations: [N, ...] as `forward` filled them.
            loss: Takes outputs [N, outputs], values [N] and the actions' free parameters; returns a scalar.
            memory: As `forward` was given it; the gradient goes back through its steps, and ends at its state.
        """
        features = activations[-1].float().requires_grad_()
        head = [weight.detach().requires_grad_() for weight in self._head]
        remembering = list(self.recurrence.cell.parameters()) if self.recurrence is not None else []
        outputs, values = _outputs(self._remember(features, memory)[0], head)
        gradient, *others = torch.autograd.grad(
            loss(outputs, values, head[-1]), [features, *remembering, *head], materialize_grads=True
        )
        self.parameters.set_gradient([*self.trunk.backward(activations, gradient), *others])

    def sample(self, outputs: Tensor, generator: torch.Generator) -> np.ndarray:
        """Draw actions, [N] or [N, k] int64, or [N, k] float32, for outputs [N, outputs] on the host."""
        return self.actions.sample(outputs, self._head[-1].cpu(), generator).numpy()

    def _remember(self, features: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor | None]:
        """Return what the heads see [N, ...] for features [N, ...], and the state after them."""
        if self.recurrence is None:
            return features, None
        assert memory is not None
        return self.recurrence.unroll(features.flatten(1), memory)


def _outputs(features: Tensor, head: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    policy_weight, policy_bias, value_weight, value_bias, _ = head
    features = features.flatten(1)
    outputs = functional.linear(features, policy_weight, policy_bias)
    return outputs, functional.linear(features, value_weight, value_bias).squeeze(-1)
