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
from galampi.learning.moments import CLIP, Normalization
from galampi.learning.policy import Policy
from galampi.learning.recurrence import advance
from galampi.learning.trunk import ModuleTrunk, WrittenTrunk


class PlainNetwork(nn.Module):
    """Policy and value in torch's layouts: images `[N, channels, height, width]`, weights `[out, in, height, width]`.

    Attributes:
        trunk: What policy and value share.
        observation_mean: [length] what is taken from observations before the trunk; None if they are left as they are.
        observation_std: [length] what they are divided by then.
        recurrent: What remembers its features; None for a policy without a memory.
        policy: Logits of the actions, or means of the Gaussian.
        value: The value head.
        log_std: [k] log standard deviations of continuous actions; None for discrete ones.
    """

    def __init__(self, policy: Policy, normalization: Normalization | None = None) -> None:
        """Copy a policy's network, in float32 on the processor, and what is made of observations before it."""
        super().__init__()
        self.observation_mean: torch.Tensor | None
        self.observation_std: torch.Tensor | None
        for name, values in _normalized_by(normalization).items():
            self.register_buffer(name, values)
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
        if self.observation_mean is not None and self.observation_std is not None:
            observations = ((observations - self.observation_mean) / self.observation_std).clamp(-CLIP, CLIP)
        features = self.trunk(observations)
        if self.recurrent is None or state is None:
            return self.policy(features), self.value(features)
        state = advance(self.recurrent, features, state)
        features = state[:, : self.recurrent.hidden_size]
        return self.policy(features), self.value(features), state


def _normalized_by(normalization: Normalization | None) -> dict[str, torch.Tensor | None]:
    """Return mean and standard deviation of every number of an observation; 0 and 1 for those that are left."""
    if normalization is None or normalization.observations is None or normalization.columns is None:
        return {"observation_mean": None, "observation_std": None}
    mean = torch.zeros(len(normalization.columns))
    std = torch.ones(len(normalization.columns))
    columns = torch.from_numpy(normalization.columns)
    mean[columns] = torch.from_numpy(normalization.observations.mean)
    std[columns] = torch.from_numpy(normalization.observations.std)
    return {"observation_mean": mean, "observation_std": std}


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
        elif not k and (order := trunk.input_order) is not None:
            weight = weight[:, torch.from_numpy(order)]
        values[2 * k] = weight
    _fill(plain.parameters(), values)
    return plain


def _head(policy: Policy) -> list[torch.Tensor]:
    return policy.parameters.blocks()[-5:]


@torch.no_grad()
def _fill(parameters: Iterable[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
