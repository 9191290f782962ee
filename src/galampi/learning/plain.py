"""The network of a policy as torch's own modules, for use without this package.

Knows the layout of the flat vector and torch's; nothing of files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from galampi.learning.actions import GaussianActions
from galampi.learning.architectures import describe, sequential
from galampi.learning.layers import Convolution
from galampi.learning.policy import Policy
from galampi.learning.recurrence import advance
from galampi.learning.trunk import ModuleTrunk, WrittenTrunk


class PlainNetwork(nn.Module):
    """Policy and value in torch's layouts: images `[N, channels, height, width]`, weights `[out, in, height, width]`.

    Attributes:
        trunk: What policy and value share.
        recurrent: What remembers its features; None for a policy without a memory.
        policy: Logits of the actions, or means of the Gaussian.
        value: The value head.
        log_std: [k] log standard deviations of continuous actions; None for discrete ones.
    """

    def __init__(self, policy: Policy) -> None:
        """Copy a policy's network, in float32 on the processor."""
        super().__init__()
        policy_weight, policy_bias, value_weight, value_bias, free = _head(policy)
        self.trunk = _trunk(policy)
        recurrence = policy.recurrence
        self.recurrent = copy.deepcopy(recurrence.cell) if recurrence is not None else None
        if self.recurrent is not None:
            # The working copy may hold a factor on the observations.
            _fill(self.recurrent.parameters(), policy.parameters.blocks()[-9:-5])
        self.policy = nn.Linear(policy_weight.shape[1], policy_weight.shape[0])
        self.value = nn.Linear(value_weight.shape[1], 1)
        heads = [policy_weight, policy_bias, value_weight, value_bias]
        _fill([*self.policy.parameters(), *self.value.parameters()], heads)
        self.log_std = nn.Parameter(free) if isinstance(policy.actions, GaussianActions) else None

    def forward(self, observations: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return outputs of the policy head [N, outputs] and values [N, 1] for observations as `trunk` takes them.

        With a memory, of hidden states [N, S] before the observations, also those after them.
        """
        features = self.trunk(observations)
        if self.recurrent is None or state is None:
            return self.policy(features), self.value(features)
        state = advance(self.recurrent, features, state)
        features = state[:, : self.recurrent.hidden_size]
        return self.policy(features), self.value(features), state


def _trunk(policy: Policy) -> nn.Module:
    trunk = policy.trunk
    if isinstance(trunk, ModuleTrunk):
        return copy.deepcopy(trunk.module)
    assert isinstance(trunk, WrittenTrunk)
    plain = sequential(describe(trunk.layers))
    values = policy.parameters.blocks()[: len(trunk.blocks)]
    for k, layer in enumerate(trunk.layers):
        weight = values[2 * k].view(layer.weight_shape)
        if isinstance(layer, Convolution):
            weight = weight.permute(0, 3, 1, 2)
        elif k and isinstance(before := trunk.layers[k - 1], Convolution):
            # The features are flattened with the channels last here, and first in torch.
            weight = weight.view(-1, *before.output_shape).permute(0, 3, 1, 2).flatten(1)
        values[2 * k] = weight
    _fill(plain.parameters(), values)
    return plain


def _head(policy: Policy) -> list[torch.Tensor]:
    return policy.parameters.blocks()[-5:]


@torch.no_grad()
def _fill(parameters: Iterable[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
