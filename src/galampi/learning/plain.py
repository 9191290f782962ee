"""The network of a policy as torch's own modules, for use without this package.

Knows the layout of the flat vector and torch's; nothing of files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from galampi.learning.actions import GaussianActions
from galampi.learning.policy import Convolution, Policy

Description = list[list[Any]]
"""Modules of a Sequential, each its name in `torch.nn` and its arguments: `[["Linear", 4, 64], ["Tanh"]]`."""


class PlainNetwork(nn.Module):
    """Policy and value in torch's layouts: images `[N, channels, height, width]`, weights `[out, in, height, width]`.

    Attributes:
        trunk: What policy and value share.
        policy: Logits of the actions, or means of the Gaussian.
        value: The value head.
        log_std: [k] log standard deviations of continuous actions; None for discrete ones.
        description: How to build `trunk`.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.description = _describe(policy)
        self.trunk = nn.Sequential(*(getattr(nn, name)(*sizes) for name, *sizes in self.description))
        *trunk, policy_weight, policy_bias, value_weight, value_bias, free = _torch_layouts(policy)
        self.policy = nn.Linear(policy_weight.shape[1], policy_weight.shape[0])
        self.value = nn.Linear(value_weight.shape[1], 1)
        parameters = [*trunk, policy_weight, policy_bias, value_weight, value_bias]
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), parameters, strict=True):
                parameter.copy_(value)
        self.log_std = nn.Parameter(free) if isinstance(policy.actions, GaussianActions) else None

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs of the policy head [N, outputs] and values [N, 1] for observations as `trunk` takes them."""
        features = self.trunk(observations)
        return self.policy(features), self.value(features)


def _describe(policy: Policy) -> Description:
    description: Description = []
    for layer in policy.layers:
        if isinstance(layer, Convolution):
            out, kernel, _, channels = layer.weight_shape
            description += [["Conv2d", channels, out, kernel, layer.stride], ["ReLU"]]
        else:
            if not description or description[-2][0] == "Conv2d":
                description += [["Flatten"]]
            out, width = layer.weight_shape
            description += [["Linear", width, out], ["ReLU" if layer.activation == "relu" else "Tanh"]]
    return description or [["Flatten"]]


def _torch_layouts(policy: Policy) -> list[torch.Tensor]:
    """Return the blocks of the flat vector as float32 tensors in torch's layouts."""
    shapes = [tensor.shape for tensor in policy.parameters.working]
    for k, layer in enumerate(policy.layers):
        shapes[2 * k] = torch.Size(layer.weight_shape)
    z = torch.from_numpy(policy.parameters.z.copy())
    flat = torch.split(z, [shape.numel() for shape in shapes])
    blocks = [block.view(shape) for block, shape in zip(flat, shapes, strict=True)]
    for k, layer in enumerate(policy.layers):
        if isinstance(layer, Convolution):
            blocks[2 * k] = blocks[2 * k].permute(0, 3, 1, 2)
        elif k and isinstance(before := policy.layers[k - 1], Convolution):
            # The features are flattened with the channels last here, and first in torch.
            height, width, channels = before.output_shape
            weight = blocks[2 * k].view(-1, height, width, channels)
            blocks[2 * k] = weight.permute(0, 3, 1, 2).flatten(1)
    return blocks
